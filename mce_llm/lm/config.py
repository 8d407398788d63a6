"""The settings of the loss, checked as a whole when they are made.

What the losses compute lives in `reference` and `linear_loss`; this file only says what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint, raise_all

Loss = Literal["ce", "label_smoothing", "emo", "mce"]
Kind = Literal["token", "marginal", "expected"]
EmbeddingTable = Literal["output", "input"]

# The spacing of float32 numbers at 1: a smaller share of I/d is lost to rounding, and log Q with it.
SMALLEST_SHRINKAGE = 2.0**-23

# Setting → the loss that it belongs to, and its value there where none is given.
OWN_SETTINGS: dict[str, tuple[Loss, Any]] = {
    "weight": ("mce", 1.0),
    "smoothing": ("label_smoothing", 0.1),
    "emo_weight": ("emo", 0.5),
    "emo_max_ratio": ("emo", 3.0),
    "emo_center": ("emo", False),
}


class MatrixLossConfigError(MceLlmError, ValueError):
    """One or more settings of the matrix loss are unusable; the message lists all of them."""

    one_a_line = True


@dataclass(frozen=True)
class MatrixLossConfig:
    """Settings of the loss; by default L = L_CE + λ · MCE(P, Q), with MCE(P, Q) = tr(−P log Q + Q) in nats.

    The other losses are there to compare it with. Whichever is trained, `kind` and what follows it say how MCE is
    measured. A setting that belongs to another loss than `loss` is refused, since it would do nothing.

    For each position, with the target y and the predicted distribution q:

    - `ce`: L_CE = −log q_y.
    - `label_smoothing`: (1−s) · L_CE − s/n · Σ_v log q_v, over the n rows of the head that are tokens.
    - `emo`: (1−w) · L_CE + w · r · D, with D = 1 − ⟨ê_y, Σ_v q_v ê_v⟩ and r = min(L_CE/D, c), a constant for the gradient.
    - `mce`: L_CE + λ · MCE.

    Attributes:
        kind: Which density matrices are compared. `token`: one pair per position (additive over tokens, and
            therefore exact under gradient accumulation and data parallelism). `marginal`: the mean target and the
            mean predicted distribution of the micro-batch. `expected`: the covariances of the target embeddings and
            of the expected predicted embeddings over the micro-batch.
        weight: λ ≥ 0; 1 by default. With 0 training is plain cross-entropy; that of every other loss is 0.
        shrinkage: ε in [0, 1), the share of I/d mixed into Q (and into P for the batch kinds); it bounds the loss
            by log(d/ε) + 1. Values below 2⁻²³ act as 2⁻²³, because log Q has to stay finite.
        support: `token` only. k, the number of most probable tokens kept in Q; the mass of the others counts as
            isotropic background. None keeps the full vocabulary.
        order: `token` only. The number of Lanczos steps; the value grows towards the exact one with the order.
        embeddings: Which table gives the token geometry, of MCE and of EMO: the output head or the input embeddings.
        center: Subtract the mean row first. Trained embeddings share one large common direction.
        normalize: Scale every row to length one. When False all rows share one scale, the root mean square length.
        loss: What is trained: `ce`, `label_smoothing`, `emo` or `mce`.
        smoothing: s in (0, 1) of `label_smoothing`; 0.1 by default (Szegedy et al. 2016, as in PyTorch).
        emo_weight: w in (0, 1] of `emo`; 0.5 by default, as published (Ren et al. 2024). With 0 it would be `ce`.
        emo_max_ratio: c of `emo`, the largest factor before D; 3 by default, as in the package EMOLoss 0.0.3. 0 for
            none, as in the paper: the value of the loss is then that of L_CE, and its gradient is not.
        emo_center: Subtract the mean row in `emo` too; False by default, as published.

    Raises:
        MatrixLossConfigError: If any setting is unusable; all the problems are listed at once.
    """

    kind: Kind = "token"
    weight: float = cast(float, None)  # λ
    shrinkage: float = 0.05  # ε
    support: int | None = 64  # k
    order: int = 8  # m
    embeddings: EmbeddingTable = "output"
    center: bool = True
    normalize: bool = True
    loss: Loss = "mce"
    smoothing: float | None = None  # s
    emo_weight: float | None = None  # w
    emo_max_ratio: float | None = None  # c
    emo_center: bool | None = None

    def __post_init__(self) -> None:
        """Collect every problem before raising."""
        problems = [
            *_choice_problems("kind", self.kind, get_args(Kind)),
            *_choice_problems("embeddings", self.embeddings, get_args(EmbeddingTable)),
        ]
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
        own = {name: getattr(self, name) for name in OWN_SETTINGS}
        raise_all([*problems, *own_problems(self.loss, own)], MatrixLossConfigError)
        for name, (loss, default) in OWN_SETTINGS.items():
            if own[name] is None and loss == self.loss:
                object.__setattr__(self, name, default)
        if self.weight is None:
            object.__setattr__(self, "weight", 0.0)

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
    def objective(self) -> Loss:
        """The loss that is really trained: `mce` with weight 0 is `ce`."""
        return "ce" if self.loss == "mce" and self.weight == 0 else self.loss

    @property
    def shares(self) -> tuple[float, dict[str, float]]:
        """(a, {name: b}) of the loss a · CE + b · T, T under the name that it is logged by."""
        if self.objective == "label_smoothing":
            smoothing = cast(float, self.smoothing)
            return 1 - smoothing, {"smoothing_loss": smoothing}
        if self.objective == "emo":
            weight = cast(float, self.emo_weight)
            return 1 - weight, {"emo_loss": weight}
        return 1.0, {"mce_loss": self.weight} if self.weight else {}

    @property
    def epsilon(self) -> float:
        """ε as the losses use it: the shrinkage, but never below `SMALLEST_SHRINKAGE`."""
        return max(float(self.shrinkage), SMALLEST_SHRINKAGE)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain, JSON-ready mapping."""
        return asdict(self)


