"""The examination of a recipe: everything that can be looked at before it runs, all problems at once.

Each part is examined whatever became of the others, and nothing is written into output_dir.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.commands.data_examination import DataExamination, examine_data
from mce_llm.commands.fetching import Fetch, what_is_fetched
from mce_llm.commands.findings import Findings
from mce_llm.commands.judgements import (
    judge_adapters,
    judge_architecture,
    judge_data,
    judge_ends,
    judge_fetches,
    judge_memory,
    judge_model,
    judge_optimization,
    judge_overlap,
    judge_precision,
    judge_settings,
    judge_step,
    judge_tokenizer,
)
from mce_llm.commands.recipe_shapes import model_without_weights
from mce_llm.commands.sample_view import marked
from mce_llm.commands.training_plan import batch_of, plan_training
from mce_llm.commands.trial_step import TrialStep, try_step
from mce_llm.finetuning.checks import few_rows_text, positions_of
from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.models import tokenizer_of
from mce_llm.planning import GIB, MemoryPlan, UnplannedError


@dataclass
class Validation:
    """The outcome.

    Attributes:
        recipe: The settings.
        findings: What is in order, and what is not.
        fetches: What would be read from disk or downloaded.
        data: role → what its examples look like.
        samples: A few of them, marked.
        step: One step of a shrunken model.
        plan: The memory plan.
        steps: Optimizer steps of the run, where they can be counted.
    """

    recipe: Recipe
    findings: Findings = field(default_factory=Findings)
    fetches: list[Fetch] = field(default_factory=list)
    data: dict[str, DataExamination] = field(default_factory=dict)
    samples: list[Text] = field(default_factory=list)
    step: TrialStep | None = None
    plan: MemoryPlan | None = None
    steps: int | None = None

    @property
    def exit_code(self) -> int:
        """0 where the recipe can run, 1 where something has to change."""
        return 1 if self.findings.count("problem") else 0


def validate_recipe(
    recipe: Recipe,
    *,
    num_gpus: int | None = None,
    memory_gib: float | None = None,
    engine: str | None = None,
    host_memory_gib: float | None = None,
    most_examples: int = 20_000,
    num_samples: int = 2,
) -> Validation:
    """Examine a recipe.

    Args:
        recipe: The settings.
        num_gpus: GPUs that it is to run on; by default those of this machine.
        memory_gib: Memory of each, GiB; by default as this machine's.
        engine: One engine for the memory plan.
        host_memory_gib: Memory of the host, over all machines, GiB; None where it is not known.
        most_examples: Look at this many examples of each data set at most.
        num_samples: Examples to show.
    """
    outcome = Validation(recipe)
    findings = outcome.findings
    here = num_gpus is None  # or it is a plan for another machine
    if num_gpus is None and torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
    if memory_gib is None and torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    with findings.part("files"):
        outcome.fetches = what_is_fetched(recipe)
        judge_fetches(findings, outcome.fetches)
    absent = {fetch.role for fetch in outcome.fetches if fetch.state == "missing"}
    tokenizer: PreTrainedTokenizerBase | None = None
    if absent.isdisjoint({"tokenizer"} if recipe.model.tokenizer_name_or_path else {"model"}):
        with findings.part("tokenizer"):
            tokenizer = tokenizer_of(recipe.model)
    model: PreTrainedModel | None = None
    if "model" not in absent:
        with findings.part("model"):
            model = model_without_weights(recipe.model)
            judge_model(findings, recipe, model)
            judge_precision(findings, recipe, model)
        with findings.part("model check"):
            if model is not None:
                judge_architecture(findings, recipe, model)
    if tokenizer is not None:
        judge_tokenizer(findings, tokenizer, model, recipe.model)
        sources = (
            {"train": "dataset", "eval": "eval_dataset"} if recipe.data.eval_dataset else {"train": "dataset"}
        )
        for role in (role for role, source in sources.items() if source not in absent):
            with findings.part(f"{role} data"):
                examined = examine_data(recipe.data, tokenizer, role=role, most=most_examples)
                outcome.data[role] = examined
                judge_data(findings, role, examined, recipe, positions_of(model))
        with findings.part("samples"):
            outcome.samples = _samples(tokenizer, outcome.data.get("train"), num_samples)
        if model is not None and "train" in outcome.data:
            judge_ends(findings, tokenizer, model, outcome.data["train"], recipe.model.model_revision)
        if len(outcome.data) == 2:
            judge_overlap(findings, outcome.data)
    if tokenizer is not None and model is not None:
        with findings.part("adapters"):
            judge_adapters(findings, recipe, tokenizer)
        if "train" in outcome.data and len(outcome.data["train"].rows):
            with findings.part("trial step"):
                outcome.step = try_step(recipe, model, tokenizer, outcome.data["train"].rows)
                judge_step(findings, outcome.step)
    with findings.part("optimizer"):
        judge_optimization(findings, recipe, model)
    with findings.part("batch"):
        _count_steps(outcome, num_gpus or 1)
    if model is not None:
        with findings.part("memory"):
            try:
                outcome.plan = plan_training(
                    recipe,
                    num_gpus=num_gpus or 1,
                    memory_gib=memory_gib,
                    engine=engine,
                    host_memory_gib=host_memory_gib,
                )
                judge_memory(findings, recipe, outcome.plan)
            except UnplannedError as error:
                findings.warn("memory", str(error))
    judge_settings(findings, recipe, here=here)
    return outcome


def _samples(tokenizer: PreTrainedTokenizerBase, data: DataExamination | None, count: int) -> list[Text]:
    if data is None or not len(data.rows):
        return []
    places = range(0, len(data.rows), max(1, len(data.rows) // max(count, 1)))[:count]
    return [marked(tokenizer, data.rows[n]["input_ids"], data.rows[n]["labels"]) for n in places]


def _count_steps(outcome: Validation, num_gpus: int) -> None:
    batch = batch_of(outcome.recipe, num_gpus)
    data, training = outcome.data.get("train"), outcome.recipe.training
    if training.max_steps > 0:
        outcome.steps = training.max_steps
    elif data is not None and not data.limited:
        per_epoch = -(-len(data.rows) // batch.total)
        outcome.steps = int(-(-per_epoch * training.num_train_epochs // 1))
    if data is not None and not data.limited and (text := few_rows_text(len(data.rows), batch.total)):
        outcome.findings.warn("batch", text)
    rows = f"{batch.total} rows a step = {num_gpus} GPU{'s' * (num_gpus > 1)} × {batch.rows} × {batch.accumulation}"
    steps = f"; {outcome.steps:,} optimizer steps" if outcome.steps is not None else ""
    outcome.findings.ok("batch", rows + steps)
