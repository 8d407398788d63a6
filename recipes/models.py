"""The tokenizer and the model that a recipe trains: loaded, made from scratch, and with adapters.

Every problem is raised as a `ModelSourceError` that says what to change. Training itself is in the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.data import load_tokenizer
from mce_llm.messages import cause, model_path_problem, nearest_hint
from mce_llm.processes import say
from mce_llm.recipes.settings import ModelArguments

if TYPE_CHECKING:
    from peft import PeftModel  # heavy, and needed for adapters alone


class ModelSourceError(RuntimeError):
    """What should be the model cannot be used; the message says why and what to do."""


def tokenizer_of(settings: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer, named by itself or the model's own.

    Raises:
        ModelSourceError: The model's directory is none.
        DataError: There is no usable tokenizer.
    """
    source = str(settings.tokenizer_name_or_path or settings.model_name_or_path)
    # A directory with a tokenizer alone is fine where it is asked for as one.
    alone = settings.tokenizer_name_or_path is not None and Path(source).expanduser().is_dir()
    if not alone and (problem := model_path_problem(source)):
        raise ModelSourceError(problem)
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
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
    source = str(settings.model_name_or_path)
    if problem := model_path_problem(source):
        raise ModelSourceError(problem)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # hub, safetensors and configuration errors have no common type
        raise ModelSourceError(
            f"cannot load a causal language model from {source!r}: {cause(error)}"
        ) from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ModelSourceError(
            f"the checkpoint {source!r} lacks {len(missing)} weights of a {type(model).__name__} (first: {missing[0]}); "
            "they would be random numbers"
        )
    broken = [name for name, p in model.named_parameters() if p.numel() and not torch.isfinite(p).all()]
    if broken:
        raise ModelSourceError(
            f"{len(broken)} weights of {source!r} are not finite (first: {broken[0]}); the checkpoint is damaged "
            "or its training diverged"
        )
    return model


def new_model(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights, as `model_config` says.

    Raises:
        ModelSourceError: There is no such model.
    """
    shape = dict(settings.config_settings)
    if "vocab_size" not in shape:
        shape["vocab_size"] = len(tokenizer)
        say(f"model_config: vocab_size {len(tokenizer)}, from the tokenizer")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        shape.setdefault(name, getattr(tokenizer, name))
    model_type = shape.pop("model_type")
    try:
        usual: Any = AutoConfig.for_model(model_type)
        config = AutoConfig.for_model(model_type, **shape)
        # transformers keeps what it does not know, and nothing ever reads it.
        given = settings.config_settings
        unknown = [name for name in given if hasattr(config, name) and not hasattr(usual, name)]
        if unknown:
            hint = nearest_hint(unknown[0], usual.to_dict())
            raise ValueError(f"{model_type} has no setting {', '.join(unknown)}{hint}")
        model = AutoModelForCausalLM.from_config(config, attn_implementation=settings.attn_implementation)
    except Exception as error:  # each library that has a say checks the settings in its own way
        raise ModelSourceError(f"cannot make a model from model_config: {cause(error)}") from error
    return model.to(torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype))


def with_lora(model: PreTrainedModel, settings: ModelArguments) -> PeftModel:
    """The model with trainable LoRA adapters on frozen weights.

    Raises:
        ModelSourceError: The target modules do not exist.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names = settings.lora_target_modules
    targets = names if names == "all-linear" else [name.strip() for name in names.split(",")]
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=settings.lora_r,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules=targets,
            ),
        )
    except ValueError as error:
        raise ModelSourceError(
            f"lora_target_modules {settings.lora_target_modules!r}: {cause(error)}"
        ) from error
