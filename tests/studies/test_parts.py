"""Some arms, seeds and evaluations of a study now, the others another time."""

import pytest

from helpers.studies import answers_outcome, result_line, write_study
from mce_llm.studies.parts import EVERYTHING, Part
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import Results


@pytest.fixture
def study(tmp_path):
    evaluations = {name: {"script": "gsm8k", "settings": {"data": "x"}} for name in ("answers", "more")}
    return read_study(write_study(tmp_path, evaluations=evaluations))


def stages(part, study, results):
    return {
        run.name: [stage.name for stage in run.stages if not stage.done] for run in part.runs(study, results)
    }


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (EVERYTHING, ["ce, seed 1", "mce, seed 1", "ce, seed 2", "mce, seed 2"]),
        (Part(arms=("mce",)), ["mce, seed 1", "mce, seed 2"]),
        (Part(seeds=(2,)), ["ce, seed 2", "mce, seed 2"]),
        (Part(arms=("mce",), seeds=(2, 1)), ["mce, seed 1", "mce, seed 2"]),
    ],
)
def test_arms_and_seeds_in_the_order_of_the_study(part, expected, study):
    assert list(stages(part, study, {})) == expected


def test_evaluations_of_another_time_are_known_and_not_run(study):
    part = Part(evaluations=("answers",))
    (run, *_) = part.runs(study, {})
    assert [stage.name for stage in run.stages] == ["training", "answers"]
    assert run.later == ("more",)
    results = Results(study.output, study.name)
    results.add(result_line("ce", 1, {"answers": answers_outcome([1, 0])}))
    (run, *others) = part.runs(study, results.read())
    assert run.finished
    assert run.later == ("more",)
    assert not any(other.finished for other in others)
    assert stages(EVERYTHING, study, results.read())["ce, seed 1"] == ["more"]
    assert stages(Part(evaluations=("more",)), study, results.read())["ce, seed 2"] == ["training", "more"]
    results.add(result_line("ce", 1, {"more": answers_outcome([0, 0])}))
    assert all(part.runs(study, results.read())[0].later == () for part in (part, EVERYTHING))


def test_what_a_study_does_not_have_is_named_with_what_is_near(study):
    found = Part(("cf",), (3,), ("anwers", "more")).problems(study)
    assert found == [
        "--only: there is no arm 'cf' (did you mean 'ce'?)",
        "--seeds: 3 is none of the study's seeds",
        "--evaluate: there is no evaluation 'anwers' (did you mean 'answers'?)",
    ]
    assert EVERYTHING.problems(study) == Part(("ce",), (1,), ("more",)).problems(study) == []
