"""What is in order and what is not: each part of a recipe's examination turned into findings.

Nothing is loaded here; the numbers come from the modules that `validate` calls.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.commands.data_examination import DataExamination
from mce_llm.commands.fetching import Fetch
from mce_llm.commands.findings import Findings
from mce_llm.commands.training_plan import cpu_note, plan_notes, refused_settings
from mce_llm.commands.trial_step import TrialStep
from mce_llm.data.template_date import day_text
from mce_llm.finetuning.adapters import check_adapters
from mce_llm.finetuning.checks import (
    foreign_tokenizer_text,
    id_problem,
    keeps_low_precision,
    position_problem,
    positions_of,
)
from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.ending import names_of_ids, stored_stop_ids
from mce_llm.finetuning.optimization import optimization_problems
from mce_llm.finetuning.outputs import finished_results
from mce_llm.finetuning.precision import lost_updates_text, usual_lost_share
from mce_llm.finetuning.settings import ModelArguments
from mce_llm.lm import examine_model
from mce_llm.lm.heads import output_layer
from mce_llm.lm.training.checkpoints import list_checkpoints
from mce_llm.planning import GIB, MemoryPlan
from mce_llm.running.installation import install_hint
from mce_llm.running.messages import counted
from mce_llm.running.vocabulary import embedding_rows

_FEW_LABELS = 0.05
_OFTEN_CUT = 0.05
_OFTEN_TWICE = 0.01


def judge_fetches(findings: Findings, fetches: list[Fetch]) -> None:
    """Is everything there that the run would read?"""
    for fetch in fetches:
        if fetch.state in ("missing", "no weights"):
            findings.problem(fetch.role, f"{fetch.name}: {fetch.detail}")
    downloads = [fetch for fetch in fetches if fetch.state == "download"]
    if downloads:
        names = ", ".join(f"{fetch.name} ({fetch.role})" for fetch in downloads)
        findings.warn("files", f"would be downloaded: {names}")
    elif all(fetch.state in ("local", "cached") for fetch in fetches):
        findings.ok("files", "everything is on this machine")


def judge_model(findings: Findings, recipe: Recipe, model: PreTrainedModel) -> None:
    """Can its head be used, and does it know enough positions?"""
    output_layer(model)
    findings.ok(
        "model", f"{type(model).__name__}, {model.num_parameters():,} parameters; its head can be used"
    )
    positions = positions_of(model)
    if positions is not None and recipe.data.max_length > positions:
        findings.warn(
            "max_length",
            f"{recipe.data.max_length:,} is beyond the {positions:,} positions that the model knows; the run refuses "
            "examples that need more",
        )
    implementation = recipe.model.attn_implementation or ""
    if implementation.startswith("flash_attention") and importlib.util.find_spec("flash_attn") is None:
        findings.warn(
            "attn_implementation", f"{implementation} needs flash-attn, which is not installed here"
        )


def judge_architecture(findings: Findings, recipe: Recipe, model: PreTrainedModel) -> None:
    """Is its loss causal cross-entropy, does it see no later tokens, and does it keep packed examples apart?"""
    if not recipe.training.model_check:
        findings.warn("model check", "model_check is false: what is assumed of the model is taken on trust")
        return
    found = examine_model(model, packing=recipe.data.packing, attention=recipe.model.attn_implementation)
    for text in found.unchecked:
        findings.warn("model check", text)
    if found.problem is not None:
        findings.problem("model check", found.problem)
    elif found.parameters:
        packed = f"; packed examples are kept apart ({found.attention})" if recipe.data.packing else ""
        findings.ok("model check", f"its loss is causal cross-entropy, no token sees later ones{packed}")


def judge_tokenizer(
    findings: Findings,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    settings: ModelArguments,
) -> None:
    """Do its ids fit the model, and can an answer end?"""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos is None:
        findings.problem(
            "tokenizer",
            "it has no end-of-text token, so that no answer would ever end; save one that has with save_pretrained, and give "
            "it as tokenizer_name_or_path",
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
    if problem := id_problem(tokenizer, model):
        findings.problem("tokenizer", problem)
    else:
        findings.ok("tokenizer", f"{len(tokenizer):,} tokens for {embedding_rows(model):,} embeddings")
    if text := foreign_tokenizer_text(settings, tokenizer):
        findings.warn("tokenizer", text)


def judge_ends(
    findings: Findings,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    data: DataExamination,
    revision: str | None,
) -> None:
    """Will generation stop where training ends an answer?"""
    stored = stored_stop_ids(model, revision)
    taught = names_of_ids(tokenizer, data.ends[:1])
    if data.ends[0] in stored:
        findings.ok("end of answers", f"{taught}, at which generation stops already")
        return
    before = names_of_ids(tokenizer, stored) if stored else "nothing"
    findings.ok(
        "end of answers",
        f"{taught}; the model as it is stops at {before}, and what is trained is saved with both in generation_config.json",
    )


def judge_data(
    findings: Findings, role: str, data: DataExamination, recipe: Recipe, positions: int | None
) -> None:
    """What is left out, cut or twice there, does every answer end, and does the model know enough positions?"""
    name = f"{role} data"
    if not data.kept:
        findings.problem(name, f"none of {data.examples:,} examples can be trained on; raise max_length")
        return
    findings.ok(
        name, f"{data.kept:,} of {data.examples:,} examples, {data.label_share:.0%} of their tokens trained"
    )
    if data.ignored:
        names = ", ".join(map(repr, data.ignored))
        findings.warn(
            name, f"the format {data.format} has no place for {names}: what is there is not trained on"
        )
    if data.unused:
        findings.ok(
            name, f"read as {data.format}; columns that play no part: {', '.join(map(repr, data.unused))}"
        )
    if data.day:
        findings.ok(name, day_text(data.day))
    for lost in data.lost:
        (findings.warn if lost.grave else findings.ok)(name, lost.sentence)
    dropped = data.dropped_overlong + data.dropped_untrained
    limit = recipe.data.max_length
    if problem := position_problem(min(limit, data.lengths[100]), positions, role=role):
        findings.problem("max_length", problem)
    if dropped:
        findings.warn(
            name, f"{dropped:,} examples are left out: longer than max_length {limit:,}, or all prompt"
        )
    if data.truncated:
        share = data.truncated / data.kept
        text = f"{data.truncated:,} answers ({share:.1%}) are cut at max_length {limit:,} and do not learn to end"
        (findings.warn if share > _OFTEN_CUT else findings.ok)(name, text)
    if data.duplicates:
        text = f"{data.duplicates:,} records are there more than once ({data.duplicates / data.records:.1%})"
        (findings.warn if data.duplicates > _OFTEN_TWICE * data.records else findings.ok)(name, text)
    whole = data.kept - data.truncated
    if whole > 0 and data.ends_trained == 0:
        findings.problem(name, "the token that ends an answer is trained in no example")
    elif data.ends_trained < whole:
        findings.warn(
            name,
            f"{whole - data.ends_trained:,} whole examples do not end in the token that ends an answer",
        )
    elif whole > 0:
        findings.ok(name, "every whole answer ends in the token that ends an answer, trained once")
    if data.label_share < _FEW_LABELS:
        findings.warn(
            name, f"only {data.label_share:.1%} of the tokens are trained: most of the work goes into prompts"
        )
    if 0 < data.lengths[100] < limit / 2 and not recipe.data.packing:
        findings.ok(
            name,
            f"the longest example has {data.lengths[100]:,} tokens: max_length {limit:,} is never reached",
        )


def judge_overlap(findings: Findings, data: dict[str, DataExamination]) -> None:
    """Is held-out data really held out?"""
    shared = len(data["train"].keys & data["eval"].keys)
    if shared:
        findings.warn("eval data", f"{shared:,} of its examples are in the training data too, word for word")


def judge_adapters(findings: Findings, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Do the adapters fit the model?"""
    settings = recipe.model
    if settings.lora_r == 0:
        return
    # bitsandbytes is the run's machine's business: what is said here is whether the adapters fit the model.
    check_adapters(
        replace(settings, quantization=None), tokenizer, embeddings=recipe.training.matrix_embeddings
    )
    findings.ok("adapters", f"rank {settings.lora_r} on {settings.lora_target_modules}; the head can be read")


