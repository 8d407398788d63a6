"""What questions contribute: means against sums over all tokens, calibration by hand, copies, runs of other tokens."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from helpers.likelihoods import likelihood_items
from mce_llm.eval.comparing.measures import MEASURES, measure_named
from mce_llm.eval.comparing.question_values import TokenSums, check_same_tokens, debiased_gaps
from mce_llm.eval.errors import EvaluationError


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(0, 1000))
def test_the_mean_over_questions_is_the_ratio_of_sums(n, seed):
    items = likelihood_items(n, seed=seed)
    sums = TokenSums.of(items)
    assert sums.n == n
    for group in items[0]["groups"]:
        tokens = sum(item["groups"][group]["tokens"] for item in items)
        for quantity in ("nats", "top1", "entropy"):
            pooled = sum(item["groups"][group][quantity] for item in items) / tokens
            found = sums.contributions(measure_named(f"{group}.{quantity}"))
            assert found.shape == (n,)
            assert found.dtype == np.float64
            assert found.mean() == pytest.approx(pooled, rel=1e-12)


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(0, 1000), st.floats(-0.2, 0.2))
def test_the_mean_over_questions_is_the_pooled_calibration_error(n, seed, sharpness):
    items = likelihood_items(n, seed=seed, sharpness=sharpness)
    bins = [item["calibration"]["numbers"] for item in items]
    error = sum(
        abs(sum(each["confidence"][b] - each["top1"][b] for each in bins))
        for b in range(len(bins[0]["tokens"]))
    ) / sum(sum(each["tokens"]) for each in bins)
    found = TokenSums.of(items).contributions(measure_named("numbers.ece"))
    assert found.mean() == pytest.approx(error, rel=1e-12)


def test_calibration_by_hand():
    """Two questions, two bins: gaps +0.4 − 0.2 = 0.2 and −0.3 − 0.1 = −0.4 over 10 tokens."""
    calibration = {
        "all": {
            "tokens": np.array([[2.0, 3.0], [2.0, 3.0]]),
            "confidence": np.array([[1.4, 1.7], [0.8, 1.9]]),
            "top1": np.array([[1.0, 2.0], [1.0, 2.0]]),
        }
    }
    found = TokenSums({}, calibration).contributions(MEASURES["all.ece"])
    assert found == pytest.approx([(0.4 + 0.3) / 5, (-0.2 + 0.1) / 5])
    assert found.mean() == pytest.approx(0.06)


def size(x):
    """h of `debiased_gaps`, in units of the standard error, for a bin whose mean is x of these."""
    gaps = np.array([1.0, -1.0, 1.0, -1.0])
    error = gaps.std(ddof=1) / 2
    return debiased_gaps((gaps + x * error)[:, None]).mean() / error


def test_a_bin_without_a_gap_adds_nothing_on_average():
    expected = integrate.quad(lambda x: size(x) * stats.norm.pdf(x), -8, 8, limit=200)[0]
    assert expected == pytest.approx(0, abs=1e-6)
    plain = integrate.quad(lambda x: abs(x) * stats.norm.pdf(x), -8, 8)[0]
    assert plain == pytest.approx(0.8, abs=0.01)  # what the plain error has too much


@pytest.mark.parametrize("gap", [0.3, 0.7, 1.0, 1.5, 2.5, 4.0])
def test_a_gap_is_never_far_too_small_on_average(gap):
    expected = integrate.quad(lambda x: size(x) * stats.norm.pdf(x - gap), gap - 8, gap + 8, limit=200)[0]
    assert gap - 0.42 <= expected <= gap


def test_a_clear_gap_is_its_size_and_its_spread_is_that_of_the_gap():
    gaps = np.random.default_rng(0).normal(0.5, 1.0, (400, 1))
    found = debiased_gaps(gaps)
    assert found.mean() == pytest.approx(gaps.mean(), rel=1e-6)
    assert found.std() == pytest.approx(gaps.std(), rel=1e-6)
    assert debiased_gaps(-gaps) == pytest.approx(found)  # sizes have no sign


@settings(max_examples=30)
@given(st.integers(2, 20), st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_contributions_move_as_the_estimate_does(n, seed, mean):
    """The derivative of the estimate by a common shift of all questions is the mean slope, as the contributions have it."""
    gaps = np.random.default_rng(seed).normal(mean, 1.0, (n, 3))
    at = 1e-5
    numeric = (debiased_gaps(gaps + at).mean() - debiased_gaps(gaps - at).mean()) / (2 * at)
    found = debiased_gaps(gaps)
    slopes = np.linalg.lstsq(gaps - gaps.mean(axis=0), found - found.mean(), rcond=None)[0]
    if n > 4:
        assert slopes.sum() == pytest.approx(numeric, abs=1e-5)


def test_bins_that_do_not_vary():
    gaps = np.array([[0.0, -0.5], [0.0, -0.5], [0.0, -0.5]])
    assert debiased_gaps(gaps) == pytest.approx([0.5, 0.5, 0.5])


def test_copies_are_one_question():
    items = likelihood_items(4)
    sums = TokenSums.of(items).distinct([(0, 2), (1,), (3,)])
    assert sums.n == 3
    both = [items[k]["groups"]["numbers"] for k in (0, 2)]
    assert sums.groups["numbers"]["nats"][0] == pytest.approx(np.mean([group["nats"] for group in both]))
    measure = measure_named("numbers.nats")
    tokens = np.mean([group["tokens"] for group in both])
    tokens = np.array([tokens, *(items[k]["groups"]["numbers"]["tokens"] for k in (1, 3))])
    nats = sums.groups["numbers"]["nats"]
    assert sums.contributions(measure).mean() == pytest.approx(nats.sum() / tokens.sum())


def test_what_was_not_measured_has_no_value():
    items = likelihood_items(3)
    for item in items:
        item["groups"]["results"] = {"tokens": 0, "nats": 0.0, "top1": 0, "entropy": 0.0}
        del item["calibration"]
    sums = TokenSums.of(items)
    names = [measure.name for measure in sums.measures]
    assert "all.nats" in names
    assert not [name for name in names if name.startswith("results") or "ece" in name]
    for name in ("results.nats", "numbers.ece", "accuracy"):
        with pytest.raises(
            EvaluationError, match=rf"nothing was measured that gives {name}; there is all\.nats"
        ):
            sums.contributions(measure_named(name))


def test_runs_of_other_tokens_are_refused_by_name():
    first = likelihood_items(5)
    other = copy.deepcopy(first)
    other[3]["groups"]["numbers"]["tokens"] += 1
    check_same_tokens({"ce": TokenSums.of(first), "mce": TokenSums.of(likelihood_items(5, seed=9))})
    with pytest.raises(
        EvaluationError, match=r"ce and emo have other tokens \(numbers: .* in question no\. 4, 1 of 5"
    ):
        check_same_tokens({"ce": TokenSums.of(first), "emo": TokenSums.of(other)})
    with pytest.raises(
        EvaluationError, match=r"ce has 5 questions and mce 4.*same tokenizer on the same data"
    ):
        check_same_tokens({"ce": TokenSums.of(first), "mce": TokenSums.of(first[:4])})
    for item in other:
        del item["groups"]["words"]
    with pytest.raises(EvaluationError, match="ce and emo measured different groups of tokens"):
        check_same_tokens({"ce": TokenSums.of(first), "emo": TokenSums.of(other)})


def test_lines_that_are_no_table():
    with pytest.raises(EvaluationError, match="there is no question whose likelihood"):
        TokenSums.of([])
    items = likelihood_items(3)
    del items[1]["groups"]["words"]
    with pytest.raises(
        EvaluationError, match=r"same groups for every question .* question no\. 2 has groups all"
    ):
        TokenSums.of(items)
    items = likelihood_items(3)
    del items[2]["calibration"]
    with pytest.raises(
        EvaluationError, match=r"same calibration .* question no\. 3 has calibration of nothing"
    ):
        TokenSums.of(items)
    with pytest.raises(EvaluationError, match=r"same groups .* no question has any"):
        TokenSums.of([{"groups": {}}])
