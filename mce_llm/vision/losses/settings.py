"""Checks of settings that several losses share: each returns its problems, so that all are reported at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mce_llm.running.messages import nearest_hint
from mce_llm.vision.losses.errors import LossSettingsError


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive(name: str, value: object, advice: str) -> list[str]:
    """A finite number > 0."""
    if _is_real(value) and value > 0:  # type: ignore[operator]
        return []
    return [f"{name} must be a finite number > 0, got {value!r}; {advice}"]


def not_negative(name: str, value: object, advice: str) -> list[str]:
    """A finite number >= 0."""
    if _is_real(value) and value >= 0:  # type: ignore[operator]
        return []
    return [f"{name} must be a finite number >= 0, got {value!r}; {advice}"]


def order_of_series(name: str, value: object) -> list[str]:
    """A whole number from 1 to 64; beyond, the powers of the last terms vanish in double precision."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 64:
        return []
    return [f"{name} must be a whole number from 1 to 64, got {value!r}; 4 is the usual choice"]


def choice(name: str, value: object, choices: Sequence[str]) -> list[str]:
    """One of a few words."""
    if value in choices:
        return []
    return [f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest_hint(str(value), choices)}"]


def boolean(name: str, value: object) -> list[str]:
    """True or False, and no word that stands for them."""
    return [] if isinstance(value, bool) else [f"{name} must be true or false, got {value!r}"]


def raise_problems(owner: str, problems: Iterable[str]) -> None:
    """Raise all problems in one error, if there are any.

    Args:
        owner: Whose settings they are.
        problems: What is wrong.

    Raises:
        LossSettingsError: There is a problem.
    """
    lines = list(problems)
    if len(lines) == 1:
        raise LossSettingsError(f"{owner}: {lines[0]}")
    if lines:
        raise LossSettingsError("\n  - ".join([f"{owner}: {len(lines)} settings are unusable:", *lines]))
