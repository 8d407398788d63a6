"""What a line of results says of a training: steps and last values, as JSON can hold them."""

import json

import pytest

from mce_llm.studies.collecting import training_facts
from mce_llm.studies.errors import StudyError


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
