"""Measures of collapse, against their definitions on spectra that are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.training.monitors import CollapseError, alpha_req, rankme, spectrum_of


def with_singular_values(values, rows=64):
    """Centred rows/√n with these singular values, in random directions."""
    torch.manual_seed(0)
    left = torch.randn(rows, len(values), dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return (left * torch.tensor(values, dtype=torch.float64) * rows**0.5) @ right


def test_a_known_spectrum():
    found = spectrum_of(with_singular_values([4.0, 2.0, 1.0, 1.0]))
    assert found.singular_values == pytest.approx([4, 2, 1, 1])
    shares = torch.tensor([16, 4, 1, 1], dtype=torch.float64) / 22
    assert found.effective_rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
    shares = torch.tensor([4, 2, 1, 1], dtype=torch.float64) / 8
    assert found.rankme == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)


@given(st.floats(0.2, 3.0), st.integers(6, 300), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_a_power_law_gives_its_exponent(alpha, count, scale):
    eigenvalues = scale * torch.arange(1, count + 1, dtype=torch.float64) ** -alpha
    assert alpha_req(eigenvalues) == pytest.approx(alpha, abs=1e-6)


def test_isotropic_and_collapsed_features():
    isotropic = spectrum_of(with_singular_values([1.0] * 16))
    assert isotropic.effective_rank == pytest.approx(16)
    assert isotropic.rankme == pytest.approx(16, rel=1e-4)
    assert isotropic.alpha_req == pytest.approx(0, abs=1e-6)
    collapsed = spectrum_of(torch.ones(10, 4) * torch.arange(1.0, 5))
    assert collapsed.effective_rank == 1
    assert collapsed.rankme == pytest.approx(1, abs=1e-4)
    assert math.isnan(collapsed.alpha_req)
    line = spectrum_of(torch.arange(10.0).view(-1, 1) * torch.tensor([1.0, 2, 3]))
    assert line.effective_rank == pytest.approx(1, abs=1e-9)


def test_rankme_looks_at_the_rows_as_they_are():
    features = with_singular_values([1.0, 1.0, 1.0])
    assert rankme(features + 100) < 1.2 < 2.9 < rankme(features)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(1, 4), r"n >= 2, got shape \(1, 4\)"),
        (torch.ones(4), r"got shape \(4,\)"),
        (torch.tensor([[1.0, 2], [math.nan, 1], [1, math.inf]]), r"2 of 3 rows of features are not finite"),
    ],
)
def test_features_without_a_spectrum(features, message):
    with pytest.raises(CollapseError, match=message):
        spectrum_of(features)
