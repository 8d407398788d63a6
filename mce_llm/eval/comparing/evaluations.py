"""What arranging, pairing and checking need to know of a saved evaluation, whether of answers or of likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mce_llm.eval.items import Item


class SavedEvaluation(Protocol):
    """A finished evaluation that was read back: `SavedRun`, `SavedLikelihood`."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """`summary.json`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know of its files."""

    @property
    def name_parts(self) -> list[str]:
        """The parts of its folder's path that say which run it is."""

    @property
    def data_title(self) -> str:
        """The data set, as people write it."""

    @property
    def first_samples(self) -> Sequence[Item]:
        """A line a question, in their order, with `index`, `question` and `gold`."""

    @property
    def identity(self) -> dict[str, str]:
        """What its numbers depend on: `model`, and what runs that are compared must share."""

    @property
    def training_folder(self) -> Path | None:
        """Where the training left its record whose model was evaluated."""


EvaluationPair = tuple[SavedEvaluation, SavedEvaluation]
"""(A, B) of one training seed."""

_COMPARABLE = ("task", "prompt", "data", "decoding", "scoring", "dtype")


def comparable_keys(run: SavedEvaluation) -> list[str]:
    """What runs must share with this one for their difference to be one of the models: keys of its `identity`."""
    return [key for key in _COMPARABLE if key in run.identity]
