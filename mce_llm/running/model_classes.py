"""Which Auto class of transformers loads a model for text, and which parts of it text does not reach."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)


def auto_class(config: PreTrainedConfig) -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText for a multimodal model that only the latter knows.

    Args:
        config: The model's configuration.
    """
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if multimodal and not (known or remote) else AutoModelForCausalLM


def built_in_class(config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig] | None:
    """The class that `auto_class` makes, and the configuration that it takes: of text alone for some multimodal models.

    Args:
        config: The model's configuration.

    Returns:
        None where transformers has no such class itself.
    """
    known = auto_class(config)._model_mapping
    model_class = known.get(type(config), None)
    if model_class is None:
        return None
    text = config.sub_configs.get("text_config")
    return (
        model_class,
        config.get_text_config() if text is not None and model_class.config_class is text else config,
    )


def beside_text(model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a multimodal model that have no part in reading and writing text; none for a text model.

    Args:
        model: The model.
    """
    if model.config.get_text_config(decoder=True) is model.config:
        return []
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    text = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return [(name, p) for name, p in model.named_parameters() if id(p) not in text]


def text_prefix(model: PreTrainedModel) -> str | None:
    """The name of the module of a multimodal model that holds the layers for text; None for a text model.

    Args:
        model: The model.
    """
    if not beside_text(model):
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), None)
