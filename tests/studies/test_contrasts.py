"""Arms held against each other: a family of their own, corrected for as many as the study names."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.studies import likelihood_outcome, result_line, write_study
from mce_llm.eval.comparing.measure_comparison import compare_measure
from mce_llm.eval.comparing.measures import MEASURES
from mce_llm.eval.comparing.p_values import holm
from mce_llm.studies.comparing import compare_study
from mce_llm.studies.contrasts import compare_contrasts
from mce_llm.studies.definition import Contrast
from mce_llm.studies.errors import StudyError
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RunResult
from mce_llm.studies.tables import markdown, study_tables

MEASURE = MEASURES["numbers.nats"]
ARMS = {
    "ce": {"settings": {"matrix_weight": 0}},
    "mce": {"settings": {"matrix_weight": 1}},
    "half": {"settings": {"matrix_weight": 0.5}},
    "late": {"settings": {"matrix_weight": 2}, "seeds": [3, 4]},
}
CONTRASTS = [{"arm": "mce", "against": "half"}, {"arm": "late", "against": "mce"}]
PLACE = {
    "arms": ARMS,
    "seeds": [1, 2, 3, 4],
    "evaluations": {"likely": {"script": "likelihood"}},
    "primary": {"measure": "numbers.nats", "smallest_difference": 0.05},
}


@pytest.fixture
def values():
    random = np.random.default_rng(1)
    questions = random.gamma(2, 0.5, 40)
    return {
        arm: {seed: np.abs(questions - better + random.normal(0, 0.02, 40)) for seed in seeds}
        for arm, better, seeds in (
            ("ce", 0.0, (1, 2, 3, 4)), ("half", 0.05, (1, 2, 3, 4)), ("mce", 0.1, (1, 2, 3, 4)), ("late", 0.1, (3, 4)),
        )
    }  # fmt: skip


def contrasts(values, pairs, smallest=None):
    return compare_contrasts(
        [Contrast(*pair) for pair in pairs], MEASURE, values, confidence=0.95, smallest_difference=smallest
    )


def test_each_is_a_comparison_of_two_arms_corrected_for_all(values):
    pairs = [("mce", "half"), ("late", "mce"), ("late", "half")]
    found = contrasts(values, pairs, smallest=0.01)
    alone = [
        compare_measure(MEASURE, values[against], {arm: values[arm]}, baseline_name=against).arms[0]
        for arm, against in pairs
    ]
    assert [contrast.against for contrast in found] == [against for _, against in pairs]
    for contrast, single, p_holm in zip(found, alone, holm([arm.p_value for arm in alone]), strict=True):
        for part in (
            "difference",
            "interval",
            "seeds",
            "p_value",
            "seed_differences",
            "value",
            "baseline_value",
        ):
            assert getattr(contrast.result, part) == getattr(single, part)
        assert contrast.result.p_holm == p_holm
        assert contrast.result.simultaneous.low < single.interval.low
        assert contrast.result.simultaneous.high > single.interval.high
    assert found[0].result.finding == "better"
    assert found[0].result.weight == "matters"
    assert "simultaneous over 3 contrasts" in found[0].result.verdict
    assert found[1].result.finding == "not told apart"


def test_one_that_is_not_finished_counts_all_the_same(values):
    both = contrasts(values, [("mce", "half"), ("late", "mce")])
    del values["late"]
    (left,) = contrasts(values, [("mce", "half"), ("late", "mce")])
    assert left.result.p_holm == min(1.0, 2 * left.result.p_value)
    assert left.result.simultaneous == both[0].result.simultaneous
    assert contrasts(values, []) == ()


def test_a_barely_significant_one_is_not_found_among_many():
    random = np.random.default_rng(3)
    base = {seed: random.gamma(2, 0.5, 60) for seed in (1, 2, 3)}
    for shift in np.linspace(0.01, 0.4, 40):
        values = {
            "a": base,
            "b": {seed: np.abs(of + shift + random.normal(0, 0.4, 60)) for seed, of in base.items()},
        }
        (alone,) = contrasts(values, [("b", "a")])
        if 0.02 < alone.result.p_value < 0.05:
            break
    else:
        pytest.fail("no shift is barely significant")
    among = contrasts(values, [("b", "a"), ("c", "a"), ("d", "a")])[0]
    assert alone.result.found
    assert not among.result.found


def test_a_study_tells_them_in_every_form(tmp_path, values):
    study = read_study(write_study(tmp_path, **PLACE, contrasts=CONTRASTS))
    results = {}
    for arm, seeds in values.items():
        for seed, nats in seeds.items():
            line = result_line(
                arm, seed, {"likely": likelihood_outcome(nats.round(4).tolist(), model=f"{arm}{seed}")}
            )
            results[arm, seed] = RunResult(line, line["evaluations"], len(results) + 1)
    compared = compare_study(study, results)
    first, second = compared.contrasts
    assert (first.result.name, first.against) == ("mce", "half")
    assert second.result.seeds == (3, 4)
    text = markdown(compared, study_tables(compared, results, every=False))
    assert "arms against each other" in text
    assert "| late against mce | 2 |" in text
    assert first.result.verdict in text
    assert [found["against"] for found in compared.to_dict()["contrasts"]] == ["half", "mce"]
    without = compare_study(replace(study, contrasts=()), results)
    assert without.contrasts == ()
    assert "each other" not in markdown(without, study_tables(without, results, every=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mce", "contrasts must be a list"),
        ([{"arm": "mce", "agains": "half"}], "contrast 1 has no 'agains'.*did you mean 'against'"),
        ([{"arm": "mce", "against": "halve"}], "contrast 1: there is no arm 'halve'.*did you mean 'half'"),
        ([{"arm": "mce"}], "contrast 1: there is no arm None"),
        ([{"arm": "mce", "against": "mce"}], "contrast 1: mce is held against itself"),
        ([{"arm": "mce", "against": "ce"}], "contrast 1: every arm is held against the baseline anyway"),
        ([CONTRASTS[0], {"arm": "half", "against": "mce"}], "contrast 2: half and mce are there twice"),
        ([{"arm": "early", "against": "late"}], "contrast 1: early and late have no two seeds in common"),
    ],
)
def test_mistakes(tmp_path, given, message):
    arms = {**ARMS, "early": {"settings": {"matrix_weight": 3}, "seeds": [1, 2]}}
    with pytest.raises(StudyError, match=message):
        read_study(write_study(tmp_path, **{**PLACE, "arms": arms}, contrasts=given))
