"""How far a run is, by its log, and how long the rest may take, by the runs that are finished."""

import pytest

from helpers.studies import answers_outcome, result_line, write_study
from mce_llm.studies.estimating import Durations, duration_text, progress_of
from mce_llm.studies.planning import planned_runs
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RunResult


def finished(arm, training, evaluation, seed=1):
    outcome = {**answers_outcome([1]), "seconds": evaluation}
    line = result_line(arm, seed, {"answers": outcome}, training={"seconds": training})
    return RunResult(line, line["evaluations"], 1)


@pytest.mark.parametrize(
    ("text", "stage", "expected"),
    [
        ("$ x\nstep 3/20 · loss 1\nsaving\n", "training", (3, 20)),
        ("eval step 3/20 · loss 1\n", "training", None),
        ("GSM8K:  10%|# | 4/40 [00:01<00:09]\r 20%|## | 8/40 [00:02<00:08]\r", "answers", (8, 40)),
        ("nothing yet\n", "answers", None),
    ],
)
def test_the_last_line_that_says_it(text, stage, expected, tmp_path):
    (tmp_path / "log").write_text(text)
    assert progress_of(tmp_path / "log", stage) == expected


def test_an_arm_takes_as_long_as_itself_or_as_any(tmp_path):
    durations = Durations([finished("ce", 100, 10), finished("ce", 300, 0), finished("mce", 500, 20)])
    assert durations.expected("ce", "training") == 200
    assert durations.expected("ce", "answers") == 10  # 0 is not known
    assert durations.expected("half", "training") == 300
    assert durations.expected("half", "other") is None


def test_what_is_left_is_shared_by_the_jobs(tmp_path):
    study = read_study(write_study(tmp_path))
    result = finished("ce", 100, 10)
    runs = planned_runs(study, {("ce", 1): result})
    durations = Durations([result])
    assert durations.left(runs, 1) == 330
    assert durations.left(runs, 2) == 165
    spent = {("mce", 1, "training"): float("inf"), ("mce", 1, "answers"): 4.0}
    assert durations.left(runs, 1, spent) == 226
    assert Durations([]).left(runs, 1) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown yet"), (0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 5 min")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text
