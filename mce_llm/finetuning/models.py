"""The tokenizer and the model that a recipe trains: loaded, perhaps quantised, or made from scratch.

Every problem is raised as a `ModelSourceError` that says what to change. Adapters are put on in `adapters`, training
itself is in the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed

from mce_llm.data import load_tokenizer
from mce_llm.finetuning.chat_templates import set_chat_template
from mce_llm.finetuning.quantization import quantized_loading
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.running.hub import at_revision, revision_option
from mce_llm.running.messages import cause, counted, loading_problem, model_path_problem, nearest_hint
from mce_llm.running.model_classes import auto_class, beside_text, built_in_class
from mce_llm.running.processes import say
from mce_llm.running.settings import names_of
from mce_llm.running.vocabulary import embedding_rows, with_rows_for

# By which FSDP has every process but the first load no weights.
_SPARING = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def whole_size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has cut into shards."""
    return getattr(parameter, "ds_numel", parameter.numel())


def tokenizer_of(settings: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer, named by itself or the model's own, with the chat template that the settings ask for.

    Raises:
        ModelSourceError: The model's directory is none.
        DataError: There is no usable tokenizer.
        ConfigurationError: There is no such chat template.
    """
    revision = settings.revision_of_tokenizer()
    source = str(settings.tokenizer_name_or_path or settings.model_name_or_path)
    # A directory with a tokenizer alone is fine where it is asked for as one.
    alone = settings.tokenizer_name_or_path is not None and Path(source).expanduser().is_dir()
    if not alone and (problem := model_path_problem(source, revision)):
        raise ModelSourceError(problem)
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code, revision=revision)
    if settings.chat_template is not None:
        set_chat_template(tokenizer, settings.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        say(f"tokenizer: no padding token, padding with {tokenizer.eos_token!r} (labels do not depend on it)")
    return tokenizer


def load_model(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model, pretrained or from scratch.

    Raises:
        ModelSourceError: It cannot be found or made, or its weights are incomplete or not finite.
    """
    if settings.model_config is not None:
        return new_model(settings, tokenizer)
    source, revision = str(settings.model_name_or_path), settings.model_revision
    if problem := model_path_problem(source, revision):
        raise ModelSourceError(problem)
    quantized = quantized_loading(settings, unquantized_layers(settings, tokenizer))
    try:
        config = _config_of(settings)
        with whole_model() if settings.resize_embeddings else nullcontext():
            loaded: Any = auto_class(config).from_pretrained(
                source,
                dtype=settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
                attn_implementation=settings.attn_implementation,
                trust_remote_code=settings.trust_remote_code,
                output_loading_info=True,
                **revision_option(revision),
                **quantized,
            )
    except Exception as error:  # hub, safetensors and configuration errors have no common type
        raise ModelSourceError(
            f"cannot load a causal language model from {source!r}{at_revision(revision)}: {loading_problem(error)}"
        ) from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ModelSourceError(
            f"the checkpoint {source!r} lacks {counted(len(missing), 'weight')} of a {type(model).__name__} (first: {missing[0]}), "
            "which would be random numbers"
        )
    # What an engine keeps elsewhere (ZeRO-3 in shards, FSDP2 on the first process alone) is not looked at here.
    at_hand = [(name, p) for name, p in model.named_parameters() if p.numel() and not p.is_meta]
    broken = [name for name, p in at_hand if not torch.isfinite(p).all()]
    if broken:
        raise ModelSourceError(
            f"{counted(len(broken), 'weight')} of {source!r} {'is' if len(broken) == 1 else 'are'} not finite (first: {broken[0]}); the checkpoint is damaged "
            "or its training diverged"
        )
    if settings.resize_embeddings:
        with whole_model():
            added = with_rows_for(model, tokenizer, draw=True)
        say(_resized_text(added, embedding_rows(model)))
    if frozen := freeze_beside_text(model):
        say(
            f"{type(model).__name__} is trained on text alone: {frozen:,} parameters beside its language model are frozen"
        )
    return model


def _resized_text(added: int, rows: int) -> str:
    if not added:
        return f"resize_embeddings: nothing to do, the model has {rows:,} embeddings, one for every id of the tokenizer"
    return (
        f"resize_embeddings: {counted(added, 'row')} added to embeddings and head, {rows:,} in all; the new ones begin at the mean of "
        "the others"
    )


def _config_of(settings: ModelArguments) -> PreTrainedConfig:
    """The configuration of a pretrained model."""
    return AutoConfig.from_pretrained(
        str(settings.model_name_or_path),
        trust_remote_code=settings.trust_remote_code,
        **revision_option(settings.model_revision),
    )


def freeze_beside_text(model: PreTrainedModel) -> int:
    """Freeze what a multimodal model has for pictures and sound, and return its size: text gives it no gradient."""
    parameters = [p for _, p in beside_text(model)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    return sum(map(whole_size, parameters))


def without_weights(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The model's layers on the meta device: in no time and memory, what can be said before weights are loaded.

    Returns:
        The model, or None where its code comes with the checkpoint.

    Raises:
        ModelSourceError: There is no such model.
    """
    source = settings.model_name_or_path or "model_config"
    revision = settings.model_revision
    if settings.model_config is None and (problem := model_path_problem(source, revision)):
        raise ModelSourceError(problem)
    try:
        config = _config_of(settings) if settings.model_config is None else new_config(settings, tokenizer)
        # The class itself, not from_config, which shards the weights where ZeRO-3 is in use.
        if (known := built_in_class(config)) is None:
            return None
        model_class, config = known
        with torch.device("meta"):
            model = cast(PreTrainedModel, model_class(config))
        if settings.resize_embeddings:
            with_rows_for(model, tokenizer, draw=False)
        return model
    except ModelSourceError:
        raise
    except Exception as error:  # hub, configuration and model errors have no common type
        raise ModelSourceError(
            f"cannot load a causal language model from {source!r}{at_revision(revision)}: {loading_problem(error)}"
        ) from error


def unquantized_layers(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """The layers that quantisation leaves alone: the output head, and what is trained whole; None if unknown."""
    if settings.quantization is None or (model := without_weights(settings, tokenizer)) is None:
        return None
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head] + names_of(
        settings.lora_modules_to_save
    )


def new_model(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights, as `model_config` says, the same for a seed under every engine.

    Every process makes the whole model in its memory, also under ZeRO-3, which cuts it into shards when training starts:
    a model that is made in shards draws other random numbers.

    Raises:
        ModelSourceError: There is no such model.
    """
    config = new_config(settings, tokenizer)
    if "vocab_size" not in settings.config_settings:
        say(f"model_config: vocab_size {config.vocab_size}, from the tokenizer")
    try:
        with whole_model():
            model = AutoModelForCausalLM.from_config(config, attn_implementation=settings.attn_implementation)
    except Exception as error:  # each library that has a say checks the settings in its own way
        raise ModelSourceError(f"cannot make a model from model_config: {cause(error)}") from error
    return model.to(torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype))


@contextmanager
def whole_model() -> Iterator[None]:
    """Have transformers make models whole in every process, as if neither ZeRO-3 nor FSDP's sparing loading were in use."""
    held, sparing = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(_SPARING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = held
        if sparing is not None:
            os.environ[_SPARING] = sparing


def new_config(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration that `model_config` says, completed from the tokenizer.

    Raises:
        ModelSourceError: There is no such model.
    """
    shape = dict(settings.config_settings)
    if "vocab_size" not in shape:
        shape["vocab_size"] = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        shape.setdefault(name, getattr(tokenizer, name))
    model_type = shape.pop("model_type")
    try:
        usual: Any = AutoConfig.for_model(model_type)
        config = AutoConfig.for_model(model_type, **shape)
    except Exception as error:  # each library that has a say checks the settings in its own way
        raise ModelSourceError(f"cannot make a model from model_config: {cause(error)}") from error
    # transformers keeps what it does not know, and nothing ever reads it.
    given = settings.config_settings
    unknown = [name for name in given if hasattr(config, name) and not hasattr(usual, name)]
    if unknown:
        hint = nearest_hint(unknown[0], usual.to_dict())
        raise ModelSourceError(
            f"cannot make a model from model_config: {model_type} has no setting {', '.join(unknown)}{hint}"
        )
    return config
