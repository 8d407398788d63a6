"""`mce-llm plan`: how much memory a recipe needs under each engine, what fits, and how to launch it."""

from __future__ import annotations

import json
from typing import Any

from mce_llm.commands.plan_report import print_plan
from mce_llm.commands.recipe_shapes import read_recipe
from mce_llm.commands.training_plan import (
    batch_of,
    cpu_note,
    launch_command,
    plan_notes,
    plan_training,
    refused_settings,
)
from mce_llm.finetuning.configuration import Recipe
from mce_llm.planning import EnginePlan, MemoryPlan, PlanningError
from mce_llm.running.messages import raise_all
from mce_llm.running.terminal import DataConsole


def as_json(plan: MemoryPlan, recipe: Recipe, config: str, overrides: list[str]) -> str:
    """The whole plan for programs; sizes in bytes."""
    batch: dict[str, Any] | None
    try:
        batch = vars(batch_of(recipe, plan.devices))
    except PlanningError:
        batch = None
    record = {
        "model": {
            "name": plan.model.name,
            "model_type": plan.model.model_type,
            "parameters": plan.model.parameters,
            "trained_parameters": plan.model.trained,
        },
        "gpus": plan.devices,
        "memory_bytes": plan.capacity,
        "batch": batch,
        "recommended": plan.recommended,
        "launch": plan.recommended and launch_command(config, overrides, plan.recommended, plan.devices),
        "engines": [_engine_record(item) for item in plan.engines],
        "remedies": [vars(remedy) for remedy in plan.remedies],
        "notes": [*filter(None, [cpu_note(recipe)]), *plan_notes(plan)],
    }
    return json.dumps(record, indent=2)


def _engine_record(plan: EnginePlan) -> dict[str, Any]:
    return {
        "engine": plan.engine,
        "peak_bytes": round(plan.peak),
        "peak_moment": plan.moment,
        "host_bytes": round(plan.host),
        "fits": plan.fits,
        "verdict": plan.verdict,
        "stock_cross_entropy_peak_bytes": None if plan.stock_peak is None else round(plan.stock_peak),
        "refusal": plan.refusal,
        "largest_micro_batch": plan.largest_micro_batch,
        "terms": [
            {"name": term.name, "phase": term.phase, "bytes": round(term.bytes), "formula": term.formula}
            for term in plan.terms
        ],
    }


def run_plan(
    config: str,
    overrides: list[str],
    *,
    num_gpus: int,
    memory_gib: float,
    engine: str | None,
    json_output: bool,
    host_memory_gib: float | None = None,
) -> None:
    """Plan a recipe and print the plan.

    Args:
        config: The YAML file.
        overrides: Settings as on the recipe's own command line.
        num_gpus: GPUs over all machines.
        memory_gib: Memory of each, GiB.
        engine: One engine, or None for all.
        json_output: Print JSON in place of tables.
        host_memory_gib: Memory of the host, over all machines, GiB; None where it is not known.

    Raises:
        ConfigurationError: The recipe has settings that training refuses.
    """
    recipe = read_recipe(config, overrides)
    raise_all(refused_settings(recipe))
    plan = plan_training(
        recipe, num_gpus=num_gpus, memory_gib=memory_gib, engine=engine, host_memory_gib=host_memory_gib
    )
    if json_output:
        print(as_json(plan, recipe, config, overrides))
    else:
        print_plan(plan, recipe, DataConsole(markup=True), config=config, overrides=overrides)
