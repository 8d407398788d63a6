"""From a parsed recipe to the shapes of `mce_llm.planning`: the model on the meta device, the settings as numbers.

No weights are loaded: the configuration suffices, from a directory, the hub's cache or the recipe itself.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from mce_llm.data.errors import DataError
from mce_llm.finetuning.adapters import with_lora
from mce_llm.finetuning.configuration import Recipe, parse_recipe
from mce_llm.finetuning.models import tokenizer_of, without_weights
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.lm.loss_chunks import default_chunk_size
from mce_llm.lm.training.accumulation import reduces_each_batch
from mce_llm.lm.training.checkpointing import checkpointing_kwargs, is_reentrant
from mce_llm.planning import LossShape, ModelShape, TrainingShape, shape_of
from mce_llm.planning.shapes import Attention
from mce_llm.running.hub import revision_option
from mce_llm.running.messages import cause
from mce_llm.running.model_classes import auto_class
from mce_llm.running.settings import ConfigurationError


def read_recipe(config: str, overrides: list[str]) -> Recipe:
    """Parse a recipe on any machine, be it one without the GPUs that the recipe is for.

    Args:
        config: The YAML file.
        overrides: Settings as on the recipe's own command line.

    Raises:
        ConfigurationError: As `parse_recipe` does.
    """
    words = ["--config", config, *overrides]
    # Without a GPU, bf16 would be refused here, and it is the machine of the run that counts.
    elsewhere = not torch.accelerator.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # names that transformers will change; training says it
        try:
            return parse_recipe(words)
        except ConfigurationError as error:
            if not elsewhere or "use_cpu" not in str(error):
                raise
        recipe = parse_recipe([*words, "--use_cpu", "true"])
    del recipe.given["use_cpu"]
    return recipe


def model_without_weights(settings: ModelArguments) -> PreTrainedModel:
    """The recipe's model on the meta device, before adapters.

    Raises:
        ModelSourceError: There is no such model, or its size follows from a tokenizer that cannot be loaded.
        DataError: As the former.
    """
    tokenizer: Any = None
    if settings.model_config is not None or settings.resize_embeddings:
        try:
            tokenizer = tokenizer_of(settings)
        except (DataError, ModelSourceError):
            if settings.resize_embeddings or "vocab_size" not in settings.config_settings:
                raise
            return _from_config(settings, AutoConfig.for_model(**settings.config_settings))
    if (model := without_weights(settings, tokenizer)) is not None:
        return model
    config = AutoConfig.from_pretrained(
        str(settings.model_name_or_path),
        trust_remote_code=settings.trust_remote_code,
        **revision_option(settings.model_revision),
    )
    return _from_config(settings, config)


def _from_config(settings: ModelArguments, config: Any) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # as many types as there are architectures
        raise ModelSourceError(f"cannot make a causal language model: {cause(error)}") from error


def recipe_shapes(recipe: Recipe, memory: float | None = None) -> tuple[ModelShape, TrainingShape]:
    """The model, adapters included, and one optimizer step.

    Args:
        recipe: The recipe.
        memory: Bytes of each GPU; those of a large one where it is not known.

    Raises:
        ModelSourceError: There is no such model, or adapters that do not fit it.
        PlanningError: A model without layers or head that are known as such.
        UnsupportedModelError: No causal language model.
    """
    settings, training = recipe.model, recipe.training
    base = model_without_weights(settings)
    attention = attention_of(settings.attn_implementation or base.config._attn_implementation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for old names
        model: Any = with_lora(base, settings) if settings.lora_r else base
    shape = shape_of(model, settings.model_name_or_path or f"{base.config.model_type} from scratch")
    rows, length = training.per_device_train_batch_size, recipe.data.max_length
    loss = training.matrix_loss
    table = torch.empty(shape.vocabulary, shape.hidden_size, device="meta")
    return shape, TrainingShape(
        micro_batch=rows,
        length=length,
        dtype=shape.stored_dtype if settings.dtype == "auto" else settings.dtype,
        mixed="bfloat16" if training.bf16 else "float16" if training.fp16 else None,
        optim=str(getattr(training.optim, "value", training.optim)),
        momentum=_momentum(training.optim_args),
        checkpointing=bool(training.gradient_checkpointing),
        attention=attention,
        loss=LossShape(
            kind=loss.kind,
            weight=loss.weight,
            support=loss.support,
            order=loss.order,
            chunk=default_chunk_size(table, loss, rows * length, memory=memory),
            loss=loss.objective,
        ),
        quantization=settings.quantization,
        adapter_rank=settings.lora_r,
        adapter_dropout=settings.lora_dropout > 0,
        padded=not recipe.data.packing,
        accumulation=training.gradient_accumulation_steps,
        reduces_each_batch=reduces_each_batch(training),
        reentrant=is_reentrant(training, eight_bit=settings.quantization == "8bit"),
        checkpointed_every=int(checkpointing_kwargs(training).get("every_n_layers", 1)),
    )


def attention_of(implementation: str | None) -> Attention:
    """What an `attn_implementation` keeps for the backward pass: maps (eager), or not."""
    name = (implementation or "sdpa").lower()
    if "flash" in name:
        return "flash"
    return "eager" if name in ("eager", "") else "sdpa"


def _momentum(arguments: str | None) -> float:
    """`momentum` in Hugging Face's `optim_args`, a list such as "momentum=0.9, nesterov=true"."""
    for part in (arguments or "").split(","):
        name, _, value = part.partition("=")
        if name.strip() == "momentum":
            return float(value)
    return 0.0
