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
from mce_llm.running.hub import at_revision, revision_option
from mce_llm.running.messages import cause, counted, model_path_problem
from mce_llm.running.model_classes import auto_class
from mce_llm.running.vocabulary import with_rows_for

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model_and_tokenizer(
    name: str, dtype: str = "auto", device: torch.device | str = "cpu", *, revision: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model, or a PEFT adapter on its base model, ready to generate.

    Args:
        name: A directory or a hub id. A directory with an adapter_config.json is an adapter.
        dtype: The precision of the weights, one of `DTYPES`; `auto` is the one they were saved in.
        device: Where to put the model.
        revision: A branch, tag or commit of a model from the hub; that of an adapter's base stands in the adapter.

    Returns:
        The model in evaluation mode, and its tokenizer (an adapter's own where it has one).

    Raises:
        EvaluationError: If there is no such model, its base model is missing, files are damaged, or weights are
            missing from the checkpoint.
        DataError: If there is no usable tokenizer.
    """
    adapter = adapter_config(name)
    if adapter is None:
        check_path(name, revision)
        tokenizer = load_tokenizer(name, revision=revision)
        return _load_causal(name, dtype, revision).to(device).eval(), tokenizer
    refuse_revision(name, revision)
    base, revision = adapter_base(name, adapter)
    try:
        model = _load_causal(base, dtype, revision)
    except EvaluationError as error:
        raise EvaluationError(_base_problem(name, base, error)) from error
    own = Path(name, "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(name) if own else load_tokenizer(base, revision=revision)
    with_rows_for(model, tokenizer, draw=False)  # as training did, whose values come with the adapter
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
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(config, dict):
        raise EvaluationError(f"{path} is not the configuration of an adapter: expected a JSON object")
    return config


def adapter_base(name: str, adapter: dict[str, Any]) -> tuple[str, str | None]:
    """Find the base model of an adapter.

    Args:
        name: The adapter's directory.
        adapter: Its configuration.

    Returns:
        The base model, and its revision where the adapter names one.

    Raises:
        EvaluationError: If it names none, or what it names is no model.
    """
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not base:
        raise EvaluationError(f"the adapter {name} does not name its base model (base_model_name_or_path)")
    try:
        check_path(base, revision)
    except EvaluationError as error:
        raise EvaluationError(_base_problem(name, base, error)) from error
    return base, revision


def _base_problem(name: str, base: str, error: EvaluationError) -> str:
    return (
        f"the adapter {name} needs its base model {base}, which cannot be loaded: {error}; put the base model there, or "
        f"correct base_model_name_or_path in {Path(name, 'adapter_config.json')}"
    )


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of an adapter, which is a directory.

    Args:
        name: The adapter.
        revision: What was asked for.

    Raises:
        EvaluationError: If anything was.
    """
    if revision is not None:
        raise EvaluationError(
            f"revision {revision!r} for the adapter {name}: that of its base model stands in its adapter_config.json, under "
            "revision; leave --revision out"
        )


def check_path(name: str, revision: str | None = None) -> None:
    """Refuse a name that looks like a path and is no model.

    Args:
        name: A directory or a hub id.
        revision: A branch, tag or commit of a hub id.

    Raises:
        EvaluationError: If it is no model.
    """
    if problem := model_path_problem(name, revision):
        raise EvaluationError(problem)


def load_outline(name: str, dtype: str = "auto") -> Any:
    """Load a causal language model without its weights' values, in a second, to see whether the checkpoint is whole.

    Args:
        name: A directory.
        dtype: The precision of the weights, one of `DTYPES`.

    Returns:
        The model on torch's `meta` device: configuration, shapes and dtypes are there.

    Raises:
        EvaluationError: As for `load_model_and_tokenizer`.
    """
    return _load_causal(name, dtype, None, device_map={"": "meta"})


def _load_causal(name: str, dtype: str, revision: str | None, **placed: Any) -> Any:
    option = revision_option(revision)
    try:
        model_class = auto_class(AutoConfig.from_pretrained(name, **option))
        loaded: Any = model_class.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **option, **placed
        )
    except Exception as error:  # hub, safetensors, configuration and pickle errors have no common type
        raise EvaluationError(
            f"the model {name}{at_revision(revision)} cannot be loaded: {cause(error)}"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise EvaluationError(
            f"the checkpoint {name} lacks {counted(len(missing), 'weight')} of a {type(model).__name__} (first: {missing[0]}); "
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
