"""The mixed precision that a launch asks for, beside what a program's own settings say.

`accelerate launch --mixed_precision`, or the file that `accelerate config` wrote once, hands it over in an environment
variable. transformers trains in it where the training arguments name none, and the arguments go on saying that there
is none; other programs never look at it.
"""

from __future__ import annotations

import os
from typing import Any

_VARIABLE = "ACCELERATE_MIXED_PRECISION"


def launched_precision() -> str:
    """What the launch asks for: `no`, `bf16`, `fp16` or `fp8`."""
    return os.environ.get(_VARIABLE, "").lower() or "no"


def note_launched_precision(arguments: Any) -> None:
    """Have training arguments that name no precision say the one that they will be trained in.

    Args:
        arguments: Of transformers, whether already initialised or not; `bf16` or `fp16` is set.
    """
    precision = getattr(arguments, "mixed_precision", None) or launched_precision()
    if precision in ("bf16", "fp16") and not (arguments.bf16 or arguments.fp16):
        setattr(arguments, precision, True)


def leave_out_launched_precision() -> None:
    """Have this process go by its own settings: nothing looks at what the launch asks for any more."""
    os.environ[_VARIABLE] = "no"


def unused_precision_text(used: str, launched: str | None = None) -> str | None:
    """That a launch asks for another precision than is used; None where it does not.

    Args:
        used: What is used, and by which setting, in words.
        launched: What the launch asks for; by default as it is known now.
    """
    launched = launched_precision() if launched is None else launched
    if launched == "no":
        return None
    return f"the launch asks for mixed_precision {launched} (--mixed_precision, or accelerate config), which is not used: {used}"
