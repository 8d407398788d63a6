"""`mce-llm plan`: how much memory a recipe needs under each engine, what fits, and how to launch it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from mce_llm.commands.plan_report import print_plan
from mce_llm.commands.recipe_shapes import read_recipe
from mce_llm.commands.training_plan import batch_of, launch_command, plan_training
from mce_llm.finetuning.configuration import Recipe
from mce_llm.planning import EnginePlan, MemoryPlan, PlanningError


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
    }
    return json.dumps(record, indent=2)


def _engine_record(plan: EnginePlan) -> dict[str, Any]:
    return {
        "engine": plan.engine,
        "peak_bytes": round(plan.peak),
        "peak_moment": plan.moment,
        "host_bytes": round(plan.host),
        "fits": plan.fits,
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
) -> None:
    """Plan a recipe and print the plan.

    Args:
        config: The YAML file.
        overrides: Settings as on the recipe's own command line.
        num_gpus: GPUs over all machines.
        memory_gib: Memory of each, GiB.
        engine: One engine, or None for all.
        json_output: Print JSON in place of tables.
    """
    recipe = read_recipe(config, overrides)
    plan = plan_training(recipe, num_gpus=num_gpus, memory_gib=memory_gib, engine=engine)
    if json_output:
        print(as_json(plan, recipe, config, overrides))
    else:
        print_plan(plan, recipe, Console(), config=config, overrides=overrides)
