"""Which of a source's splits is meant, and what to say where there is none of that name."""

from __future__ import annotations

from collections.abc import Sequence

from mce_llm.running.messages import nearest_hint
from mce_llm.vision.data.errors import NoSuchSplitError

USUAL: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "eval": ("val", "validation", "valid", "test", "testing", "eval"),
}
"""Purpose → the names that a split for it usually has, in any case, the first that is found being taken.

Validation comes before test: the test images of some data sets have no labels, and nothing should be chosen on them.
"""


def is_usual(name: str) -> bool:
    """Whether a split usually has this name, in any case (`Train`, `VAL`)."""
    return any(name.lower() in names for names in USUAL.values())


def choose_split(available: Sequence[str], wanted: str | None, purpose: str, dataset: str) -> str:
    """Choose a split.

    Args:
        available: What there is.
        wanted: The one that was asked for, or None for the first there is of the usual names.
        purpose: `train` or `eval`.
        dataset: What the data set is called in messages.

    Returns:
        The split's name.

    Raises:
        NoSuchSplitError: There is no such split; the message lists those there are.
    """
    setting = f"{purpose}_split"
    listing = f"it has {', '.join(available)}" if available else "it has none"
    if wanted is not None:
        if wanted not in available:
            hint = nearest_hint(wanted, available)
            raise NoSuchSplitError(f"{dataset} has no split {wanted!r}{hint}; {listing} (set {setting})")
        return wanted
    for name in USUAL[purpose]:
        if found := [there for there in available if there.lower() == name]:
            return name if name in found else found[0]
    raise NoSuchSplitError(
        f"{dataset} has no split called {' or '.join(USUAL[purpose])}; {listing}: set {setting} to one of them"
        + (
            ", eval_dataset to where the images for evaluation are, or eval_from_train to how many training images to hold out"
            if purpose == "eval"
            else ""
        )
    )
