"""Refuse pictures, films and sound for a model that would pass over them in silence.

Text models take any keyword, and read those they know; what was meant for another class would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterable

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
