"""The losses by name, for recipes and command lines."""

from __future__ import annotations

import inspect
from typing import Any

from mce_llm.running.messages import nearest_hint
from mce_llm.vision.losses.barlow_twins import BarlowTwinsLoss
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.coding_rate import TotalCodingRateLoss
from mce_llm.vision.losses.errors import LossSettingsError, UnknownLossError
from mce_llm.vision.losses.matrix_ssl import MatrixSSLLoss
from mce_llm.vision.losses.mec import MECLoss
from mce_llm.vision.losses.sim_siam import SimSiamLoss

LOSSES: dict[str, type[ViewLoss]] = {
    "matrix_ssl": MatrixSSLLoss,
    "mec": MECLoss,
    "total_coding_rate": TotalCodingRateLoss,
    "barlow_twins": BarlowTwinsLoss,
    "sim_siam": SimSiamLoss,
}
"""Name → class."""


def loss_options(name: str) -> dict[str, Any]:
    """Options of a loss and their defaults.

    Args:
        name: A key of `LOSSES`.

    Returns:
        Name → default.

    Raises:
        UnknownLossError: There is no such loss.
    """
    if name not in LOSSES:
        raise UnknownLossError(
            f"unknown loss {name!r}{nearest_hint(str(name), LOSSES)}; choose from {', '.join(LOSSES)}"
        )
    found = {}
    for cls in (ViewLoss, LOSSES[name]):
        for option, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                found[option] = parameter.default
    return found


def build_loss(name: str, **options: Any) -> ViewLoss:
    """A loss by its name.

    Args:
        name: A key of `LOSSES`.
        options: Those of its class.

    Returns:
        The loss.

    Raises:
        LossSettingsError: An option does not exist, or the values are unusable; unknown names are all listed.
    """
    known = loss_options(name)
    unknown = [f"{option!r}{nearest_hint(option, known)}" for option in options if option not in known]
    if unknown:
        raise LossSettingsError(
            f"{name} has no option {', '.join(unknown)}; its options are {', '.join(sorted(known))}"
        )
    return LOSSES[name](**options)
