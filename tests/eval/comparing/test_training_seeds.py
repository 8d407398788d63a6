"""Seeds × questions: variance components by hand, laws of the interval, its coverage, the bootstrap, power."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mce_llm.eval.comparing.paired import least_half_width
from mce_llm.eval.comparing.training_seeds import SeedSpread, bootstrap_interval
from mce_llm.eval.intervals import IntervalError

QUICK = ((2, 0.2), (3, 0.02), (3, 0.2))
"""Of the settings whose coverage is simulated, (seeds, sd of the seeds) of those in the quick tests."""


def crossed(generator, seeds, questions, *, mean=0.03, seed_sd=0.01, question_sd=0.2, rest_sd=0.3):
    """Differences with normal seeds, questions and rest."""
    return (
        mean
        + generator.normal(0, seed_sd, (seeds, 1))
        + generator.normal(0, question_sd, (1, questions))
        + generator.normal(0, rest_sd, (seeds, questions))
    )


def answers(seed=0, seeds=3, questions=200):
    generator = np.random.default_rng(seed)
    return generator.choice([-1.0, 0.0, 1.0], p=[0.08, 0.8, 0.12], size=(seeds, questions))


def test_mean_squares_by_hand():
    spread = SeedSpread.of(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, -1.0]]))
    # Seeds' means 1/3 and 1/3; questions' means 1, 1/2, -1/2; what is left: 0, ∓1/2, ±1/2.
    assert spread.mean == pytest.approx(1 / 3)
    assert spread.seed_mean_square == pytest.approx(0)
    assert spread.question_mean_square == pytest.approx(2 / 2 * (4 / 9 + 1 / 36 + 25 / 36))
    assert spread.residual_mean_square == pytest.approx(4 * 0.25 / 2)
    assert spread.observed_sd == 0
    assert spread.sd_by_chance == pytest.approx(math.sqrt(0.5 / 3))
    assert spread.question_variance == pytest.approx((7 / 6 - 0.5) / 2)


@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_the_parts_add_up_to_the_whole(seeds, questions, seed):
    table = answers(seed, seeds, questions)
    spread = SeedSpread.of(table)
    parts = (
        (seeds - 1) * spread.seed_mean_square
        + (questions - 1) * spread.question_mean_square
        + (seeds - 1) * (questions - 1) * spread.residual_mean_square
    )
    assert parts == pytest.approx(((table - table.mean()) ** 2).sum(), abs=1e-9)


def test_the_parts_are_found_again():
    generator = np.random.default_rng(0)
    spreads = [SeedSpread.of(crossed(generator, 4, 400, seed_sd=0.05)) for _ in range(300)]
    seed_variance = np.mean([(s.seed_mean_square - s.residual_mean_square) / 400 for s in spreads])
    # Its relative standard error over 300 tables of 4 seeds is √(2/3)/√300 = 5 %; three of them are allowed.
    assert seed_variance == pytest.approx(0.05**2, rel=0.15)
    assert np.mean([s.question_variance for s in spreads]) == pytest.approx(0.2**2, rel=0.03)
    assert np.mean([s.residual_mean_square for s in spreads]) == pytest.approx(0.3**2, rel=0.01)


@given(st.integers(2, 6), st.integers(2, 60), st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_exchanging_a_and_b_mirrors_everything(seeds, questions, seed, confidence):
    table = answers(seed, seeds, questions)
    low, high = SeedSpread.of(table).interval(confidence)
    # Sums in another order of signs differ by rounding.
    assert SeedSpread.of(-table).interval(confidence) == pytest.approx((-high, -low), abs=1e-12)


@given(st.integers(2, 6), st.integers(2, 60), st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_the_interval_is_never_narrower_than_for_these_models(seeds, questions, seed, confidence):
    table = answers(seed, seeds, questions)
    spread = SeedSpread.of(table)
    low, high = spread.interval(confidence)
    wider = spread.interval((1 + confidence) / 2)
    assert wider.low <= low <= spread.mean <= high <= wider.high
    of_means = stats.sem(table.mean(axis=0)) * stats.t.ppf((1 + confidence) / 2, questions - 1)
    assert high - spread.mean >= min(of_means * (1 - 1e-9), 1 - spread.mean)


def test_seeds_alone_give_students_interval():
    """Where questions do not matter, the interval is the t interval of the seeds' means."""
    means = np.array([0.02, 0.05, 0.035])
    table = np.repeat(means[:, None], 50_000, axis=1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert SeedSpread.of(table).interval() == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_questions_alone_give_students_interval():
    """Where seeds change nothing, it is the t interval over questions, however many seeds there are."""
    row = answers(seeds=1, questions=500)[0]
    expected = stats.ttest_1samp(row, 0).confidence_interval(0.95)
    assert SeedSpread.of(np.stack([row] * 4)).interval() == pytest.approx(
        (expected.low, expected.high), rel=1e-9
    )


def test_differences_that_are_all_zero_have_an_interval_with_a_width():
    half = least_half_width(100, 0.95)
    assert SeedSpread.of(np.zeros((3, 100))).interval() == (-half, half)


def covered(seeds, questions, repeats=1500, truth=0.03, **spread):
    generator = np.random.default_rng([seeds, questions])
    held = []
    for _ in range(repeats):
        interval = SeedSpread.of(crossed(generator, seeds, questions, mean=truth, **spread)).interval()
        held.append(interval.low <= truth <= interval.high)
    return np.mean(held)


_SETTINGS = [
    pytest.param(seeds, seed_sd, question_sd, marks=() if (seeds, seed_sd) in QUICK else pytest.mark.slow)
    for seeds in (2, 3, 5)
    for seed_sd in (0.0, 0.02, 0.2)
    for question_sd in (0.0, 0.3)
]


@pytest.mark.parametrize(("seeds", "seed_sd", "question_sd"), _SETTINGS)
def test_it_covers_at_nominal_or_above(seeds, seed_sd, question_sd):
    """Nominal 95 %; the standard error of 1,500 trials is 0.56 points, two and a half of them are allowed."""
    assert covered(seeds, 100, seed_sd=seed_sd, question_sd=question_sd) >= 0.95 - 0.014


def test_the_bootstrap_would_be_seen_to_fail():
    """A negative control for the test above: with three seeds the percentiles cover far less."""
    generator = np.random.default_rng(0)
    held = []
    for repeat in range(200):
        table = crossed(generator, 3, 100, seed_sd=0.2)
        low, high = bootstrap_interval(table, resamples=300, seed=repeat)
        held.append(low <= 0.03 <= high)
    assert np.mean(held) < 0.88


# -- bootstrap -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_of_one_seed_draws_questions():
    table = answers(seeds=1, questions=400)
    low, high = bootstrap_interval(table, resamples=20_000)
    mean, error = table.mean(), table.std() / math.sqrt(400)
    # A percentile of 20,000 drawings is off by a few hundredths of a standard error; sums here are multiples of 1/400.
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error + 1 / 400)


