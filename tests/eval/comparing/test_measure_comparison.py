"""Arms by real-valued measures: laws, agreement with what compares right and wrong answers, coverage, wrong input."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mce_llm.eval.comparing.measure_comparison import compare_measure, compare_measures
from mce_llm.eval.comparing.measure_outcome import MeasureValues
from mce_llm.eval.comparing.measures import ACCURACY, measure_named
from mce_llm.eval.comparing.p_values import holm
from mce_llm.eval.comparing.paired import mcnemar_exact, sign_flip_test, tango_interval
from mce_llm.eval.comparing.training_seeds import SeedSpread
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError

NATS = measure_named("all.nats")
TOP1 = measure_named("numbers.top1")
ENTROPY = measure_named("all.entropy")


def nats(seed, seeds=3, n=60, shift=0.0, spread=0.1):
    """Nats of a run each seed; how hard a question is is shared by all."""
    hard = np.random.default_rng(99).lognormal(0, 0.5, n)
    generator = np.random.default_rng(seed)
    return {
        s: hard + shift + generator.normal(0, spread, n) + generator.normal(0, 0.01) for s in range(seeds)
    }


def only(comparison):
    (arm,) = comparison.arms
    return arm


def numbers(arm):
    """Everything that was computed of an arm, as a flat list."""
    return [
        arm.difference,
        *arm.interval,
        *arm.simultaneous,
        arm.p_value,
        *arm.seed_differences,
        arm.detectable.difference,
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_the_order_of_questions_does_not_matter(seeds, n, seed):
    a, b = nats(seed, seeds, n), nats(seed + 1, seeds, n, shift=-0.02)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = [{s: values[order] for s, values in side.items()} for side in (a, b)]
    expected = numbers(only(compare_measure(NATS, a, {"b": b}, resamples=300)))
    found = numbers(only(compare_measure(NATS, shuffled[0], {"b": shuffled[1]}, resamples=300)))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_exchanging_the_two_changes_signs_alone(seeds, n, seed):
    a, b = nats(seed, seeds, n), nats(seed + 1, seeds, n, shift=-0.02)
    there = only(compare_measure(NATS, a, {"B": b}, resamples=300))
    back = only(compare_measure(NATS, b, {"B": a}, resamples=300))
    assert back.difference == pytest.approx(-there.difference)
    assert back.interval == pytest.approx((-there.interval.high, -there.interval.low), rel=1e-6, abs=1e-9)
    assert back.p_value == pytest.approx(there.p_value, rel=1e-3)
    assert {there.finding, back.finding} in ({"better", "worse"}, {"not told apart"})


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_other_units_scale_everything(seeds, scale, seed):
    a, b = nats(seed, seeds), nats(seed + 1, seeds, shift=-0.02)
    scaled = [{s: scale * values for s, values in side.items()} for side in (a, b)]
    one = only(compare_measure(NATS, a, {"b": b}, resamples=300))
    other = only(compare_measure(NATS, scaled[0], {"b": scaled[1]}, resamples=300))
    assert other.interval == pytest.approx([scale * end for end in one.interval], rel=1e-6)
    assert other.p_value == pytest.approx(one.p_value, rel=1e-3)
    assert other.detectable.difference == pytest.approx(scale * one.detectable.difference, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(2, 60), st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_right_and_wrong_answers_as_seed_spread_has_them(seeds, n, seed, confidence):
    generator = np.random.default_rng(seed)
    a, b = ({s: generator.integers(0, 2, n).astype(float) for s in range(seeds)} for _ in range(2))
    arm = only(compare_measure(ACCURACY, a, {"b": b}, confidence))
    spread = SeedSpread.of(np.array([b[s] - a[s] for s in range(seeds)]))
    assert arm.interval == spread.interval(confidence)
    assert arm.p_value == spread.p_value()
    assert (arm.seed_sd, arm.seed_sd_by_chance) == (spread.observed_sd, spread.sd_by_chance)
    assert arm.detectable.difference == spread.smallest_detectable_difference(confidence)


def test_one_pair_of_right_and_wrong_answers_is_mcnemar_and_tango():
    a = np.array([1.0] * 60 + [1.0] * 5 + [0.0] * 20 + [0.0] * 15)
    b = np.array([1.0] * 60 + [0.0] * 5 + [1.0] * 20 + [0.0] * 15)
    arm = only(compare_measure(ACCURACY, {1: a}, {"b": {1: b}}))
    assert arm.interval == tango_interval(5, 20, 100)
    assert arm.p_value == mcnemar_exact(5, 20)
    assert arm.test == "exact McNemar"
    assert arm.finding == "better"
    assert "one training seed each" in arm.verdict


def test_one_pair_of_shares_of_right_answers_is_the_sign_flip_test():
    a, b = np.array([0.25, 0.5, 1.0, 0.0, 1 / 3]), np.array([0.5, 0.5, 1.0, 0.75, 2 / 3])
    arm = only(compare_measure(ACCURACY, {1: a}, {"b": {1: b}}))
    assert arm.p_value == sign_flip_test([3, 0, 0, 9, 4])
    assert arm.test == "exact sign-flip test"


def test_only_common_seeds_are_paired():
    a = nats(1, seeds=5)
    b = {s: values for s, values in nats(2, seeds=7).items() if s not in (0, 3)}
    arm = only(compare_measure(NATS, a, {"b": b}))
    assert arm.seeds == (1, 2, 4)
    assert arm.left_out == (0, 3, 5, 6)
    assert arm.baseline_value == pytest.approx(np.mean([a[s] for s in arm.seeds]))
    assert arm.seed_differences == pytest.approx([np.mean(b[s] - a[s]) for s in arm.seeds])
    assert arm.difference == pytest.approx(np.mean(arm.seed_differences))


def test_several_arms_are_corrected_for_their_number():
    a = nats(1)
    arms = {
        name: nats(k, shift=shift)
        for k, (name, shift) in enumerate((("x", 0.0), ("y", -0.01), ("z", -0.2)), 2)
    }
    together = compare_measure(NATS, a, arms)
    alone = [only(compare_measure(NATS, a, {name: arm})) for name, arm in arms.items()]
    assert [arm.p_value for arm in together.arms] == [arm.p_value for arm in alone]
    assert [arm.p_holm for arm in together.arms] == holm([arm.p_value for arm in alone])
    for corrected, arm in zip(together.arms, alone, strict=True):
        assert corrected.interval == arm.interval
        assert corrected.simultaneous.low < arm.interval.low < arm.interval.high < corrected.simultaneous.high
        assert corrected.detectable.alpha == pytest.approx(0.05 / 3)
    assert [arm.finding for arm in together.arms] == ["not told apart", "not told apart", "better"]
    assert "z is better than A" in together.verdict
    assert "at most 5 % (Holm)" in together.verdict
    assert only(compare_measure(NATS, a, {"x": arms["x"]})).simultaneous == alone[0].interval
    json.dumps(together.to_dict())


@pytest.mark.parametrize(
    ("shift", "smallest", "finding", "weight", "says"),
    [
        (-0.2, 0.05, "better", "matters", "larger than the 0.0500 nats per token that matter"),
        (0.2, 0.05, "worse", "matters", "larger than the 0.0500"),
        (-0.06, 0.3, "better", "too small to matter", "smaller than the 0.3000 nats per token that matter"),
        (-0.06, 0.06, "better", "open", "Whether it is the 0.0600 nats per token that matter is open"),
        (0.0, 0.3, "not told apart", "too small to matter", "the interval lies within ± that"),
        (0.0, 0.001, "not told apart", "open", "not the same as being equal"),
        (-0.2, None, "better", None, "on average over 4 training seeds (B minus A −0."),
    ],
)
def test_what_is_said_of_the_smallest_difference_that_matters(shift, smallest, finding, weight, says):
    arm = only(compare_measure(NATS, nats(1, 4, 400), {"B": nats(2, 4, 400, shift)}, 0.95, smallest))
    assert (arm.finding, arm.weight) == (finding, weight)
    assert says in arm.verdict
    assert ("matter" in arm.verdict) == (smallest is not None)


def test_what_is_neither_better_nor_worse():
    arm = only(compare_measure(ENTROPY, nats(1), {"B": nats(2, shift=0.2)}))
    assert arm.finding == "higher"
    assert "B is higher than A by 0." in arm.verdict
    assert "better" not in arm.verdict


def test_equal_runs_and_how_narrow_an_interval_may_be():
    same = nats(1)
    arm = only(compare_measure(NATS, same, {"b": dict(same)}))
    assert (arm.interval, arm.p_value, arm.finding) == ((0.0, 0.0), 1.0, "not told apart")
    hits = {s: np.full(50, 0.5) for s in range(3)}  # ten tokens a question, five of them right in the least
    hits[0] = hits[0].copy()
    hits[0][0] = 0.1
    arm = only(compare_measure(TOP1, hits, {"b": dict(hits)}))
    z = stats.norm.ppf(0.975)
    assert arm.interval.high == pytest.approx(0.1 * z**2 / (50 + z**2))


# -- coverage: a quick look; `benchmarks/measure_coverage.py` has the table ------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_skewed_differences_are_covered_and_a_pooled_t_interval_is_not(seeds):
    """Lognormal differences of 60 questions: nominal 95 %; and the negative control."""
    generator = np.random.default_rng(seeds)
    trials, n, truth = 150, 60, 1.0
    held, pooled = [], []
    for _ in range(trials):
        rest = generator.lognormal(0, 1, (1, n)) - np.exp(0.5) + generator.normal(0, 0.5, (seeds, n))
        drift = generator.normal(0, 0.6, (seeds, 1)) if seeds > 1 else 0.0
        differences = truth + drift + rest
        zero = {s: np.full(n, 50.0) for s in range(seeds)}
        run = {s: zero[s] + differences[s] for s in zero}
        low, high = only(compare_measure(NATS, zero, {"b": run}, resamples=400)).interval
        held.append(low <= truth <= high)
        low, high = stats.ttest_1samp(differences.ravel(), 0).confidence_interval(0.95)
        pooled.append(low <= truth <= high)
    # The standard error of 150 trials is 1.8 points; lognormal values with σ = 1 cost one seed up to 2 points.
    assert np.mean(held) >= 0.88
    if seeds > 1:
        assert np.mean(pooled) < 0.75
    else:
        assert np.mean(held) > np.mean(pooled)


@pytest.mark.slow
def test_any_false_finding_among_arms_is_as_rare_as_promised():
    generator = np.random.default_rng(0)
    trials, n, found = 300, 50, 0
    for _ in range(trials):
        hard = generator.lognormal(0, 1, n)
        runs = [
            {s: hard + generator.lognormal(0, 0.8, n) + generator.normal(0, 0.1) for s in range(2)}
            for _ in range(4)
        ]
        arms = {str(k): run for k, run in enumerate(runs[1:])}
        found += any(arm.found for arm in compare_measure(NATS, runs[0], arms, resamples=200).arms)
    assert found / trials <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / trials)


# -- several measures, and wrong input -------------------------------------------------------------------------------


def test_several_measures_and_the_primary_first():
    tables = [MeasureValues(measure, nats(1), {"b": nats(2, shift=-0.2)}) for measure in (ENTROPY, NATS)]
    compared = compare_measures(
        tables, primary="all.nats", smallest_differences={"all.nats": 0.05}, baseline_name="ce"
    )
    assert [(c.measure.name, c.primary, c.smallest_difference) for c in compared] == [
        ("all.nats", True, 0.05),
        ("all.entropy", False, None),
    ]
    assert "(the primary measure): b is better than ce" in compared[0].verdict
    assert [c.measure.name for c in compare_measures(tables)] == ["all.entropy", "all.nats"]


def test_measures_that_are_not_there():
    table = MeasureValues(NATS, nats(1), {"b": nats(2)})
    with pytest.raises(EvaluationError) as caught:
        compare_measures([table, table], primary="all.nat", smallest_differences={"x": 1.0})
    for part in (
        "all.nats is there twice",
        "primary measure 'all.nat' was not measured (did you mean",
        "the measure with a smallest difference 'x' was not measured",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("measure", "baseline", "arms", "smallest", "messages"),
    [
        (NATS, {}, {}, None, ["the baseline A has no run", "there is no arm"]),
        (NATS, {1: [1.0, 2.0]}, {"b": {2: [1.0, 2.0]}}, None, ["b shares no training seed with A (2 and 1)"]),
        (NATS, {1: [1.0, 2.0]}, {"b": {1: [1.0, 2.0, 3.0]}}, None, ["A, seed 1 (2,), b, seed 1 (3,)"]),
        (NATS, {1: [1.0, np.nan, np.inf]}, {"b": {1: [1.0, 2.0, 3.0]}}, None, ["2 values that are no finite numbers, the first of question no. 2"]),
        (NATS, {1: [1.0]}, {"b": {1: [1.0]}}, None, ["A, seed 1 has 1 questions", "b, seed 1 has 1 questions"]),
        (NATS, {1: [[1.0, 2.0]]}, {"b": {1: ["x", "y"]}}, None, ["of the shape (1, 2)", "must be a row of numbers"]),
        (NATS, {1: [-1.0, -2.0]}, {"b": {1: [1.0, 2.0]}}, None, ["A, seed 1 has a mean of -1.5, which must be at least 0"]),
        (ACCURACY, {1: [70.0, 80.0]}, {"b": {1: [1.0, 0.0]}}, None, ["a mean of 75, which must be between 0 and 1"]),
        (ACCURACY, {1: [1.0, 0.0]}, {"b": {1: [1.0, 0.0]}}, 1.5, ["below 1, got 1.5: it is a share, 0.01 for a point"]),
        (NATS, {1: [1.0, 2.0]}, {"b": {1: [1.0, 2.0]}}, 0.0, ["must be above 0, got 0.0"]),
        (NATS, {1: [1.0, 2.0]}, {"A": {1: [1.0, 2.0]}}, None, ["the baseline and an arm are both called 'A'"]),
    ],
)  # fmt: skip
def test_wrong_values(measure, baseline, arms, smallest, messages):
    baseline = {seed: np.array(values) for seed, values in baseline.items()}
    arms = {name: {seed: np.array(values) for seed, values in arm.items()} for name, arm in arms.items()}
    with pytest.raises(EvaluationError) as caught:
        compare_measure(measure, baseline, arms, 0.95, smallest)
    assert str(caught.value).startswith(f"{measure.name} cannot be compared: ")
    for message in messages:
        assert message in str(caught.value)


def test_a_confidence_that_is_none():
    with pytest.raises(IntervalError, match="confidence must be strictly between 0 and 1, got 95"):
        compare_measure(NATS, nats(1), {"b": nats(2)}, 95)
