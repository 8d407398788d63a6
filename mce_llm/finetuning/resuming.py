"""What every setting of a recipe means to a run that goes on from a checkpoint, and the comparison with that checkpoint.

A checkpoint keeps the settings that it was trained with. One of an earlier version does not; the recipe.yaml beside it
then says what was given, and that it is taken on trust is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.settings import DataArguments, ModelArguments
from mce_llm.lm import MatrixLossConfig, MatrixTrainingArguments
from mce_llm.lm.config import SETTING_NAMES
from mce_llm.lm.training.card_facts import DataRecord
from mce_llm.lm.training.card_text import code, table
from mce_llm.lm.training.manifest import read_manifest
from mce_llm.lm.training.resuming import (
    TRAINING,
    Continuation,
    Effect,
    continuation,
    training_settings,
    unknown_before,
)
from mce_llm.lm.training.run_settings import RunSettings, plain
from mce_llm.lm.training.starting import on_first
from mce_llm.running.folder import RECIPE, CheckpointError
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError, settings_of, typed
from mce_llm.running.yaml_text import load_record

# Of each weight, evenly spread: all of 7B weights would take a minute, and another model differs everywhere.
_WEIGHTS_LOOKED_AT = 1024
_GROUPS = (ModelArguments, DataArguments, MatrixTrainingArguments)

EFFECTS: dict[str, Effect] = {
    **{
        name: effect
        for effect, names in {
            Effect.TRAINED: "lora_alpha lora_dropout use_rslora",
            Effect.BATCH: "total_batch_size",
            Effect.MEASURE: "eval_dataset eval_split eval_dataset_name eval_dataset_revision eval_limit",
            Effect.REPORTED: "merge_adapters",
            Effect.NONE: "attn_implementation trust_remote_code dataset_num_proc resume overwrite",
            Effect.REFUSED: (
                "model_name_or_path model_revision model_config tokenizer_name_or_path tokenizer_revision "
                "chat_template resize_embeddings dtype quantization lora_r lora_target_modules lora_modules_to_save use_dora "
                "dataset dataset_split dataset_name dataset_revision dataset_format columns "
                "limit prompt system_prompt chat_template_kwargs train_turns max_length overlong packing"
            ),
        }.items()
        for name in names.split()
    },
    **TRAINING,
}


def settings_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every setting of a recipe by name, the defaults among them, as a checkpoint keeps them."""
    groups = {
        item.name: getattr(group, item.name)
        for group in (recipe.model, recipe.data)
        for item in fields(group)
        if item.init
    }
    return {**plain(groups), **training_settings(recipe.training, recipe.training.matrix_loss)}


def going_on(checkpoint: Path, recipe: Recipe) -> Continuation:
    """Compare what a checkpoint was trained with and what its run is to go on with; every process calls.

    Raises:
        CheckpointError: Settings differ that cannot change on the way.
    """

    def compare() -> Continuation:
        settings = settings_of_recipe(recipe)
        before = RunSettings.read(checkpoint)
        if before is None:
            before = _by_recipe(checkpoint, recipe, settings)
        if before is None:
            say(
                f"the settings that {checkpoint} was trained with are unknown: it has no record of them, and {RECIPE} cannot "
                "be read; its optimizer and schedule go on as they are"
            )
            return unknown_before(checkpoint, settings)
        return continuation(
            checkpoint,
            before,
            settings,
            effects=EFFECTS,
            groups=_GROUPS,
            processes=recipe.training.world_size,
        )

    found: Continuation = on_first(compare)
    return found


def facts_of_data(record: DataRecord) -> dict[str, Any]:
    """What a checkpoint keeps of the training data beside their settings."""
    return {
        "train_examples": record.examples,
        "train_tokens": record.trained_tokens,
        "train_digest": record.digest,
    }


