"""Gram matrices of frames, from centred rows and from raw ones, against dense float64 products."""

import dataclasses

import pytest
import torch

from mce_llm.lm import MatrixLossConfig, geometry, token_form
from mce_llm.lm.geometry import TokenGeometry

POSITIONS, FRAME, VOCABULARY, WIDTH = 5, 9, 200, 96


def table(mean, seed=0):
    """Rows with a common part of `mean` times their own length, as bfloat16 holds them."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(VOCABULARY, WIDTH, generator=generator)
    common = torch.randn(WIDTH, generator=generator)
    return (own + mean * common / common.norm() * own.norm(dim=1).mean()).bfloat16()


def ids():
    return torch.stack([torch.randperm(VOCABULARY)[:FRAME] for _ in range(POSITIONS)])


@pytest.fixture
def with_raw_products(monkeypatch):
    """Tables give what raw products need, as on a GPU; the products themselves are formed in float32 here."""
    monkeypatch.setattr(
        geometry, "has_float32_products", lambda tensor: tensor.dtype in (torch.bfloat16, torch.float16)
    )


def dense(rows, ids_CF, config):
    frame = TokenGeometry.from_table(rows.double(), config).rows(ids_CF)
    return frame @ frame.mT


@pytest.mark.parametrize(
    "config", [MatrixLossConfig(), MatrixLossConfig(normalize=False), MatrixLossConfig(center=False)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [0, 10**9])
def test_gram_of_centred_rows(dtype, config, memory, monkeypatch):
    monkeypatch.setattr(
        token_form, "_LEAST_GATHERED", 2 * FRAME * WIDTH
    )  # two positions at a time, then the odd one
    rows, ids_CF = table(1.0).to(dtype), ids()
    found = token_form.frame_gram(TokenGeometry.from_table(rows, config), ids_CF, memory)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found.double(), dense(rows, ids_CF, config), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "config", [MatrixLossConfig(), MatrixLossConfig(normalize=False), MatrixLossConfig(center=False)]
)
@pytest.mark.parametrize("mean", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gram_of_raw_rows(dtype, mean, config, with_raw_products, monkeypatch):
    rows, ids_CF = table(mean).to(dtype), ids()
    found = TokenGeometry.from_table(rows, config)
    assert found.along_mean_V is not None
    taken = []
    own = token_form.raw_gram_
    monkeypatch.setattr(token_form, "raw_gram_", lambda *args: taken.append(own(*args)))
    gram = token_form.frame_gram(found, ids_CF, 10**9)
    assert len(taken) == (found.mean_ratio <= token_form._MOST_OF_MEAN)
    tolerance = 2e-6 * max(1, found.mean_ratio**2)
    assert tolerance < 1e-4
    torch.testing.assert_close(gram.double(), dense(rows, ids_CF, config), rtol=tolerance, atol=tolerance)


def test_a_mean_that_outweighs_the_rows_is_taken_out_first(with_raw_products, monkeypatch):
    monkeypatch.setattr(token_form, "raw_gram_", None)
    rows, ids_CF = table(20.0), ids()
    found = TokenGeometry.from_table(rows, MatrixLossConfig())
    assert found.mean_ratio > token_form._MOST_OF_MEAN
    gram = token_form.frame_gram(found, ids_CF, 10**9)
    torch.testing.assert_close(gram.double(), dense(rows, ids_CF, MatrixLossConfig()), rtol=1e-5, atol=1e-5)


def test_one_row_near_the_mean_decides(with_raw_products):
    """Its product would be the rounding of the mean's, whatever the other rows are."""
    rows = table(1.0).float()
    rows[3] = rows.mean(0) + 0.01 * torch.randn(WIDTH)
    assert TokenGeometry.from_table(rows.bfloat16(), MatrixLossConfig()).mean_ratio > token_form._MOST_OF_MEAN


def test_the_form_is_the_same_from_raw_and_from_centred_rows(with_raw_products):
    rows, ids_CF = table(1.0), ids()
    raw = TokenGeometry.from_table(rows, MatrixLossConfig())
    centred = dataclasses.replace(raw, along_mean_V=None)
    weights = torch.full((POSITIONS, FRAME), 0.9 / FRAME)
    shift = torch.full((POSITIONS,), 0.1 / WIDTH)
    ours, theirs = (
        token_form.token_form(g, ids_CF, weights, shift, order=6, floor=0.05 / WIDTH, gap=True, memory=10**9)
        for g in (raw, centred)
    )
    for name in ("value_C", "gradient_CF", "trace_C", "previous_C"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 2.0])
@pytest.mark.parametrize(("width", "kept"), [(3, 32), (8, 64), (16, 64), (16, 128), (32, 128)])
def test_frames_of_more_rows_than_dimensions(width, kept, mean, with_raw_products):
    """Orders beyond the Krylov space: gradients were off by powers of ten, or not numbers."""
    generator = torch.Generator().manual_seed(width + kept)
    config = MatrixLossConfig(support=kept)
    rows = torch.randn(300, width, generator=generator)
    rows = (rows + mean / width**0.5 * rows.norm(dim=1).mean()).bfloat16()
    for shrinkage, heat in ((0.05, 0.3), (1e-3, 2.0), (1e-4, 6.0)):
        ids_CF = torch.stack([torch.randperm(300, generator=generator)[: kept + 1] for _ in range(16)])
        q_CK = torch.softmax(heat * torch.randn(16, kept + 1, generator=generator), -1)[:, :kept]
        weights_CF = torch.nn.functional.pad((1 - shrinkage) * q_CK, (1, 0))
        shift_C = ((1 - shrinkage) * (1 - q_CK.sum(-1)) + shrinkage) / width
        for order in (4, 8, 16):
            found, exact = (
                token_form.token_form(
                    TokenGeometry.from_table(rows.to(dtype), config),
                    ids_CF,
                    weights_CF.to(wide),
                    shift_C.to(wide),
                    order=order,
                    floor=shrinkage / width,
                    gap=False,
                    memory=2**20,
                )
                for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64))
            )
            assert torch.allclose(found.value_C.double(), exact.value_C, rtol=1e-3, atol=1e-4)
            error = (weights_CF * (found.gradient_CF.double() - exact.gradient_CF)).norm()
            assert error < 1e-2 * (weights_CF * exact.gradient_CF).norm()
