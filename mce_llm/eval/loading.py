"""Loading a model with its tokenizer for evaluation, and refusing what would give meaningless answers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from mce_llm.data import load_tokenizer
from mce_llm.eval.errors import EvaluationError
from mce_llm.running.messages import cause, model_path_problem
from mce_llm.running.model_classes import auto_class

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model_and_tokenizer(
    name: str, dtype: str = "auto", device: torch.device | str = "cpu"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model, or a PEFT adapter on its base model, ready to generate.

    Args:
        name: A directory or a hub id. A directory with an adapter_config.json is an adapter.
        dtype: The precision of the weights, one of `DTYPES`; `auto` is the one they were saved in.
        device: Where to put the model.

    Returns:
        The model in evaluation mode, and its tokenizer (an adapter's own where it has one).

    Raises:
        EvaluationError: If there is no such model, its base model is missing, files are damaged, or weights are
            missing from the checkpoint.
        DataError: If there is no usable tokenizer.
    """
    adapter = adapter_config(name)
    if adapter is None:
        check_path(name)
        tokenizer = load_tokenizer(name)
        return _load_causal(name, dtype).to(device).eval(), tokenizer
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise EvaluationError(f"the adapter {name} does not name its base model (base_model_name_or_path)")
    try:
        check_path(base)
        model = _load_causal(base, dtype)
    except EvaluationError as error:
        raise EvaluationError(
            f"the adapter {name} needs its base model {base}, which cannot be loaded: {error}; put the base model "
            f"there, or correct base_model_name_or_path in {Path(name, 'adapter_config.json')}"
        ) from error
    tokenizer = load_tokenizer(name if Path(name, "tokenizer_config.json").is_file() else base)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(
            len(tokenizer), mean_resizing=False
        )  # as training did before the adapter
    return _load_adapter(model, name).to(device).eval(), tokenizer


def adapter_config(name: str) -> dict[str, Any] | None:
    """Read the configuration of an adapter.

    Args:
        name: A directory or a hub id.

    Returns:
        The configuration, or None for anything but a directory with an adapter.

    Raises:
        EvaluationError: If it cannot be read.
    """
    path = Path(name, "adapter_config.json")
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(config, dict):
        raise EvaluationError(f"{path} is not the configuration of an adapter: expected a JSON object")
    return config


def check_path(name: str) -> None:
    """Refuse a name that looks like a path and is no model.

    Args:
        name: A directory or a hub id.

    Raises:
        EvaluationError: If it is no model.
    """
    if problem := model_path_problem(name):
        raise EvaluationError(problem)


def _load_causal(name: str, dtype: str) -> Any:
    try:
        model_class = auto_class(AutoConfig.from_pretrained(name))
        loaded: Any = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except Exception as error:  # hub, safetensors, configuration and pickle errors have no common type
        raise EvaluationError(f"the model {name} cannot be loaded: {cause(error)}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise EvaluationError(
            f"the checkpoint {name} lacks {len(missing)} weights of a {type(model).__name__} (first: {missing[0]}); "
            "they would be random numbers, and so would the answers"
        )
    return model


def _load_adapter(model: Any, name: str) -> Any:
    from peft import PeftModel  # heavy, and needed for adapters alone

    try:
        with warnings.catch_warnings():
            # peft only warns where weights are missing, and goes on with random ones.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return PeftModel.from_pretrained(model, name)
    except (
        Exception
    ) as error:  # missing files, shapes that do not fit and unknown methods have no common type
        raise EvaluationError(
            f"the adapter {name} cannot be put on its base model: {cause(error)}"
        ) from error