def judge_step(findings: Findings, step: TrialStep) -> None:
    """Did every trained parameter get a finite gradient?"""
    if step.without_gradient:
        names = ", ".join(step.without_gradient[:3])
        findings.problem(
            "trial step",
            f"no gradient reaches {counted(len(step.without_gradient), 'trained parameter')}: {names}",
        )
    if step.not_finite or step.loss != step.loss:
        names = ", ".join(step.not_finite[:3])
        findings.problem("trial step", f"loss {step.loss}, gradients that are not finite: {names or 'none'}")
    if not step.without_gradient and not step.not_finite:
        matrix = {} if step.matrix_cross_entropy is None else {"MCE": step.matrix_cross_entropy}
        beside = "".join(f", {name} {value:.3f}" for name, value in {**matrix, **step.terms}.items())
        findings.ok(
            "trial step",
            f"loss {step.loss:.3f} (CE {step.cross_entropy:.3f}{beside}), finite gradients for all {step.trained} trained "
            f"tensors of a {step.parameters:,}-parameter model of the same type",
        )


def judge_optimization(findings: Findings, recipe: Recipe, model: PreTrainedModel | None) -> None:
    """Can the optimizer and the schedule be made?"""
    training = recipe.training
    problems = optimization_problems(training, model)
    for problem in problems:
        findings.problem("optimizer", problem)
    if not problems:
        names = [
            str(getattr(choice, "value", choice)) for choice in (training.optim, training.lr_scheduler_type)
        ]
        findings.ok("optimizer", f"{names[0]} with the schedule {names[1]} can be made")


