"""Losses for causal language models, matrix losses above all: the losses themselves, the model patch and the trainer.

The losses need torch alone; what needs transformers is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mce_llm.errors import LossInputError, NonFiniteLossError
from mce_llm.lm.baseline_reference import (
    earth_mover_distance,
    earth_mover_loss,
    label_smoothing_loss,
    reference_loss,
)
from mce_llm.lm.config import MatrixLossConfig, MatrixLossConfigError
from mce_llm.lm.emo_term import emo_geometry
from mce_llm.lm.geometry import GeometryError, TokenGeometry
from mce_llm.lm.geometry_cache import GeometryCache
from mce_llm.lm.kernels.launching import KernelChoiceError
from mce_llm.lm.linear_loss import LossOutput, linear_matrix_cross_entropy
from mce_llm.lm.reference import (
    expected_matrix_cross_entropy,
    marginal_matrix_cross_entropy,
    reference_matrix_cross_entropy,
    token_matrix_cross_entropy,
)
from mce_llm.lm.whole_weights import ShardedWeightError

if TYPE_CHECKING:
    from mce_llm.lm.arguments import MatrixTrainingArguments
    from mce_llm.lm.checks.model_check import (
        ModelCheck,
        UncheckedModelWarning,
        check_model,
        examine_model,
    )
    from mce_llm.lm.heads import UnsupportedModelError
    from mce_llm.lm.instance_forward import PatchedModelError
    from mce_llm.lm.patch import MatrixLossPatch, patch_model
    from mce_llm.lm.patched_call import BypassedLossError
    from mce_llm.lm.token_mask import token_mask_of
    from mce_llm.lm.trainer import MatrixTrainer
    from mce_llm.lm.training.mixin import MatrixLossMixin, UnsupportedTrainerError
    from mce_llm.lm.trl import MatrixSFTConfig as MatrixSFTConfig
    from mce_llm.lm.trl import MatrixSFTTrainer as MatrixSFTTrainer

_HOMES = {
    "MatrixTrainingArguments": "arguments",
    "ModelCheck": "checks.model_check",
    "UncheckedModelWarning": "checks.model_check",
    "check_model": "checks.model_check",
    "examine_model": "checks.model_check",
    "UnsupportedModelError": "heads",
    "PatchedModelError": "instance_forward",
    "BypassedLossError": "patched_call",
    "MatrixLossPatch": "patch",
    "patch_model": "patch",
    "token_mask_of": "token_mask",
    "MatrixTrainer": "trainer",
    "MatrixSFTConfig": "trl",
    "MatrixSFTTrainer": "trl",
    "MatrixLossMixin": "training.mixin",
    "UnsupportedTrainerError": "training.mixin",
}

__all__ = [
    "BypassedLossError",
    "GeometryCache",
    "GeometryError",
    "KernelChoiceError",
    "LossInputError",
    "LossOutput",
    "MatrixLossConfig",
    "MatrixLossConfigError",
    "MatrixLossMixin",
    "MatrixLossPatch",
    "MatrixTrainer",
    "MatrixTrainingArguments",
    "ModelCheck",
    "NonFiniteLossError",
    "PatchedModelError",
    "ShardedWeightError",
    "TokenGeometry",
    "UncheckedModelWarning",
    "UnsupportedModelError",
    "UnsupportedTrainerError",
    "check_model",
    "earth_mover_distance",
    "earth_mover_loss",
    "emo_geometry",
    "examine_model",
    "expected_matrix_cross_entropy",
    "label_smoothing_loss",
    "linear_matrix_cross_entropy",
    "marginal_matrix_cross_entropy",
    "patch_model",
    "reference_loss",
    "reference_matrix_cross_entropy",
    "token_mask_of",
    "token_matrix_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