# Field of `MatrixLossConfig` → name of the setting in training arguments and recipes.
SETTING_NAMES = {
    name: name if name == "loss" or OWN_SETTINGS.get(name, ("mce",))[0] != "mce" else f"matrix_{name}"
    for name in (field.name for field in fields(MatrixLossConfig))
}


def own_problems(loss: object, own: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with the choice of the loss, and with the settings that belong to one loss alone.

    Args:
        loss: The loss.
        own: Settings of `OWN_SETTINGS` by name; None for one that is not given.
        names: How messages call them, where that differs.

    Returns:
        One text a problem, with what to do.
    """
    if problems := _choice_problems("loss", loss, get_args(Loss)):
        return problems
    names = names or {}
    for name, (owner, _) in OWN_SETTINGS.items():
        value, called = own.get(name), names.get(name, name)
        if value is None:
            continue
        if owner == loss:
            problems += [f"{called} must be {rule}" for rule in _own_rules(name, value)]
        elif not (name == "weight" and _is_real(value) and value == 0):
            problems.append(
                f"{called} belongs to the loss {owner}, and with loss {loss} it would do nothing: leave {called} out, or set "
                f"loss to {owner}"
            )
    return problems


def _own_rules(name: str, value: Any) -> list[str]:
    """The rule that a setting of one loss breaks, if it does."""
    real = _is_real(value) and math.isfinite(value)
    allowed, rule = {
        "weight": (real and value >= 0, "a finite number ≥ 0, got {}; 0 trains with cross-entropy alone"),
        "smoothing": (
            real and 0 < value < 1,
            "between 0 and 1, both excluded, got {}; 0.1 is the usual choice",
        ),
        "emo_weight": (
            real and 0 < value <= 1,
            "above 0 and at most 1, got {}; 0.5 is the published choice, and loss ce is without it",
        ),
        "emo_max_ratio": (
            real and value >= 0,
            "a finite number ≥ 0, got {}; 3 is the published choice, 0 sets no limit",
        ),
        "emo_center": (isinstance(value, bool), "true or false, got {}"),
    }[name]
    return [] if allowed else [rule.format(repr(value))]


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, least: int) -> bool:
    """Whether a setting is an integer (not a bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _choice_problems(name: str, value: object, choices: tuple[str, ...]) -> list[str]:
    if value in choices:
        return []
    return [f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest_hint(str(value), choices)}"]
