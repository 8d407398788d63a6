"""The batch kinds where there is no float64: refused in words."""

import pytest
import torch

from mce_llm.errors import LossInputError
from mce_llm.lm import MatrixLossConfig, batch_kernel, linear_matrix_cross_entropy


@pytest.mark.parametrize("kind", ["marginal", "expected"])
def test_a_device_without_float64_is_refused(monkeypatch, kind):
    hidden, weight = torch.randn(4, 6), torch.randn(9, 6)
    arguments = (hidden, weight, torch.arange(4), MatrixLossConfig(kind=kind))
    assert torch.isfinite(linear_matrix_cross_entropy(*arguments).loss)
    monkeypatch.setattr(batch_kernel, "exact_dtype", lambda device: torch.float32)
    with pytest.raises(
        LossInputError, match=r"need float64, which cpu devices have not.*matrix_kind to token"
    ):
        linear_matrix_cross_entropy(*arguments)
