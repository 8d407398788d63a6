"""float64 where a device has it."""

from types import SimpleNamespace

import pytest
import torch

from mce_llm.matrix.precision import exact_dtype, in_float64


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("xpu", torch.float64), ("mps", torch.float32)],
)
def test_the_dtype_for_long_sums(kind, dtype):
    assert exact_dtype(torch.device(kind)) == dtype


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_float64_stays_where_it_is(device):
    tensor = in_float64(torch.ones(3, dtype=torch.bfloat16, device=device))
    assert tensor.dtype == torch.float64
    assert tensor.device.type == device


def test_without_float64_it_comes_to_the_cpu():
    there = SimpleNamespace(device=torch.device("mps"), cpu=lambda: torch.ones(3))
    assert in_float64(there).dtype == torch.float64
