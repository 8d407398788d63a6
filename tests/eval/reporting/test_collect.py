"""What is read of runs and trainings, and what is said of what is not there."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.evaluations import outcomes, write_run
from helpers.trainings import spectrum_record, write_training
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting.collect import Training, read_sources

A, B = outcomes(4, 1, 2, 3)


def test_an_evaluation_and_the_training_above_it(tmp_path):
    write_training(tmp_path / "ce")
    write_run(tmp_path / "ce" / "eval", A)
    (source,) = read_sources([tmp_path / "ce" / "eval"])
    assert source.is_evaluation
    assert [run.path.name for run in source.evaluations] == ["eval"]
    assert source.training.folder == tmp_path / "ce"


def test_a_training_brings_the_evaluations_below_it(tmp_path):
    write_training(tmp_path / "ce")
    write_run(tmp_path / "ce" / "eval" / "gsm8k", A)
    write_run(tmp_path / "ce" / "math", B, task="math")
    (source,) = read_sources([tmp_path / "ce"])
    assert not source.is_evaluation
    assert {run.data_title: run.path.name for run in source.evaluations} == {"GSM8K": "gsm8k", "MATH": "math"}
    assert source.training.folder == tmp_path / "ce"


def test_a_folder_of_evaluations_alone(tmp_path):
    write_run(tmp_path / "eval" / "gsm8k", A)
    write_run(tmp_path / "eval" / "math", B, task="math")
    (source,) = read_sources([tmp_path / "eval"])
    assert [run.data_title for run in source.evaluations] == ["GSM8K", "MATH"]
    assert source.training is None


def test_the_training_is_that_of_the_evaluated_model(tmp_path):
    write_training(tmp_path / "elsewhere")
    write_run(tmp_path / "results", A, model=str(tmp_path / "elsewhere"))
    (source,) = read_sources([tmp_path / "results"])
    assert source.training.folder == tmp_path / "elsewhere"


def test_a_training_without_evaluation_is_one_too(tmp_path):
    write_training(tmp_path / "ce")
    (source,) = read_sources([tmp_path / "ce"])
    assert source.evaluations == ()
    assert source.training.history


def nothing(place):
    return []


def absent(place):
    return [place / "absent"]


def empty(place):
    (place / "empty").mkdir()
    return [place / "empty"]


def the_same_twice(place):
    folder = write_run(place / "run", A)
    return [folder, place / "." / "run"]


def by_two_ways(place):
    write_training(place / "ce")
    return [place / "ce", write_run(place / "ce" / "eval", A)]


def a_training_twice(place):
    return [write_training(place / "ce")] * 2


def two_of_one_task(place):
    write_run(place / "ce" / "first", A)
    write_run(place / "ce" / "second", B)
    return [place / "ce"]


def unfinished(place):
    (place / "run").mkdir()
    (place / "run" / "items.rank0.jsonl").write_text("")
    return [place / "run"]


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (nothing, "nothing to report on"),
        (absent, "no such directory"),
        (empty, "holds no evaluation"),
        (the_same_twice, "are one run, .*takes each run once"),
        (by_two_ways, "are one run"),
        (a_training_twice, "are one run"),
        (two_of_one_task, "two evaluations on GSM8K, .*first and .*second"),
        (unfinished, "not finished"),
    ],
)
def test_folders_that_cannot_be_reported_on(tmp_path, make, pattern):
    with pytest.raises(EvaluationError, match=pattern):
        read_sources(make(tmp_path))


def test_curves_are_in_the_order_of_steps_and_later_entries_win(tmp_path):
    history = [
        {"step": 20, "eval_ce_loss": 0.4},
        {"step": 10, "eval_ce_loss": 0.5},
        {"step": 30, "eval_ce_loss": math.nan},
        {"step": 20, "eval_ce_loss": 0.3},
        {"step": 40, "eval_ce_loss": "0.1"},
        {"step": 50, "eval_ce_loss": True},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    points = Training.read(tmp_path).curve("eval_ce_loss")
    assert points[:2] == [(10, 0.5), (20, 0.3)]
    assert [step for step, _ in points] == [10, 20, 30]
    assert math.isnan(points[2][1])


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1e6, 1e6))))
def test_a_curve_has_each_step_once_with_its_last_value(entries):
    history = tuple({"step": step, "loss": value} for step, value in entries)
    points = Training(None, history, ()).curve("loss")
    assert points == sorted(dict(entries).items())


@pytest.mark.parametrize(
    ("state", "pattern"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "RecursionError"),
        ("{}", "KeyError"),
        ('{"log_history": [{"loss": 1}]}', "KeyError"),
    ],
)
def test_a_broken_log_is_said_to_be_broken(tmp_path, state, pattern):
    (tmp_path / "trainer_state.json").write_text(state)
    training = Training.read(tmp_path)
    assert training.history == ()
    assert any("no training curves" in text for text in training.missing)
    assert any(pattern in text for text in training.missing)


def test_spectra_that_are_not_there_are_missed(tmp_path):
    training = Training.read(write_training(tmp_path, spectra=False))
    assert any("did not record spectra" in text for text in training.missing)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 3, "hidden": {"eige',
        "[]",
        '{"hidden": {}}',
        '{"step": 3, "hidden": {"width": 2, "eigenvalues": [1, 1, 1], "effective_rank": 2.0}}',
        '{"step": 3, "hidden": {"width": 2, "eigenvalues": [], "effective_rank": 2.0}}',
        '{"step": "3", "hidden": {"width": 2, "eigenvalues": [1], "rest": 0.0, "effective_rank": 2.0}}',
        '{"step": 3, "hidden": {"width": 2, "eigenvalues": [1], "effective_rank": 2.0}}',
        '{"step": 3, "hidden": {"width": 2, "eigenvalues": [1], "rest": "0", "effective_rank": 2.0}}',
        '{"step": 3, "hidden": {"width": 2, "eigenvalues": ["1"], "rest": 0.0, "effective_rank": 2.0}}',
        "[" * 100_000,
    ],
)
def test_spectra_that_cannot_be_used_are_counted(tmp_path, line):
    write_training(tmp_path)
    with (tmp_path / "spectra.jsonl").open("a") as file:
        file.write(line)
    training = Training.read(tmp_path)
    assert [record["step"] for record in training.spectra] == [10, 20, 30]
    assert any("1 of 4 lines" in text for text in training.missing)


def test_a_checkpoint_has_the_spectra_up_to_its_step(tmp_path):
    write_training(tmp_path, steps=(10, 20, 30))
    (tmp_path / "spectra.jsonl").write_text(
        "".join(json.dumps(spectrum_record(n)) + "\n" for n in (10, 20, 30))
    )
    write_training(tmp_path / "checkpoint-20", steps=(10, 20), spectra=False)
    training = Training.read(tmp_path / "checkpoint-20")
    assert [record["step"] for record in training.spectra] == [10, 20]
    assert training.missing == ()
