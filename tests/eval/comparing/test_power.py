"""Power of McNemar's exact test against its definition and against simulation."""

import math
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.eval.comparing.paired import mcnemar_exact
from mce_llm.eval.comparing.power import mcnemar_power, questions_needed, smallest_detectable_difference
from mce_llm.eval.intervals import IntervalError


def power_by_definition(n, discordance, difference, alpha):
    """All outcomes of n questions with their probability, and the test itself for each."""
    better, worse = (discordance + difference) / 2, (discordance - difference) / 2
    total = 0.0
    for m in range(n + 1):
        for lost in range(m + 1):
            if lost < m - lost and mcnemar_exact(lost, m - lost) <= alpha:
                ways = math.comb(n, m) * math.comb(m, lost)
                total += ways * (1 - discordance) ** (n - m) * worse**lost * better ** (m - lost)
    return total


@pytest.mark.parametrize(
    ("n", "discordance", "difference", "alpha"),
    [
        (25, 0.4, 0.2, 0.05),
        (40, 0.2, 0.2, 0.05),
        (30, 0.9, 0.0, 0.1),
        (12, 1.0, 0.6, 0.05),
        (5, 0.5, 0.5, 0.05),
    ],
)
def test_against_the_definition(n, discordance, difference, alpha):
    found = mcnemar_power(n, discordance, difference, alpha)
    # Outcomes of probability 1e-12 together are left out.
    assert found == pytest.approx(power_by_definition(n, discordance, difference, alpha), abs=1e-11)
    assert mcnemar_power(n, discordance, -difference, alpha) == found


def test_the_level_may_be_hit_exactly():
    """At alpha = 1/16, five discordant questions of one side have p = 1/16 and are rejected."""
    assert mcnemar_power(5, 1.0, 1.0, alpha=0.0625) == 1
    assert mcnemar_power(5, 1.0, 1.0, alpha=0.0624) == 0


def test_against_simulation():
    n, discordance, difference = 1319, 0.2, 0.031
    generator = np.random.default_rng(0)
    chances = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    outcomes = generator.multinomial(n, chances, size=20_000)
    p_value = cache(mcnemar_exact)
    found = np.mean([b > a and p_value(a, b) <= 0.05 for b, a, _ in outcomes.tolist()])
    # Its standard error is 0.0033.
    assert mcnemar_power(n, discordance, difference) == pytest.approx(found, abs=0.012)


def test_the_papers_claim():
    """A difference of 3.1 points on 1,319 questions is found in two cases of three, if a fifth are discordant."""
    assert mcnemar_power(1319, 0.2, 0.031) == pytest.approx(0.69, abs=0.01)
    assert smallest_detectable_difference(1319, 0.2) == pytest.approx(0.0351, abs=1e-4)
    assert questions_needed(0.031, 0.2) == pytest.approx(1687, abs=5)


def test_it_is_quick():
    begin = time.process_time()
    smallest_detectable_difference(1319, 0.25)
    assert time.process_time() - begin < 1  # of this process alone


@settings(max_examples=30)
@given(
    st.integers(10, 3000),
    st.floats(0.01, 1),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_the_smallest_difference_is_where_the_power_is_reached(n, discordance, alpha, power):
    least = smallest_detectable_difference(n, discordance, alpha, power)
    if least is None:
        assert mcnemar_power(n, discordance, discordance, alpha) < power
    else:
        assert 0 < least <= discordance
        assert mcnemar_power(n, discordance, least, alpha) >= power
        assert mcnemar_power(n, discordance, least - 2e-9, alpha) < power


def test_what_cannot_be_reached():
    """Fewer than six discordant questions never reach p ≤ 0.05, whoever wins them."""
    assert smallest_detectable_difference(1319, 0.003) is None
    assert smallest_detectable_difference(5, 1.0) is None
    assert smallest_detectable_difference(6, 1.0) == pytest.approx(2 * 0.8 ** (1 / 6) - 1, abs=1e-8)
    assert smallest_detectable_difference(1319, 0.0) is None
    assert mcnemar_power(1319, 0.0, 0.0) == 0


@given(st.floats(0.02, 0.9), st.floats(0.1, 1))
@settings(max_examples=25)
def test_the_power_grows_with_the_difference(discordance, share):
    steps = np.linspace(0, share * discordance, 6)
    powers = [mcnemar_power(500, discordance, float(step)) for step in steps]
    assert powers == sorted(powers)
    assert powers[0] <= 0.025 + 1e-12


@pytest.mark.parametrize(
    ("difference", "discordance"),
    [(0.031, 0.2), (0.1, 0.12), (0.2, 0.2), (1.0, 1.0), (0.002, 0.3), (0.3, 0.9)],
)
def test_so_many_questions_suffice_and_fewer_do_not(difference, discordance):
    n = questions_needed(difference, discordance)
    assert questions_needed(-difference, discordance) == n
    assert mcnemar_power(n, discordance, difference) >= 0.8
    fewer = n - max(1, n // 1000)
    # A thousandth fewer; teeth of the exact power are smaller than what that costs.
    assert mcnemar_power(fewer, discordance, difference) < 0.8


def test_what_no_number_of_questions_finds():
    assert questions_needed(0.0, 0.2) is None
    assert questions_needed(0.0, 0.0) is None
    assert questions_needed(1e-4, 0.2) is None  # 15 million


def test_the_tails_that_are_left_out_are_small():
    """At a large n only a window of discordant counts is summed; its probability is 1 but for 1e-12."""
    assert mcnemar_power(200_000, 0.3, 0.29) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (mcnemar_power, (0, 0.2, 0.1), "n must be an integer of at least 1, got 0"),
        (mcnemar_power, (13.5, 0.2, 0.1), "n must be an integer of at least 1, got 13.5"),
        (
            mcnemar_power,
            (100, 20, 3.1),
            "discordance must be between 0 and 1, got 20; it is a share, not points",
        ),
        (mcnemar_power, (100, 0.2, 0.3), "must be at most the discordance of 0.2, got 0.3"),
        (mcnemar_power, (100, 0.2, float("nan")), "must be at most the discordance of 0.2, got nan"),
        (mcnemar_power, (100, 0.2, 0.1, 0), "alpha must be strictly between 0 and 1, got 0"),
        (
            smallest_detectable_difference,
            (100, 0.2, 0.05, 80),
            "power must be strictly between 0 and 1, got 80",
        ),
        (questions_needed, (0.3, 0.2), "must be at most the discordance of 0.2, got 0.3"),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(IntervalError, match=message):
        function(*arguments)
