"""Sums over tokens, their pool, and the expected calibration error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.likelihood.items import (
    BINS,
    CALIBRATED,
    GROUPS,
    TokenScores,
    calibration_errors,
    item_of,
    pooled_groups,
)


def made(confidence, top1, nats=None, numbers=None):
    count = len(confidence)
    nats = np.ones(count) if nats is None else np.asarray(nats, dtype=float)
    numbers = np.ones(count, dtype=bool) if numbers is None else np.asarray(numbers, dtype=bool)
    groups = {
        "all": np.ones(count, dtype=bool),
        "numbers": numbers,
        "results": np.zeros(count, dtype=bool),
        "answer": numbers,
        "words": ~numbers,
    }
    scores = TokenScores(nats, 0.5 * nats, np.asarray(confidence, dtype=float), np.asarray(top1, dtype=bool))
    return item_of(0, "Q", "1", groups, scores)


def test_sums_by_group():
    item = made([0.5, 0.25, 1.0], [1, 0, 1], nats=[0.5, 2.0, 0.25], numbers=[1, 0, 1])
    assert item["groups"] == {
        "all": {"tokens": 3, "nats": 2.75, "top1": 2, "entropy": 1.375},
        "numbers": {"tokens": 2, "nats": 0.75, "top1": 2, "entropy": 0.375},
        "results": {"tokens": 0, "nats": 0.0, "top1": 0, "entropy": 0.0},
        "answer": {"tokens": 2, "nats": 0.75, "top1": 2, "entropy": 0.375},
        "words": {"tokens": 1, "nats": 2.0, "top1": 0, "entropy": 1.0},
    }


@pytest.mark.parametrize(
    ("confidence", "place"),
    [(1e-9, 0), (1 / 15, 0), (1 / 15 + 1e-9, 1), (0.5, 7), (14 / 15 + 1e-9, 14), (1.0, 14)],
)
def test_bins_are_open_below_and_closed_above(confidence, place):
    tokens = made([confidence], [1])["calibration"]["all"]["tokens"]
    assert tokens == [int(number == place) for number in range(BINS)]


def test_pooled_are_ratios_of_sums():
    short, long = made([0.5], [1], nats=[4.0]), made([0.5] * 3, [0, 0, 1], nats=[1.0, 1.0, 2.0])
    pooled = pooled_groups([short, long])["all"]
    assert pooled == {
        "tokens": 4,
        "nats": 8.0,
        "nats_per_token": 2.0,
        "perplexity": math.exp(2),
        "top1": 0.5,
        "entropy": 1.0,
    }


def test_empty_groups_have_no_mean():
    assert pooled_groups([made([0.5], [1])])["results"] == {
        "tokens": 0,
        "nats": 0.0,
        "nats_per_token": None,
        "perplexity": None,
        "top1": None,
        "entropy": None,
    }
    assert calibration_errors([made([0.5], [1], numbers=[False])])["numbers"] is None


def test_a_perplexity_beyond_floating_point():
    pooled = pooled_groups([made([0.5], [0], nats=[1000.0])])["all"]
    assert (pooled["nats_per_token"], pooled["perplexity"]) == (1000.0, None)


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 5))
def test_calibration_error_is_that_of_the_definition(tokens, pieces):
    """Guo et al. 2017, eqs. (3) and (5): bins (m−1)/M < confidence ≤ m/M, over all tokens at once."""
    confidence, hits = (np.array(values, dtype=float) for values in zip(*tokens, strict=True))
    expected = 0.0
    for m in range(1, BINS + 1):
        inside = (confidence * BINS > m - 1) & (confidence * BINS <= m)
        if inside.any():
            expected += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    items = [
        made(confidence[place::pieces], hits[place::pieces]) for place in range(min(pieces, len(tokens)))
    ]
    for name in CALIBRATED:
        assert calibration_errors(items)[name] == pytest.approx(expected, abs=1e-12)


def test_a_model_that_is_always_sure_and_right_half_the_time():
    assert calibration_errors([made([1.0] * 4, [1, 0, 1, 0])])["all"] == pytest.approx(0.5)
    assert set(GROUPS) > set(CALIBRATED)
