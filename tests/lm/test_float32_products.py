"""Sums of 16-bit products: what is added, and with which operations on a GPU (on fake tensors)."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mce_llm.lm import float32_products
from mce_llm.lm.float32_products import add_product_, gram_, has_float32_products, multiply_

HALF = (torch.bfloat16, torch.float16)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("sums", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factors", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_adds_or_overwrites(fresh, sums, factors):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*size, generator=generator).to(factors) for size in ((5, 40), (40, 3)))
    before = torch.full((5, 3), torch.nan if fresh else 2.0, dtype=sums)
    found = before.clone()
    add_product_(found, left, right, fresh=fresh)
    wanted = left.double() @ right.double() + (0 if fresh else 2)
    coarsest = max(torch.finfo(sums).eps, torch.finfo(factors).eps)
    torch.testing.assert_close(found.double(), wanted, rtol=4 * coarsest, atol=20 * coarsest)


@pytest.mark.parametrize("at_a_time", [1, 7, 2**24])
def test_a_sum_that_float16_does_not_hold(at_a_time, monkeypatch):
    """A thousand positions of a channel that is large everywhere; no scale of the loss comes before this product."""
    monkeypatch.setattr(float32_products, "_ELEMENTS_AT_A_TIME", at_a_time)
    left, right = torch.full((5, 4096), 0.5).half(), torch.full((4096, 3), 40.0).half()
    assert (left @ right).isinf().all()
    sums = torch.full((5, 3), torch.nan)
    add_product_(sums, left, right, fresh=True)
    assert (sums == 81920).all()
    add_product_(sums, left, right, fresh=False)
    assert (sums == 163840).all()


def test_gram_of_16_bit_rows_is_exact_to_float32():
    rows = torch.randn(4, 7, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = gram_(rows, torch.empty(4, 7, 7))
    torch.testing.assert_close(found.double(), rows.double() @ rows.mT.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("adds", "later"), [(True, ["addmm.dtype_out"]), (False, ["mm.dtype", "add_.Tensor"])]
)
def test_nothing_is_rounded_to_16_bits_on_a_gpu(dtype, adds, later, monkeypatch):
    monkeypatch.setattr(float32_products, "_ADDS_IN_FLOAT32", adds)
    with FakeTensorMode():
        left, right = (torch.empty(*size, dtype=dtype, device="cuda") for size in ((5, 40), (40, 3)))
        sums, rows = torch.empty(5, 3, device="cuda"), torch.empty(2, 5, 40, dtype=dtype, device="cuda")
        assert has_float32_products(left)
        with Calls() as calls:
            add_product_(sums, left, right, fresh=True)
        assert calls.names == ["mm.dtype_out"]
        with Calls() as calls:
            add_product_(sums, left, right, fresh=False)
        assert calls.names == later
        with Calls() as calls:
            multiply_(sums, left, right)
            gram_(rows, torch.empty(2, 5, 5, device="cuda"))
        assert [name for name in calls.names if "mm" in name] == ["mm.dtype_out", "bmm.dtype_out"]


def test_only_cuda_and_16_bits_have_them(monkeypatch):
    assert not has_float32_products(torch.empty(2, dtype=torch.bfloat16))
    with FakeTensorMode():
        assert not has_float32_products(torch.empty(2, device="cuda"))
        half = torch.empty(2, dtype=torch.bfloat16, device="cuda")
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert not has_float32_products(half)