def check_data(found: Continuation | None, record: DataRecord) -> None:
    """Refuse to go on where the files or the hub hold other training data than the checkpoint was trained on.

    Raises:
        CheckpointError: The examples are others, or the same in another order.
    """
    if found is None:
        return
    now = facts_of_data(record)
    before = {name: found.before.settings.get(name, value) for name, value in now.items()}
    if before == now:
        return
    same_size = all(before[name] == now[name] for name in ("train_examples", "train_tokens"))
    what = (
        "its examples are others than before, or in another order"
        if same_size
        else f"from {before['train_examples']} examples with {before['train_tokens']} trained tokens to "
        f"{now['train_examples']} with {now['train_tokens']}"
    )
    raise CheckpointError(
        f"cannot go on from {found.checkpoint}: the data have changed, {what}, so that rows would come twice or never; "
        "bring the earlier data back, or start anew with --resume false --overwrite true, or in another output_dir from "
        "these weights (model_name_or_path)"
    )


def facts_of_base(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint of adapters keeps of the weights under them: a digest of some of each; every process calls.

    Args:
        model: The model before it gets its adapters. Weights that an engine keeps in shards are not looked at.
    """

    def digest() -> str | None:
        found = blake2b(digest_size=16)
        for name, weight in model.named_parameters():
            if weight.is_meta or not weight.numel():
                return None
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // _WEIGHTS_LOOKED_AT)].cpu()
            found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            found.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    return {"base_digest": on_first(digest)}


def check_base(found: Continuation | None, facts: Mapping[str, Any], name: str | None) -> None:
    """Refuse to go on with adapters on other weights than those that they were trained on.

    Raises:
        CheckpointError: The weights under the same name are others.
    """
    before = None if found is None else found.before.settings.get("base_digest")
    if found is None or before is None or facts["base_digest"] in (None, before):
        return
    raise CheckpointError(
        f"cannot go on from {found.checkpoint}: the weights of {name} are not those that its adapters were trained on; "
        "bring the earlier model back, or start anew with --resume false --overwrite true"
    )


def _by_recipe(checkpoint: Path, recipe: Recipe, settings: dict[str, Any]) -> RunSettings | None:
    """What a checkpoint without a record was trained with, by the recipe.yaml beside it; None where that says nothing."""
    path = checkpoint.parent / RECIPE
    try:
        given = load_record(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ConfigurationError):
        return None
    say(f"{checkpoint} has no record of the settings that it was trained with; compared with {path}")
    processes = (read_manifest(checkpoint) or {}).get("world_size") or recipe.training.world_size
    return RunSettings({**settings, **_as_given(given, plain(recipe.given), processes)})


def _as_given(then: Mapping[str, Any], now: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The values of then of the settings that were not given alike then and now."""
    known = settings_of(_GROUPS)
    changed = [
        name for name in dict.fromkeys([*then, *now]) if name in known and then.get(name) != now.get(name)
    ]
    values = typed(_GROUPS, then, changed)
    if set(SETTING_NAMES.values()) & values.keys():
        # What a recipe leaves to the loss is a number in the record of a checkpoint.
        values.update(_loss_as_given(then))
    batch = typed(
        _GROUPS, then, ("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if batch["total_batch_size"] is not None:
        at_once = batch["per_device_train_batch_size"] * processes
        batch["gradient_accumulation_steps"] = batch["total_batch_size"] // at_once
    return plain({**values, **batch})


def _loss_as_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the loss by its name in recipes."""
    found = typed(_GROUPS, given, list(SETTING_NAMES.values()))
    fields_of = {name: found[setting] for name, setting in SETTING_NAMES.items()}
    config = MatrixLossConfig(**{**fields_of, "support": fields_of["support"] or None})
    return {SETTING_NAMES[name]: value for name, value in config.to_dict().items()}


def restart_table() -> str:
    """The table of `EFFECTS` as the documentation shows it: a row an effect."""
    rows = []
    for effect in Effect:
        names = [code(name) for name, found in EFFECTS.items() if found is effect]
        rows.append((effect.value, ", ".join(names)))
    return table(("changed on the way", "settings"), rows)