def test_the_bootstrap_draws_seeds_and_questions_independently():
    """The variance of a crossed bootstrap is known: with ν of n drawn from n, each part shrinks by (n−1)/n."""
    table = crossed(np.random.default_rng(1), 4, 50, seed_sd=0.1)
    seeds, questions = table.shape
    by_seed, by_question = table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_question[None] + table.mean()
    variance = by_seed.var() / seeds + by_question.var() / questions + rest.var() / (seeds * questions)
    low, high = bootstrap_interval(table, confidence=0.6827, resamples=40_000)
    # Half of a 68 % interval is one standard deviation where the mean is near to normal, as it is here to about 3 %.
    assert (high - low) / 2 == pytest.approx(math.sqrt(variance), rel=0.05)


def test_the_bootstrap_repeats_itself():
    table = answers()
    assert bootstrap_interval(table, seed=3) == bootstrap_interval(table, seed=3)
    assert bootstrap_interval(table, seed=3) != bootstrap_interval(table, seed=4)


def test_the_bootstrap_of_fractions():
    """Each question may have a difference of its own; then there are as many kinds as questions."""
    table = crossed(np.random.default_rng(2), 3, 300)
    low, high = bootstrap_interval(table, resamples=2000)
    assert low < table.mean() < high


# -- power -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "difference"), [(2, 0.25), (3, 0.06), (5, 0.04)])
def test_power_against_simulation(seeds, difference):
    """Whole tables drawn from normal parts of known size."""
    n, seed_sd, question_sd, rest_sd = 400, 0.01, 0.2, 0.3
    known = SeedSpread(
        seeds=seeds,
        questions=n,
        mean=0.0,
        seed_mean_square=n * seed_sd**2 + rest_sd**2,
        question_mean_square=seeds * question_sd**2 + rest_sd**2,
        residual_mean_square=rest_sd**2,
    )
    generator = np.random.default_rng(seeds)
    found = []
    for _ in range(1500):
        table = crossed(generator, seeds, n, mean=difference, seed_sd=seed_sd)
        found.append(SeedSpread.of(table).interval().low > 0)
    # The standard error is at most 1.3 points; two and a half of them are allowed.
    assert known.power(difference, seeds) == pytest.approx(np.mean(found), abs=0.033)
    assert 0.2 < np.mean(found) < 0.95  # where a wrong power would show


