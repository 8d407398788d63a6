"""Several arms against one baseline: corrected for their number, and shown both ways."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.comparing.p_values import holm
from mce_llm.eval.comparing.paired import mcnemar_exact
from mce_llm.eval.comparing.pairing import Arm, Arrangement, arrange_groups
from mce_llm.eval.comparing.several_arms import arm_names, compare_arms
from mce_llm.eval.comparing.training_seeds import SeedSpread
from mce_llm.eval.errors import EvaluationError


def test_any_false_finding_is_as_rare_as_promised():
    """Three arms that are no better than the baseline that they share: 0.05 of the trials at most, with Holm alone."""
    generator = np.random.default_rng(0)
    any_alone = any_corrected = 0
    trials = 1500
    for _ in range(trials):
        ability = generator.random(150)
        baseline, *arms = (generator.random(150) < ability for _ in range(4))
        p_values = [mcnemar_exact(int((baseline & ~arm).sum()), int((arm & ~baseline).sum())) for arm in arms]
        any_alone += min(p_values) <= 0.05
        any_corrected += min(holm(p_values)) <= 0.05
    assert any_corrected / trials <= 0.05
    assert any_alone / trials > 0.06  # without correction there would be more than promised


def test_any_false_finding_over_seeds_is_as_rare_as_promised():
    """The same with three seeds of each, which differ by 2 points from one training to the next."""
    generator = np.random.default_rng(1)
    any_corrected = 0
    trials = 150
    for _ in range(trials):
        ability = generator.random(200)

        def scores(ability=ability):
            shift = generator.normal(0, 0.02, (3, 1))
            return (generator.random((3, 200)) < np.clip(ability + shift, 0, 1)).astype(float)

        baseline = scores()
        any_corrected += min(holm([SeedSpread.of(scores() - baseline).p_value() for _ in range(3)])) <= 0.05
    assert any_corrected <= 14  # of 150 at 5 %: more has a probability of 1 %


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.4))
def test_the_p_value_over_seeds_is_that_of_the_interval(seed, better):
    generator = np.random.default_rng(seed)
    spread = SeedSpread.of(
        (generator.random((3, 40)) < 0.5 + better) - (generator.random((3, 40)) < 0.5).astype(float)
    )
    p_value = spread.p_value()
    for alpha in (0.01, 0.05, 0.3):
        if abs(p_value - alpha) > 1e-5:
            low, high = spread.interval(1 - alpha)
            assert (not low <= 0 <= high) == (p_value < alpha)


@pytest.fixture
def arms(make):
    generator = np.random.default_rng(4)
    runs = {
        name: [
            make(f"{name}-{s}", generator.random(300) < accuracy, model=f"{name}{s}") for s in range(seeds)
        ]
        for name, accuracy, seeds in (("ce", 0.5, 1), ("mce", 0.68, 1), ("emo", 0.5, 1))
    }
    return arrange_groups(runs["ce"], [("new", runs["mce"]), (None, runs["emo"])])


def test_both_values_of_each_arm(arms):
    found = compare_arms(arms, resamples=100)
    assert [arm.name for arm in found.arms] == ["new", "emo-0"]
    assert [arm.comparison.sides for arm in found.arms] == [("A", "B"), ("A", "C")]
    for arm, of_arm in zip(found.arms, arms.arms, strict=True):
        alone, wide = (compare_runs(arms.pairs(of_arm), confidence=c, resamples=100) for c in (0.95, 0.975))
        assert (arm.comparison.interval, arm.p_value) == (alone.interval, alone.p_value)
        assert arm.simultaneous == wide.interval
        assert arm.detectable.alpha == pytest.approx(0.025)
    assert [arm.p_holm for arm in found.arms] == holm([arm.p_value for arm in found.arms])
    better, alike = found.arms
    assert better.found
    assert not alike.found
    assert better.comparison.verdict.startswith("For these two trained models B is better than A by")
    assert "corrected for 2 arms (Holm) p " in better.comparison.verdict
    assert "do not tell A and C apart: C minus A is" in alike.comparison.verdict
    assert found.verdict == (
        "B (new) is better than A (ce-0); C (emo-0) is not told apart from A (ce-0). The probability of any false finding "
        "among 2 arms is at most 5 % (Holm)."
    )
    assert json.loads(json.dumps(found.to_dict()))["arms"][0]["p_holm"] == better.p_holm


def test_what_one_arm_shows_may_not_be_enough_for_two(make):
    """p = 0.04 alone is 0.08 of two."""
    a = [True] * 100 + [False] * 100
    b = [False] * 7 + [True] * 93 + [True] * 18 + [False] * 82
    runs = [make(name, right, model=name) for name, right in (("ce", a), ("mce", b), ("same", a))]
    found = compare_arms(arrange_groups(runs[:1], [(None, runs[1:2]), (None, runs[2:])]), resamples=100)
    first = found.arms[0]
    assert first.p_value < 0.05 < first.p_holm
    assert not first.found
    assert first.simultaneous.low < first.comparison.interval.low


def test_names_of_arms(make):
    def arm(*names, name=None, method=None):
        return Arm(name, tuple(make(n, [True, False]) for n in names), method)

    def named(*arms):
        return arm_names(Arrangement(arms[0], arms[1:], ""))

    assert named(arm("ce-1", "ce-2"), arm("mce-seed1", "mce-seed2"), arm("x/1", "x/2", name="mine")) == [
        "ce",
        "mce",
        "mine",
    ]
    assert named(arm("1", "2", method="CE"), arm("3", "4")) == ["CE", "B"]


def test_more_arms_than_letters(make):
    runs = [make(f"r{k}", [True, False]) for k in range(27)]
    with pytest.raises(EvaluationError, match="26 arms are given; the most are 25"):
        compare_arms(arrange_groups(runs[:1], [(None, [run]) for run in runs[1:]]))
