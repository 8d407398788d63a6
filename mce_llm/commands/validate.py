"""`mce-llm validate`: everything about a recipe that can be looked at before it runs, all problems at once.

Each part is examined whatever became of the others, and nothing is written into output_dir. How the outcome is printed
is in `validate_report`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.commands.data_examination import DataExamination, examine_data
from mce_llm.commands.fetching import Fetch, what_is_fetched
from mce_llm.commands.findings import Findings
from mce_llm.commands.plan import batch_of, plan_training
from mce_llm.commands.recipe_shapes import model_without_weights, read_recipe
from mce_llm.commands.sample_view import marked
from mce_llm.commands.trial_step import TrialStep, try_step
from mce_llm.lm.heads import output_layer
from mce_llm.planning import GIB, MemoryPlan
from mce_llm.recipes.adapters import check_adapters
from mce_llm.recipes.configuration import Recipe
from mce_llm.recipes.models import tokenizer_of

_REPORTERS = ("wandb", "trackio", "tensorboard", "mlflow", "swanlab", "comet_ml", "clearml")
_FEW_LABELS = 0.05
_OFTEN_CUT = 0.05
_OFTEN_TWICE = 0.01


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
    most_examples: int = 20_000,
    num_samples: int = 2,
) -> Validation:
    """Examine a recipe.

    Args:
        recipe: The settings.
        num_gpus: GPUs that it is to run on; by default those of this machine.
        memory_gib: Memory of each, GiB; by default as this machine's.
        engine: One engine for the memory plan.
        most_examples: Look at this many examples of each data set at most.
        num_samples: Examples to show.
    """
    outcome = Validation(recipe)
    findings = outcome.findings
    if num_gpus is None and torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
    if memory_gib is None and torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    with findings.part("files"):
        outcome.fetches = what_is_fetched(recipe)
        _judge_fetches(outcome)
    tokenizer: PreTrainedTokenizerBase | None = None
    with findings.part("tokenizer"):
        tokenizer = tokenizer_of(recipe.model)
    model: PreTrainedModel | None = None
    with findings.part("model"):
        model = model_without_weights(recipe.model)
        _judge_model(findings, recipe, model)
    if tokenizer is not None:
        _judge_tokenizer(findings, tokenizer, model)
        for role in ("train", "eval") if recipe.data.eval_dataset else ("train",):
            with findings.part(f"{role} data"):
                examined = examine_data(recipe.data, tokenizer, role=role, most=most_examples)
                outcome.data[role] = examined
                _judge_data(findings, role, examined, recipe)
        with findings.part("samples"):
            outcome.samples = _samples(tokenizer, outcome.data.get("train"), num_samples)
        if len(outcome.data) == 2:
            _judge_overlap(findings, outcome.data)
        with findings.part("adapters"):
            check_adapters(recipe.model, tokenizer, embeddings=recipe.training.matrix_embeddings)
        rows = outcome.data["train"].rows if "train" in outcome.data else []
        if model is not None and len(rows):
            with findings.part("trial step"):
                outcome.step = try_step(recipe, model.config, tokenizer, rows)
                _judge_step(findings, outcome.step)
    with findings.part("batch"):
        _count_steps(outcome, num_gpus or 1)
    if model is not None:
        with findings.part("memory"):
            outcome.plan = plan_training(recipe, num_gpus=num_gpus or 1, memory_gib=memory_gib, engine=engine)
            _judge_memory(findings, outcome.plan)
    _judge_settings(findings, recipe)
    return outcome


def _judge_fetches(outcome: Validation) -> None:
    missing = [fetch for fetch in outcome.fetches if fetch.state == "missing"]
    downloads = [fetch for fetch in outcome.fetches if fetch.state == "download"]
    for fetch in missing:
        outcome.findings.problem("files", f"{fetch.role}: {fetch.name} {fetch.detail}")
    if downloads:
        names = ", ".join(f"{fetch.name} ({fetch.role})" for fetch in downloads)
        outcome.findings.warn("files", f"would be downloaded: {names}")
    if not missing and not downloads:
        outcome.findings.ok("files", "everything is on this machine")


def _judge_model(findings: Findings, recipe: Recipe, model: PreTrainedModel) -> None:
    output_layer(model)
    findings.ok(
        "model", f"{type(model).__name__}, {model.num_parameters():,} parameters; its head can be used"
    )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and recipe.data.max_length > longest:
        findings.problem(
            "max_length",
            f"{recipe.data.max_length:,} is beyond the {longest:,} positions that the model knows",
        )
    implementation = recipe.model.attn_implementation or ""
    if implementation.startswith("flash_attention") and importlib.util.find_spec("flash_attn") is None:
        findings.warn(
            "attn_implementation", f"{implementation} needs flash-attn, which is not installed here"
        )


def _judge_tokenizer(
    findings: Findings, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None
) -> None:
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos is None:
        findings.problem(
            "tokenizer", "it has no end-of-text token; set tokenizer.eos_token, or no answer ever ends"
        )
    elif pad == eos:
        findings.ok(
            "padding",
            f"with the end-of-text token {tokenizer.eos_token!r}; padding is masked by place, not by id, so it "
            "is trained where an answer ends",
        )
    elif pad is not None and pad in (tokenizer.bos_token_id, tokenizer.unk_token_id):
        findings.ok(
            "padding", f"with {tokenizer.pad_token!r}, which has another use too; labels do not depend on it"
        )
    if model is None:
        return
    largest = max(tokenizer.get_vocab().values())
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    if largest >= rows:
        findings.problem(
            "tokenizer",
            f"it has ids up to {largest:,}, the model {rows:,} embeddings; use the model's own tokenizer",
        )
    else:
        findings.ok("tokenizer", f"{len(tokenizer):,} tokens for {rows:,} embeddings")
    configured = model.config.get_text_config().eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    if eos is not None and configured is not None and eos not in ends:
        findings.warn(
            "tokenizer",
            f"its end-of-text id {eos} is not the model's ({configured}); generation stops at the latter",
        )


def _judge_data(findings: Findings, role: str, data: DataExamination, recipe: Recipe) -> None:
    name = f"{role} data"
    if not data.kept:
        findings.problem(name, f"none of {data.examples:,} examples can be trained on; raise max_length")
        return
    findings.ok(
        name, f"{data.kept:,} of {data.examples:,} examples, {data.label_share:.0%} of their tokens trained"
    )
    dropped = data.dropped_overlong + data.dropped_untrained
    limit = recipe.data.max_length
    if dropped:
        findings.warn(
            name, f"{dropped:,} examples are left out: longer than max_length {limit:,}, or all prompt"
        )
    if data.truncated:
        share = data.truncated / data.kept
        text = f"{data.truncated:,} answers ({share:.1%}) are cut at max_length {limit:,} and do not learn to end"
        (findings.warn if share > _OFTEN_CUT else findings.ok)(name, text)
    if data.empty_responses:
        findings.warn(name, f"{data.empty_responses:,} answers are empty: the model learns to say nothing")
    if data.empty_prompts:
        findings.warn(name, f"{data.empty_prompts:,} questions are empty")
    if data.duplicates:
        text = (
            f"{data.duplicates:,} examples are there more than once ({data.duplicates / data.examples:.1%})"
        )
        (findings.warn if data.duplicates > _OFTEN_TWICE * data.examples else findings.ok)(name, text)
    whole = data.kept - data.truncated
    if whole > 0 and data.ends_trained == 0:
        findings.problem(name, "the token at which generation stops is trained in no example")
    elif data.ends_trained < whole:
        findings.warn(
            name,
            f"{whole - data.ends_trained:,} whole examples do not end in the token at which generation stops",
        )
    elif whole > 0:
        findings.ok(name, "every whole answer ends in the token at which generation stops, trained once")
    if data.label_share < _FEW_LABELS:
        findings.warn(
            name, f"only {data.label_share:.1%} of the tokens are trained: most of the work goes into prompts"
        )
    if 0 < data.lengths[100] < limit / 2 and not recipe.data.packing:
        findings.ok(
            name,
            f"the longest example has {data.lengths[100]:,} tokens: max_length {limit:,} is never reached",
        )


def _judge_overlap(findings: Findings, data: dict[str, DataExamination]) -> None:
    shared = len(data["train"].keys & data["eval"].keys)
    if shared:
        findings.warn("eval data", f"{shared:,} of its examples are in the training data too, word for word")


def _judge_step(findings: Findings, step: TrialStep) -> None:
    if step.without_gradient:
        names = ", ".join(step.without_gradient[:3])
        findings.problem(
            "trial step", f"no gradient reaches {len(step.without_gradient)} trained parameters: {names}"
        )
    if step.not_finite or step.loss != step.loss:
        names = ", ".join(step.not_finite[:3])
        findings.problem("trial step", f"loss {step.loss}, gradients that are not finite: {names or 'none'}")
    if not step.without_gradient and not step.not_finite:
        matrix = "" if step.matrix_cross_entropy is None else f", MCE {step.matrix_cross_entropy:.3f}"
        findings.ok(
            "trial step",
            f"loss {step.loss:.3f} (CE {step.cross_entropy:.3f}{matrix}), finite gradients for all {step.trained} trained "
            f"tensors of a {step.parameters:,}-parameter model of the same type",
        )


def _judge_memory(findings: Findings, plan: MemoryPlan) -> None:
    if plan.capacity is None:
        return
    gpus = f"{plan.devices} × {plan.capacity / GIB:.4g} GiB"
    if plan.recommended is None:
        least = min(plan.engines, key=lambda item: item.peak)
        findings.problem(
            "memory", f"no engine fits on {gpus}; {least.engine} needs {least.peak / GIB:.1f} GiB a GPU"
        )
    else:
        best = plan.of(plan.recommended)
        findings.ok("memory", f"{best.engine} fits on {gpus}: {best.peak / GIB:.1f} GiB a GPU")


def _judge_settings(findings: Findings, recipe: Recipe) -> None:
    """Settings that each by itself is fine, and what a start on this machine would meet."""
    training, output = recipe.training, Path(str(recipe.training.output_dir))
    if (
        str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
        and not recipe.data.eval_dataset
    ):
        findings.problem("eval_strategy", "it needs eval_dataset")
    if output.is_file():
        findings.problem("output_dir", f"{output} is a file; name a directory")
    elif (output / "train_results.json").exists() and not recipe.data.overwrite:
        findings.problem(
            "output_dir", f"{output} holds a finished run; choose another, or set overwrite: true"
        )
    elif any(output.glob("checkpoint-*")):
        findings.warn(
            "output_dir", f"{output} holds checkpoints: the run would go on from the newest whole one"
        )
    names = [training.report_to] if isinstance(training.report_to, str) else list(training.report_to or [])
    for name in names:
        if name in _REPORTERS and importlib.util.find_spec(name) is None:
            findings.problem("report_to", f"{name} is not installed here: pip install {name}")
    if recipe.model.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        findings.warn("quantization", "bitsandbytes is not installed here: pip install 'mce-llm[qlora]'")
    if (
        (training.bf16 or training.fp16)
        and not torch.accelerator.is_available()
        and not recipe.given.get("use_cpu")
    ):
        findings.warn("bf16" if training.bf16 else "fp16", "this machine has no GPU; the run needs one")
    if recipe.model.trust_remote_code:
        findings.warn("trust_remote_code", "Python code from the model's repository would be run")


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
    rows = f"{batch.total} rows a step = {num_gpus} GPU{'s' * (num_gpus > 1)} × {batch.rows} × {batch.accumulation}"
    steps = f"; {outcome.steps:,} optimizer steps" if outcome.steps is not None else ""
    outcome.findings.ok("batch", rows + steps)


def as_json(outcome: Validation) -> str:
    """The outcome for programs."""
    plan = outcome.plan
    return json.dumps(
        {
            "exit_code": outcome.exit_code,
            "findings": [vars(item) for item in outcome.findings.items],
            "fetches": [vars(fetch) for fetch in outcome.fetches],
            "data": {role: data.record() for role, data in outcome.data.items()},
            "samples": [sample.plain for sample in outcome.samples],
            "trial_step": outcome.step and vars(outcome.step),
            "optimizer_steps": outcome.steps,
            "memory": plan
            and {
                "recommended": plan.recommended,
                "peak_bytes": {item.engine: round(item.peak) for item in plan.engines},
            },
        },
        indent=2,
        ensure_ascii=False,
    )


def run_validate(config: str, overrides: list[str], *, json_output: bool, **options: Any) -> int:
    """Examine a recipe and print the outcome.

    Args:
        config: The YAML file.
        overrides: Settings as on the recipe's own command line.
        json_output: Print JSON in place of the report.
        **options: Those of `validate_recipe`.

    Returns:
        The exit code: 0 where the recipe can run, 1 where something has to change.

    Raises:
        ConfigurationError: The settings cannot be parsed.
    """
    from mce_llm.commands.validate_report import print_validation

    recipe = read_recipe(config, overrides)
    with redirect_stdout(sys.stderr):  # what the parts say on their way is no part of the report
        outcome = validate_recipe(recipe, **options)
    if json_output:
        print(as_json(outcome))
    else:
        print_validation(outcome, Console())
    return outcome.exit_code
