"""Losses of self-supervised learning in the language of matrix information; torch and `mce_llm.matrix` alone.

All are modules called as `loss(z1, z2, p1, p2)` and say in their docstrings how they relate to matrix uniformity and
matrix alignment. Networks are in `vision.models`, views in `vision.data`, training in `vision.training`.
"""

from mce_llm.errors import LossInputError, NonFiniteLossError
from mce_llm.vision.losses.barlow_twins import BarlowTwinsLoss, barlow_twins_loss
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.coding_rate import TotalCodingRateLoss, total_coding_rate_loss
from mce_llm.vision.losses.errors import (
    LossSettingsError,
    RankMismatchError,
    TaylorDivergenceError,
    UnknownLossError,
    ViewLossError,
)
from mce_llm.vision.losses.matrix_ssl import MatrixSSLLoss, matrix_ssl_loss
from mce_llm.vision.losses.mec import MECLoss, mec_loss
from mce_llm.vision.losses.registry import LOSSES, build_loss, loss_options
from mce_llm.vision.losses.sim_siam import SimSiamLoss, sim_siam_loss

__all__ = [
    "LOSSES",
    "BarlowTwinsLoss",
    "LossInputError",
    "LossSettingsError",
    "MECLoss",
    "MatrixSSLLoss",
    "NonFiniteLossError",
    "RankMismatchError",
    "SimSiamLoss",
    "TaylorDivergenceError",
    "TotalCodingRateLoss",
    "UnknownLossError",
    "ViewLoss",
    "ViewLossError",
    "barlow_twins_loss",
    "build_loss",
    "loss_options",
    "matrix_ssl_loss",
    "mec_loss",
    "sim_siam_loss",
    "total_coding_rate_loss",
]
