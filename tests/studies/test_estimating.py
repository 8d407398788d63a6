"""How far a run is, by its log, and how long the rest may take, by the runs that are finished and by the pace of the others."""

import pytest

from helpers.studies import answers_outcome, result_line, write_study
from mce_llm.studies.estimating import Durations, Pace, Projection, duration_text, progress_of
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
    assert (
        durations.left(runs, 2) == 220
    )  # three runs: one of the two has the machine's half for itself at the end
    assert durations.left(runs, 5) == 110
    spent = {("mce", 1, "training"): float("inf"), ("mce", 1, "answers"): 4.0}
    assert durations.left(runs, 1, spent) == 226
    assert Durations([]).left(runs, 1) is None


def test_what_is_under_way_comes_first(tmp_path):
    study = read_study(write_study(tmp_path))
    result = finished("ce", 100, 10)
    runs = planned_runs(study, {("ce", 1): result})
    last = runs[-1]
    spent = {(last.arm.name, last.seed, "training"): float("inf"), (last.arm.name, last.seed, "answers"): 9.0}
    # 1 second on one of two, then the two others side by side.
    assert Durations([result]).left(runs, 2, spent) == 111


def test_a_slower_machine_is_noticed_by_its_pace(tmp_path):
    study = read_study(write_study(tmp_path))
    result = finished("ce", 100, 10)
    runs = planned_runs(study, {("ce", 1): result})
    durations = Durations([result])
    durations.project("mce", 1, "training", Projection(whole=300, left=60))
    assert durations.expected("ce", "training") == 300
    assert durations.expected("ce", "answers") == 30
    assert durations.left(runs, 1, {("mce", 1, "training"): 200.0}) == 60 + 30 + 2 * 330
    durations.add("mce", 1, "training", 250)  # it was resumed: a whole one takes as long as its pace says
    assert durations.expected("mce", "training") == 300
    durations.add("mce", 1, "answers", 50)
    assert durations.expected("ce", "answers") == 40  # between threefold and fivefold
    assert durations.expected("mce", "answers") == 50


def test_the_first_training_tells_of_the_others_of_its_kind(tmp_path):
    durations = Durations([])
    durations.project("mce", 1, "training", Projection(whole=300, left=60))
    assert durations.expected("ce", "training") == 300
    assert durations.expected("ce", "answers") is None


def test_a_pace_is_that_between_changes():
    pace = Pace()
    assert pace.seen(50, 100, 30.0) is None  # resumed in the middle: nothing is known of the first fifty
    assert pace.seen(50, 100, 39.0) is None
    assert pace.seen(51, 100, 40.0) is None  # the first change: when the step before it was done is not known
    assert pace.seen(52, 100, 44.0) is None  # too little to go by
    assert pace.seen(61, 100, 60.0) == Projection(whole=200.0, left=78.0)
    assert pace.seen(61, 100, 64.0) == Projection(whole=200.0, left=74.0)
    assert pace.seen(61, 100, 999.0) == Projection(whole=200.0, left=0.0)
    assert pace.seen(100, 100, 1000.0).left == 0.0


def test_a_pace_begins_again_where_a_program_does():
    pace = Pace()
    for done, seconds in ((50, 30.0), (60, 31.0), (70, 32.0)):
        pace.seen(done, 100, seconds)
    assert pace.seen(10, 100, 60.0) is None
    assert pace.seen(20, 100, 70.0) is None
    assert pace.seen(30, 100, 80.0) == Projection(whole=100.0, left=70.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown yet"), (0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 5 min")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text
