"""What a line of results says of a training: steps and last values, as JSON can hold them, and what it was run with."""

import json
from dataclasses import replace

import pytest

from helpers.studies import result_line, write_study
from mce_llm.studies import child, collecting
from mce_llm.studies.collecting import launches_of, line_of, training_facts
from mce_llm.studies.errors import StudyError
from mce_llm.studies.planning import planned_runs
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RunResult


def write(folder, history, loss):
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": history}))
    (folder / "train_results.json").write_text(json.dumps({"train_loss": loss}))


def test_the_last_value_of_each_name(tmp_path):
    write(tmp_path, [{"loss": 2.0, "grad_norm": 1.0}, {"loss": 1.0}, {"eval_loss": 3.0}], 1.5)
    assert training_facts(tmp_path) == {
        "steps": 3,
        "logged": {"loss": 1.0, "grad_norm": 1.0, "eval_loss": 3.0},
        "train_loss": 1.5,
    }


def test_a_training_that_diverged_has_no_loss(tmp_path):
    """NaN is no JSON, and not equal to itself: a second line of the run would be taken for another training's."""
    write(tmp_path, [{"loss": float("inf"), "grad_norm": float("nan")}], float("nan"))
    facts = training_facts(tmp_path)
    assert facts == {"steps": 3, "logged": {"loss": None, "grad_norm": None}, "train_loss": None}
    json.dumps(facts, allow_nan=False)


def test_no_record_is_no_finished_training(tmp_path):
    with pytest.raises(StudyError, match="has no record of a finished training"):
        training_facts(tmp_path)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A study, and a run of it that has been trained; (study, run, what sets the versions that are installed)."""
    study = read_study(write_study(tmp_path))
    run = planned_runs(study, {})[0]
    run.stages[0].folder.mkdir(parents=True)
    write(run.stages[0].folder, [], 1.5)

    def install(version):
        for module in (child, collecting):
            monkeypatch.setattr(module, "installed_versions", lambda _: {"torch": version})

    return study, replace(run, stages=run.stages[:1]), install


def line(study, run):
    return line_of(study, run, {}, {}, {})


def test_versions_are_those_that_the_training_was_run_with(trained):
    study, run, install = trained
    journal = launches_of(study, run)
    install("2.13")
    journal.begin("training", 1.0)
    install("2.15")
    journal.begin("answers", 2.0)
    assert line(study, run)["versions"] == {"torch": "2.13"}
    install("2.14")
    journal.begin("training", 3.0)
    assert line(study, run)["versions"] == {"torch": "2.13 and 2.14"}


def test_a_journal_without_versions_leaves_those_of_now(trained):
    study, run, install = trained
    install("2.15")
    path = launches_of(study, run).path
    path.parent.mkdir(parents=True)
    path.write_text('{"stage": "training", "started": 1.0, "code": {"source": "s"}}\n')
    assert line(study, run)["versions"] == {"torch": "2.15"}


def test_a_later_line_of_a_run_has_the_versions_of_its_first(trained):
    study, run, install = trained
    install("2.15")
    first = result_line(run.arm.name, run.seed, {})
    assert line(study, replace(run, result=RunResult(first, {}, 1)))["versions"] == first["versions"]
