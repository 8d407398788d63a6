"""What a trainer asks of its model before it trains, from what it is going to train on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import DataCollatorWithFlattening

from mce_llm.lm.checks.model_check import UncheckedModelWarning, check_model
from mce_llm.lm.dropped_inputs import refuse_dropped_inputs
from mce_llm.lm.heads import causal_model

# What says where examples begin in a row, beside position_ids.
_BOUNDS = ("cu_seq_lens_q", "cu_seqlens", "seq_idx")


class PackedBatches:
    """Has a model checked for packing at the first batch of packed examples, where nothing has announced them before.

    A collator of one's own may lay examples end to end, and no data set and no argument shows it.
    """

    def __init__(self, announced: bool) -> None:
        self._checked = announced

    def look(self, model: nn.Module, args: Any, inputs: Mapping[str, Any]) -> None:
        """Look at a batch before its forward.

        Args:
            model: The model that it goes to.
            args: Training arguments.
            inputs: The batch.

        Raises:
            UnsupportedModelError: Its examples would see each other.
        """
        if not self._checked and _is_packed(inputs):
            self._checked = True
            check_for_training(model, args, packing=True)


def check_for_training(model: nn.Module, args: Any, *datasets: Any, packing: bool = False) -> None:
    """Check a model, with packing where the data or the arguments ask for it.

    Args:
        model: The model.
        args: Training arguments; `model_check` false leaves the check out, with a warning.
        *datasets: What is trained on and evaluated; None for none.
        packing: Rows hold several examples, whatever arguments and data say.

    Raises:
        UnsupportedModelError: The losses or packing would be wrong for the model, or it would drop a part of the data.
    """
    inner = causal_model(model)
    for dataset in datasets:
        refuse_dropped_inputs(inner, _columns(dataset))
    packing = packing or announces_packing(args, None, *datasets)
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


def announces_packing(args: Any, collator: Any, *datasets: Any) -> bool:
    """Whether it can be seen before training that rows hold several examples: by arguments, collator or columns."""
    return (
        packs_examples(args)
        or isinstance(collator, DataCollatorWithFlattening)
        or any("position_ids" in _columns(dataset) for dataset in datasets)
    )


def packs_examples(args: Any) -> bool:
    """Whether arguments of TRL ask for rows of several examples that do not see each other."""
    packing = getattr(args, "packing", False) and getattr(args, "packing_strategy", "bfd") != "wrapped"
    return bool(packing or getattr(args, "padding_free", False))


def _is_packed(inputs: Mapping[str, Any]) -> bool:
    if any(inputs.get(name) is not None for name in _BOUNDS):
        return True
    positions = inputs.get("position_ids")
    if not isinstance(positions, Tensor) or inputs.get("attention_mask") is not None:
        return False
    return bool((positions[..., 1:] == 0).any())


def _columns(dataset: Any) -> set[str]:
    """The names of what the rows of a data set hold, as far as they are known without reading it."""
    if isinstance(dataset, dict):
        return set().union(*map(_columns, dataset.values()))
    if isinstance(dataset, list | tuple) and dataset and isinstance(dataset[0], dict):
        return set(dataset[0])
    names = getattr(dataset, "column_names", None)
    return set(names) if isinstance(names, list) else set()
