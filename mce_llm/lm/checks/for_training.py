"""What a trainer asks of its model before it trains, from what it is going to train on."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from mce_llm.lm.checks.model_check import UncheckedModelWarning, check_model
from mce_llm.lm.dropped_inputs import refuse_dropped_inputs
from mce_llm.lm.heads import causal_model


def check_for_training(model: nn.Module, args: Any, *datasets: Any) -> None:
    """Check a model, with packing where the data or the arguments ask for it.

    Args:
        model: The model.
        args: Training arguments; `model_check` false leaves the check out, with a warning.
        *datasets: What is trained on and evaluated; None for none.

    Raises:
        UnsupportedModelError: The losses or packing would be wrong for the model, or it would drop a part of the data.
    """
    inner = causal_model(model)
    for dataset in datasets:
        refuse_dropped_inputs(inner, _columns(dataset))
    packing = packs_examples(args) or any("position_ids" in _columns(dataset) for dataset in datasets)
    if getattr(args, "model_check", True):
        check_model(model, packing=packing)
        return
    what = " and that it keeps packed examples apart" if packing else ""
    warnings.warn(
        f"model_check is false: that the loss of {type(inner).__name__} is causal cross-entropy, that it "
        f"sees no later tokens{what} is taken on trust",
        UncheckedModelWarning,
        stacklevel=2,
    )


def packs_examples(args: Any) -> bool:
    """Whether arguments of TRL ask for rows of several examples that do not see each other."""
    packing = getattr(args, "packing", False) and getattr(args, "packing_strategy", "bfd") != "wrapped"
    return bool(packing or getattr(args, "padding_free", False))


def _columns(dataset: Any) -> set[str]:
    """The names of what the rows of a data set hold, as far as they are known without reading it."""
    if isinstance(dataset, dict):
        return set().union(*map(_columns, dataset.values()))
    if isinstance(dataset, list | tuple) and dataset and isinstance(dataset[0], dict):
        return set(dataset[0])
    names = getattr(dataset, "column_names", None)
    return set(names) if isinstance(names, list) else set()
