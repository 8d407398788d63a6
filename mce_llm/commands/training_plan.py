"""A recipe's memory plan, its batch and its command line: what `plan` and `validate` report.

The arithmetic is in `mce_llm.planning`; how the outcome is printed is in `plan_report`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from mce_llm.commands.recipe_shapes import recipe_shapes
from mce_llm.finetuning.configuration import Recipe
from mce_llm.lm.training.other_losses import other_losses
from mce_llm.planning import GIB, TIGHT, EnginePlan, MemoryPlan, PlanningError, plan_memory
from mce_llm.running.installation import named_file
from mce_llm.running.processes import first_fsdp_text


@dataclass(frozen=True)
class Batch:
    """How the rows of an optimizer step are divided.

    Attributes:
        rows: Rows of a micro-batch.
        accumulation: Micro-batches of a step, on each GPU.
        total: Rows of a step, over all GPUs.
    """

    rows: int
    accumulation: int
    total: int


def plan_training(
    recipe: Recipe,
    *,
    num_gpus: int,
    memory_gib: float | None,
    engine: str | None = None,
    host_memory_gib: float | None = None,
) -> MemoryPlan:
    """The memory of one optimizer step of a recipe.

    Args:
        recipe: The settings.
        num_gpus: GPUs over all machines.
        memory_gib: Memory of each, GiB; None to add up without judging what fits.
        engine: ddp, zero2, zero3, fsdp2 or zero3_offload; None for all of them.
        host_memory_gib: Memory of the host, over all machines, GiB; None where it is not known.

    Raises:
        PlanningError: An unknown engine or optimizer, or numbers that make no sense.
        ModelSourceError: There is no such model.
    """
    capacity = None if memory_gib is None else memory_gib * GIB
    model, training = recipe_shapes(recipe, capacity)
    training = replace(training, accumulation=accumulation_of(recipe, num_gpus))
    host = None if host_memory_gib is None else host_memory_gib * GIB
    return plan_memory(
        model, training, devices=num_gpus, capacity=capacity, engine=engine, host_capacity=host
    )


def refused_settings(recipe: Recipe) -> list[str]:
    """What a training of this recipe would refuse whatever the machine, in the words in which it does."""
    problems = other_losses(recipe.training)
    plugin = getattr(recipe.training, "fsdp_plugin_args", None) or {}
    if recipe.training.fsdp and int(plugin.get("fsdp_version", 2)) != 2:
        problems.append(first_fsdp_text())
    return problems


def plan_notes(plan: MemoryPlan) -> list[str]:
    """What to know of a plan before it is relied on, one text each."""
    notes = []
    if plan.training.quantization is not None and plan.model.layer.stacked_experts:
        stacked = plan.model.elements(lambda group: len(group.shape) == 3)
        notes.append(
            f"bitsandbytes quantises matrices, and not experts that are stacked in one tensor: {stacked:,} of "
            f"{plan.model.parameters:,} parameters stay in {plan.training.dtype}, and are counted so"
        )
    if plan.recommended is None:
        return notes
    best = plan.of(plan.recommended)
    if best.verdict == "tight":
        notes.append(
            f"{best.engine} is tight: less than {TIGHT:.0%} would be left, and that is what the arithmetic is off by; try a "
            "short run first, or make it smaller"
        )
    if best.host and best.host_capacity is None:
        notes.append(
            f"{best.engine} needs {best.host / GIB:,.0f} GiB of host memory, over all machines and beside what the "
            "processes take; give what there is as --host-memory"
        )
    return notes


def cpu_note(recipe: Recipe) -> str | None:
    """What a memory plan means where the recipe itself asks for the CPU."""
    if not recipe.given.get("use_cpu"):
        return None
    return (
        "use_cpu is true in the recipe: the figures are for a run on GPUs, and say nothing of one on the CPU"
    )


def batch_of(recipe: Recipe, num_gpus: int, rows: int | None = None) -> Batch:
    """The batch on this many GPUs.

    Args:
        recipe: The settings.
        num_gpus: GPUs over all machines.
        rows: Rows of a micro-batch in place of the recipe's.

    Raises:
        PlanningError: `total_batch_size` cannot be divided so.
    """
    rows = rows or recipe.training.per_device_train_batch_size
    total = recipe.data.total_batch_size
    if total is None:
        steps = recipe.training.gradient_accumulation_steps
        return Batch(rows, steps, rows * steps * num_gpus)
    if total % (rows * num_gpus):
        raise PlanningError(
            f"total_batch_size {total} is not a multiple of {rows * num_gpus} ({num_gpus} GPUs × "
            f"per_device_train_batch_size {rows}); change one of the three"
        )
    return Batch(rows, total // (rows * num_gpus), total)


def accumulation_of(recipe: Recipe, num_gpus: int) -> int:
    """Micro-batches of a step on this many GPUs, rounded up where `total_batch_size` cannot be divided."""
    total = recipe.data.total_batch_size
    if total is None:
        return recipe.training.gradient_accumulation_steps
    return -(-total // (recipe.training.per_device_train_batch_size * max(num_gpus, 1)))


def best_batch(recipe: Recipe, num_gpus: int, plan: EnginePlan) -> Batch | None:
    """The largest micro-batch that fits and divides the total; None where none does."""
    for rows in range(plan.largest_micro_batch or 0, 0, -1):
        try:
            return batch_of(recipe, num_gpus, rows)
        except PlanningError:
            continue
    return None


def launch_command(config: str, overrides: list[str], engine: str, num_gpus: int) -> str:
    """The command line that runs a recipe under an engine."""
    launcher = "accelerate launch"
    if num_gpus > 1 or engine != "ddp":
        launcher += f" --config_file {named_file(f'recipes/accelerate/{engine}.yaml')}"
    words = " ".join(shlex.quote(word) for word in overrides)
    recipe = (
        f"{named_file('recipes/finetune.py')} --config {shlex.quote(config)}{f' {words}' if words else ''}"
    )
    return f"{launcher} --num_processes {num_gpus} {recipe}"