def test_the_smallest_difference_has_the_power_asked_for():
    spread = SeedSpread.of(crossed(np.random.default_rng(0), 3, 1319))
    for power in (0.5, 0.8):
        least = spread.smallest_detectable_difference(power=power)
        assert spread.power(least, 3) == pytest.approx(power, abs=1e-3)
    more = spread.smallest_detectable_difference(seeds=5)
    assert more < least
    assert SeedSpread.of(crossed(np.random.default_rng(0), 2, 4)).smallest_detectable_difference() is None


def test_seeds_needed():
    spread = SeedSpread.of(crossed(np.random.default_rng(0), 3, 1319))
    needed = spread.seeds_needed(0.03)
    assert spread.power(0.03, needed) >= 0.8 > spread.power(0.03, needed - 1)
    assert spread.seeds_needed(-0.03) == needed
    assert spread.seeds_needed(0.005) is None  # the questions alone are too few: 0.2/√1319 = 0.0055
    assert spread.seeds_needed(0.9) == 2


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(5, 60), st.integers(0, 2**32 - 1))
def test_power_grows_with_the_difference(seeds, questions, seed):
    spread = SeedSpread.of(answers(seed, seeds, questions))
    powers = [spread.power(step, seeds) for step in np.linspace(0, 1, 9)]
    assert powers == sorted(powers)
    assert spread.power(-0.4, seeds) == spread.power(0.4, seeds)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (SeedSpread.of, (np.zeros((1, 10)),), r"2 of each at least, got the shape \(1, 10\)"),
        (SeedSpread.of, (np.zeros((3, 1)),), r"2 of each at least, got the shape \(3, 1\)"),
        (SeedSpread.of, (np.zeros(10),), r"a table of seeds × questions, .* got the shape \(10,\)"),
        (bootstrap_interval, (np.zeros((0, 5)),), r"1 of each at least, got the shape \(0, 5\)"),
        (bootstrap_interval, (np.zeros((1, 5)), 95), "confidence must be strictly between 0 and 1, got 95"),
        (bootstrap_interval, (np.zeros((1, 5)), 0.95, 10), "resamples must be at least 100, got 10"),
        (
            SeedSpread.of(np.zeros((2, 2))).interval,
            (1.0,),
            "confidence must be strictly between 0 and 1, got 1.0",
        ),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(IntervalError, match=message):
        function(*arguments)
