"""TokenGeometry: centring, lengths, excluded and directionless rows, products without a second table."""

import pytest
import torch

from mce_llm.lm import GeometryError, MatrixLossConfig, TokenGeometry


def table(rows=9, width=5, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2.0


def test_rows_are_centred_and_of_length_one():
    raw = table()
    geometry = TokenGeometry.from_table(raw, MatrixLossConfig())
    expected = raw - raw.mean(0)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(geometry.all_rows(), expected)
    torch.testing.assert_close(geometry.rows(torch.tensor([[3, 1]])), expected[[3, 1]].unsqueeze(0))


def test_without_normalisation_the_mean_squared_length_is_one():
    geometry = TokenGeometry.from_table(table(), MatrixLossConfig(normalize=False))
    lengths = geometry.all_rows().square().sum(1)
    torch.testing.assert_close(lengths.mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(geometry.squared_length_V, lengths)


@pytest.mark.parametrize("config", [MatrixLossConfig(), MatrixLossConfig(center=False, normalize=False)])
def test_products_equal_those_with_the_dense_table(config):
    geometry = TokenGeometry.from_table(table(), config)
    dense = geometry.all_rows()
    vectors, weights = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(geometry.project(vectors), vectors @ dense.T)
    torch.testing.assert_close(geometry.combine_centred(weights * geometry.scale_V), weights @ dense)


def test_excluded_rows_do_not_move_the_mean_and_have_no_direction():
    raw = table()
    mask = torch.ones(9, dtype=torch.bool)
    mask[[2, 7]] = False
    geometry = TokenGeometry.from_table(raw, MatrixLossConfig(), mask)
    spoiled = raw.clone()
    spoiled[[2, 7]] = 1e3
    other = TokenGeometry.from_table(spoiled, MatrixLossConfig(), mask)
    torch.testing.assert_close(geometry.mean_D, raw[mask].mean(0))
    torch.testing.assert_close(geometry.all_rows(), other.all_rows())
    assert not geometry.has_direction_V[[2, 7]].any()
    assert geometry.has_direction_V.sum() == 7


def test_a_row_equal_to_the_mean_has_no_direction():
    raw = table()
    raw[4] = (raw.sum(0) - raw[4]) / 8  # then the mean of all rows is that row
    assert not TokenGeometry.from_table(raw, MatrixLossConfig()).has_direction_V[4]


def test_low_precision_tables_are_used_in_float32_and_stay_detached():
    raw = table().to(torch.bfloat16).requires_grad_()
    geometry = TokenGeometry.from_table(raw, MatrixLossConfig())
    assert geometry.all_rows().dtype == torch.float32
    assert not geometry.all_rows().requires_grad


@pytest.mark.parametrize(
    ("raw", "mask", "message"),
    [
        (torch.zeros(0), None, "sharded parameter"),
        (torch.randn(3), None, r"must be a \(vocabulary, width\) matrix, got shape \(3,\)"),
        (torch.ones(4, 3), None, "all rows are equal"),
        (
            torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]),
            None,
            r"1 of 2 embedding rows are not finite \(first rows: \[1\]",
        ),
        (torch.randn(4, 3), torch.ones(5, dtype=torch.bool), r"got \(5,\) for 4 rows"),
    ],
)
def test_unusable_tables_are_refused(raw, mask, message):
    with pytest.raises(GeometryError, match=message):
        TokenGeometry.from_table(raw, MatrixLossConfig(), mask)


def test_rows_whose_lengths_overflow_are_called_what_they_are():
    with pytest.raises(GeometryError, match=r"squared lengths of the 4 embedding rows overflow"):
        TokenGeometry.from_table(1e20 * torch.randn(4, 3), MatrixLossConfig())
