"""The settings of the matrix loss, checked as a whole when they are made.

What the losses compute lives in `reference` and `linear_loss`; this file only says what was asked for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint, raise_all

Kind = Literal["token", "marginal", "expected"]
EmbeddingTable = Literal["output", "input"]

# The spacing of float32 numbers at 1: a smaller share of I/d is lost to rounding, and log Q with it.
SMALLEST_SHRINKAGE = 2.0**-23


class MatrixLossConfigError(MceLlmError, ValueError):
    """One or more settings of the matrix loss are unusable; the message lists all of them."""

    one_a_line = True


@dataclass(frozen=True)
class MatrixLossConfig:
    """Settings of L = L_CE + λ · MCE(P, Q), with MCE(P, Q) = tr(−P log Q + Q) in nats.

    Attributes:
        kind: Which density matrices are compared. `token`: one pair per position (additive over tokens, and
            therefore exact under gradient accumulation and data parallelism). `marginal`: the mean target and the
            mean predicted distribution of the micro-batch. `expected`: the covariances of the target embeddings and
            of the expected predicted embeddings over the micro-batch.
        weight: λ ≥ 0. With 0 training is plain cross-entropy.
        shrinkage: ε in [0, 1), the share of I/d mixed into Q (and into P for the batch kinds); it bounds the loss
            by log(d/ε) + 1. Values below 2⁻²³ act as 2⁻²³, because log Q has to stay finite.
        support: `token` only. k, the number of most probable tokens kept in Q; the mass of the others counts as
            isotropic background. None keeps the full vocabulary.
        order: `token` only. The number of Lanczos steps; the value grows towards the exact one with the order.
        embeddings: Which table gives the token geometry: the output head or the input embeddings.
        center: Subtract the mean row first. Trained embeddings share one large common direction.
        normalize: Scale every row to length one. When False all rows share one scale, the root mean square length.

    Raises:
        MatrixLossConfigError: If any setting is unusable; all the problems are listed at once.
    """

    kind: Kind = "token"
    weight: float = 1.0  # λ
    shrinkage: float = 0.05  # ε
    support: int | None = 64  # k
    order: int = 8  # m
    embeddings: EmbeddingTable = "output"
    center: bool = True
    normalize: bool = True

    def __post_init__(self) -> None:
        """Collect every problem before raising."""
        problems = [
            *_choice_problems("kind", self.kind, get_args(Kind)),
            *_choice_problems("embeddings", self.embeddings, get_args(EmbeddingTable)),
        ]
        if not _is_real(self.weight) or not math.isfinite(self.weight) or self.weight < 0:
            problems.append(
                f"weight must be a finite number ≥ 0, got {self.weight!r}; 0 trains with cross-entropy alone"
            )
        if not _is_real(self.shrinkage) or not 0 <= self.shrinkage < 1:
            problems.append(f"shrinkage must be in [0, 1), got {self.shrinkage!r}; 0.05 is the usual choice")
        if self.support is not None and not is_count(self.support, least=1):
            problems.append(
                f"support must be a positive integer, or None for the full vocabulary, got {self.support!r}; "
                "64 is the usual choice"
            )
        if not is_count(self.order, least=1):
            problems.append(f"order must be a positive integer, got {self.order!r}; 8 is the usual choice")
        for name in ("center", "normalize"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} must be true or false, got {getattr(self, name)!r}")
        raise_all(problems, MatrixLossConfigError)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> MatrixLossConfig:
        """Build from a mapping; an unknown key is an error that names the nearest setting.

        Raises:
            MatrixLossConfigError: For unknown keys, or for unusable values.
        """
        names = [field.name for field in fields(cls)]
        problems = []
        for key in settings:
            if key not in names:
                hint = nearest_hint(key, names) or f"; known are {', '.join(names)}"
                problems.append(f"unknown setting {key!r}{hint}")
        known = {key: value for key, value in settings.items() if key in names}
        try:
            config = cls(**known)
        except MatrixLossConfigError as error:
            problems.append(str(error))
        raise_all(problems, MatrixLossConfigError)
        return config

    @property
    def epsilon(self) -> float:
        """ε as the losses use it: the shrinkage, but never below `SMALLEST_SHRINKAGE`."""
        return max(float(self.shrinkage), SMALLEST_SHRINKAGE)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain, JSON-ready mapping."""
        return asdict(self)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, least: int) -> bool:
    """Whether a setting is an integer (not a bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _choice_problems(name: str, value: object, choices: tuple[str, ...]) -> list[str]:
    if value in choices:
        return []
    return [f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest_hint(str(value), choices)}"]
