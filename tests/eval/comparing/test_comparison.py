"""Comparisons of saved runs: what is computed, refused, noted and said."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.evaluations import outcomes
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.comparing.paired import PairedCounts, mcnemar_exact, tango_interval
from mce_llm.eval.comparing.power import smallest_detectable_difference
from mce_llm.eval.comparing.training_seeds import SeedSpread, bootstrap_interval
from mce_llm.eval.comparing.verdicts import points
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError, wilson_interval


def seeds_of(make, count, n=200, **settings):
    """Pairs in which B is better by about 10 points."""
    generator = np.random.default_rng(0)
    return [
        (
            make(f"seed{s}/ce", generator.random(n) < 0.6, **settings),
            make(f"seed{s}/mce", generator.random(n) < 0.7, **settings),
        )
        for s in range(count)
    ]


# -- one pair --------------------------------------------------------------------------------------------------------


def test_one_pair(pair):
    found = compare_runs([pair], resamples=500)
    (one,) = found.pairs
    assert (found.task, found.n, found.confidence, found.resamples, found.seed) == (
        "gsm8k",
        100,
        0.95,
        500,
        0,
    )
    assert one.counts == PairedCounts(60, 5, 20, 15)
    assert found.difference == one.difference == pytest.approx(0.15)
    assert found.interval == one.interval == tango_interval(5, 20, 100)
    assert (one.p_value, one.test) == (mcnemar_exact(5, 20), "exact McNemar")
    assert one.discordance == 0.25
    assert (one.a.label, one.a.correct, one.a.accuracy, one.a.interval) == (
        "ce",
        65,
        0.65,
        wilson_interval(65, 100),
    )
    assert (one.b.label, one.b.correct) == ("mce", 80)
    assert found.seeds is None
    assert found.detectable.unit == "questions"
    assert (
        found.detectable.needed < 100
    )  # 15 points of 25 discordant are found in more than four cases of five
    assert not found.notes
    assert not found.mismatches
    assert found.verdict == (
        "For these two trained models B is better than A by 15.0 points (95 % interval 5.6 to 24.9; exact McNemar "
        "p = 0.0041). It is one training seed each: nothing here knows of other seeds."
    )


def test_accuracies_have_the_intervals_of_statsmodels(pair):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    (one,) = compare_runs([pair], confidence=0.9).pairs
    for run in (one.a, one.b):
        expected = proportion.proportion_confint(run.correct, run.n, alpha=0.1, method="wilson")
        assert run.interval == pytest.approx(expected, abs=1e-12)


def test_exchanging_a_and_b_mirrors_the_outcome(pair):
    found, other = compare_runs([pair]), compare_runs([pair[::-1]])
    assert other.difference == -found.difference
    assert other.interval == (-found.interval.high, -found.interval.low)
    assert other.pairs[0].p_value == found.pairs[0].p_value
    assert other.detectable == found.detectable
    assert [item.index for item in other.lost] == [item.index for item in found.won]
    assert other.verdict == found.verdict.replace("B is better than A", "A is better than B")


def test_confidence_is_that_of_intervals_tests_and_power(pair):
    found = compare_runs([pair], confidence=0.999)
    assert found.interval == tango_interval(5, 20, 100, 0.999)
    assert found.pairs[0].a.interval == wilson_interval(65, 100, 0.999)
    assert found.detectable.alpha == 0.001
    assert found.detectable.difference > compare_runs([pair]).detectable.difference
    assert "do not tell A and B apart" in found.verdict
    assert "99.9 % interval" in found.verdict


def test_where_nothing_differs(make):
    a, _ = outcomes(60, 0, 0, 40)
    found = compare_runs([(make("ce", a), make("mce", a))])
    assert (found.difference, found.pairs[0].p_value, found.questions) == (0, 1, ())
    assert found.interval == tango_interval(0, 0, 100)
    assert (found.detectable.difference, found.detectable.needed) == (None, None)
    assert "no difference would be found in four cases of five" in found.verdict


def test_the_papers_claim_may_or_may_not_be_shown(make):
    """The same two accuracies, 69.1 % and 72.3 %, with few and with many questions answered unlike."""
    few, many = outcomes(800, 112, 153, 254), outcomes(680, 232, 273, 134)
    shown = compare_runs([(make("a", few[0]), make("b", few[1]))])
    open_ = compare_runs([(make("c", many[0]), make("d", many[1]))])
    assert shown.difference == open_.difference == pytest.approx(0.031, abs=1e-3)
    assert "For these two trained models B is better than A by 3.1 points" in shown.verdict
    assert "These runs do not tell A and B apart: B minus A is +3.1 points" in open_.verdict
    least = smallest_detectable_difference(1319, 505 / 1319)
    assert (
        f"a true difference below {points(least)} points would be missed in more than one case"
        in open_.verdict
    )
    assert open_.detectable.needed > 1319


def test_questions_won_and_lost(pair):
    found = compare_runs([pair])
    assert [item.index for item in found.won] == list(range(65, 85))
    assert [item.index for item in found.lost] == list(range(60, 65))
    first = found.won[0]
    assert (first.won, first.lost, first.a, first.b) == (1, 0, (0.0,), (1.0,))
    assert (first.question, first.gold) == ("How many are 65 and 65?", "#### 130")
    assert (first.predicted_a, first.predicted_b) == (("131",), ("130",))


def test_the_outcome_is_json(pair):
    found = compare_runs([pair], resamples=500)
    back = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert back["interval"] == list(found.interval)
    assert back["pairs"][0]["counts"] == {"both": 60, "only_a": 5, "only_b": 20, "neither": 15}
    assert len(back["questions"]) == 25
    assert back["verdict"] == found.verdict


# -- several samples a question --------------------------------------------------------------------------------------


def test_several_samples(make):
    generator = np.random.default_rng(0)
    a, b = generator.random((80, 4)) < 0.5, generator.random((80, 4)) < 0.7
    found = compare_runs([(make("ce", a), make("mce", b))])
    (one,) = found.pairs
    assert one.counts is None
    assert one.test == "exact sign-flip test"
    assert found.interval_method == "Student's t over questions"
    assert found.difference == pytest.approx(b.mean() - a.mean(), abs=1e-12)
    assert one.a.correct == a.sum()
    assert one.a.num_samples == 4
    assert one.discordance == (a.sum(1) != b.sum(1)).mean()
    # Against scipy's t interval over questions, and the normal approximation of the same test.
    differences = b.mean(1) - a.mean(1)
    error = differences.std(ddof=1) / np.sqrt(80)
    assert found.interval == pytest.approx(
        (differences.mean() - 1.9905 * error, differences.mean() + 1.9905 * error), rel=1e-4
    )
    assert found.detectable.difference == pytest.approx(2.8016 * error, rel=1e-4)
    assert found.detectable.method == "normal approximation"
    assert "exact sign-flip test p" in found.verdict


def test_unequal_numbers_of_samples(make):
    """They are a difference in decoding; where that is allowed, shares are compared."""
    a, b = outcomes(30, 5, 15, 10)
    runs = make("ce", a), make("mce", np.stack([b] * 3, axis=1))
    with pytest.raises(EvaluationError, match="num_samples: 1 in ce, 3 in mce"):
        compare_runs([runs])
    found = compare_runs([runs], allow_differences=True)
    assert found.difference == pytest.approx(10 / 60)
    # Three equal samples are one: the sums that are counted are the same.
    assert found.pairs[0].p_value == pytest.approx(mcnemar_exact(5, 15), rel=1e-10)


# -- several seeds ---------------------------------------------------------------------------------------------------


def test_several_seeds(make):
    pairs = seeds_of(make, 3)
    found = compare_runs(pairs, resamples=500, seed=7)
    table = np.array([np.array(b.scores) - np.array(a.scores) for a, b in pairs])
    spread = SeedSpread.of(table)
    assert found.difference == pytest.approx(table.mean())
    assert found.interval == spread.interval()
    assert found.bootstrap == bootstrap_interval(table, 0.95, 500, 7)
    assert found.seeds.seeds == 3
    assert found.seeds.differences == pytest.approx(table.mean(axis=1))
    assert found.seeds.sd == pytest.approx(table.mean(axis=1).std(ddof=1))
    assert found.detectable.unit == "pairs of seeds"
    assert found.detectable.difference == spread.smallest_detectable_difference()
    for pair, (a, b) in zip(found.pairs, pairs, strict=True):
        assert pair == replace(compare_runs([(a, b)]).pairs[0], a=pair.a, b=pair.b)
    assert [pair.a.label for pair in found.pairs] == ["seed0/ce", "seed1/ce", "seed2/ce"]
    assert "trained models" not in found.verdict


def test_questions_are_counted_over_seeds(make):
    rows = {"a0": [0, 1, 0, 1, 1], "b0": [1, 0, 1, 1, 0], "a1": [0, 1, 1, 0, 0], "b1": [1, 0, 0, 0, 0]}
    runs = {name: make(name, np.array(row, dtype=bool)) for name, row in rows.items()}
    found = compare_runs([(runs["a0"], runs["b0"]), (runs["a1"], runs["b1"])])
    assert [(q.index, q.won, q.lost) for q in found.questions] == [(0, 2, 0), (2, 1, 1), (4, 0, 1), (1, 0, 2)]
    assert [q.index for q in found.won] == [0]
    assert [q.index for q in found.lost] == [1, 4]
    assert any("third pair" in note.text for note in found.notes)


def test_seeds_that_differ_are_not_called_a_difference(make):
    """Two seeds of opposite sign, each of which alone would be significant."""
    up, down = outcomes(60, 2, 20, 18), outcomes(60, 20, 2, 18)
    pairs = [(make("a0", up[0]), make("b0", up[1])), (make("a1", down[0]), make("b1", down[1]))]
    found = compare_runs(pairs)
    assert max(pair.p_value for pair in found.pairs) < 0.001
    assert "These runs do not tell A and B apart: B minus A is 0.0 points" in found.verdict
    assert "2 seeds that vary like these" in found.verdict


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence must be strictly between 0 and 1, got 95"),
        ({"resamples": 3}, "resamples must be at least 100, got 3"),
    ],
)
def test_bad_options(pair, options, message):
    with pytest.raises(IntervalError, match=message):
        compare_runs([pair], **options)
