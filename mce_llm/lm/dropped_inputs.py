"""Refuse inputs that would be passed over in silence: pictures, films and sound, and what changes the model's own loss.

Text models take any keyword, and read those they know; what was meant for another class would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mce_llm.lm.heads import UnsupportedModelError
from mce_llm.lm.instance_forward import signature_of

_NOT_TEXT = ("pixel_", "image_grid", "video_grid", "image_sizes", "input_features", "input_values", "audio_")


def refuse_dropped_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse inputs beside text that the model's forward does not name.

    Args:
        model: The model itself, without adapters around it.
        names: Of its inputs, or of the columns of its data.

    Raises:
        UnsupportedModelError: At least one of them would be dropped.
    """
    beside_text = [name for name in names if name.startswith(_NOT_TEXT)]
    if not beside_text:
        return
    known = signature_of(model).parameters
    if dropped := [name for name in beside_text if name not in known]:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no {', '.join(sorted(dropped))}, and would be trained on the text alone; load "
            "the model's …ForConditionalGeneration class (AutoModelForImageTextToText), or leave these inputs out"
        )


def take_loss_arguments(arguments: dict[str, Any]) -> None:
    """Take out of a forward's arguments what would change the model's own loss, where it says nothing else than ours does.

    Args:
        arguments: By name, beside labels; `ignore_index` and `logits_to_keep` are removed.

    Raises:
        ValueError: Another label than -100 is to be left out, or logits of some positions are to be kept.
    """
    if (ignored := arguments.pop("ignore_index", -100)) != -100:
        raise ValueError(
            f"ignore_index is {ignored}, and labels that are not trained are -100 in the matrix loss; write -100 there"
        )
    if (keep := arguments.pop("logits_to_keep", None)) is not None and not (
        isinstance(keep, int) and keep == 0
    ):
        raise ValueError(
            f"logits_to_keep is {keep} beside labels, and the loss is that of all positions; leave it out, and mask labels (-100)"
        )