def judge_memory(findings: Findings, recipe: Recipe, plan: MemoryPlan) -> None:
    """Does an engine fit, with room to spare?"""
    if note := cpu_note(recipe):
        findings.ok("memory", note)
    for note in plan_notes(plan):
        findings.warn("memory", note)
    if plan.capacity is None:
        return
    gpus = f"{plan.devices} × {plan.capacity / GIB:.4g} GiB"
    if plan.recommended is not None:
        best = plan.of(plan.recommended)
        findings.ok("memory", f"{best.engine} fits on {gpus}: {best.peak / GIB:.1f} GiB a GPU")
        return
    least = min(plan.engines, key=lambda item: item.peak)
    if least.peak <= plan.capacity and least.host > (least.host_capacity or least.host):
        findings.problem(
            "memory",
            f"no engine fits on {gpus} with {(least.host_capacity or 0) / GIB:,.4g} GiB of host memory; {least.engine} needs "
            f"{least.host / GIB:,.0f} GiB of it",
        )
        return
    findings.problem(
        "memory", f"no engine fits on {gpus}; {least.engine} needs {least.peak / GIB:.1f} GiB a GPU"
    )


def judge_precision(findings: Findings, recipe: Recipe, model: PreTrainedModel) -> None:
    """Do the weights take in the updates?"""
    settings, training = recipe.model, recipe.training
    if settings.lora_r or not keeps_low_precision(training):  # adapters are trained in float32
        return
    stored = getattr(model.config, "dtype", None) or torch.float32
    dtype: torch.dtype = stored if settings.dtype == "auto" else getattr(torch, settings.dtype)
    share = 0.0 if dtype == torch.float32 else usual_lost_share(dtype, training.learning_rate)
    if text := lost_updates_text(share, dtype, training.learning_rate):
        findings.warn("dtype", text + " (DeepSpeed keeps a float32 copy by itself)")


def judge_settings(findings: Findings, recipe: Recipe, *, here: bool) -> None:
    """Settings that each by itself is fine, and what a start on this machine would meet."""
    training, output = recipe.training, Path(str(recipe.training.output_dir))
    for text in refused_settings(recipe):
        findings.problem("settings", text)
    if (
        str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
        and not recipe.data.eval_dataset
    ):
        findings.problem("eval_strategy", "it needs eval_dataset")
    if output.is_file():
        findings.problem("output_dir", f"{output} is a file; name a directory")
    elif not recipe.data.overwrite and (finished := finished_results(output)):
        names = ", ".join(path.name for path in finished)
        findings.problem(
            "output_dir", f"{output} holds a finished run ({names}); choose another, or set overwrite: true"
        )
    elif checkpoints := list_checkpoints(output):
        text = f"{output} holds {len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)}"
        if recipe.data.resume:
            findings.warn("output_dir", f"{text}: the run would go on from the newest whole one")
        elif not recipe.data.overwrite:
            findings.problem(
                "output_dir", f"{text}, and resume is false; choose another, or set overwrite: true"
            )
    if recipe.model.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        findings.warn("quantization", f"bitsandbytes is not installed here: {install_hint('qlora')}")
    if (
        here
        and (training.bf16 or training.fp16)
        and not (torch.accelerator.is_available() or recipe.given.get("use_cpu"))
    ):
        findings.warn("bf16" if training.bf16 else "fp16", "this machine has no GPU; the run needs one")
    if recipe.model.trust_remote_code:
        findings.warn("trust_remote_code", "Python code from the model's repository would be run")
