"""Settings of the monitoring: defaults, and every problem of theirs said at once before anything slow."""

import re

import pytest
import transformers
from transformers.integrations import TensorBoardCallback

from helpers.models import make_model
from helpers.monitored import arguments, trainer_for
from mce_llm.lm import MatrixLossConfig, MatrixLossConfigError, MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.training import monitoring


def test_defaults(tmp_path):
    args = MatrixTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.report_to == ["tensorboard"]
    assert (args.monitor_steps, args.monitor_positions, args.sample_steps) == (100, 512, 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("none", []), (["none"], []), ("tensorboard", ["tensorboard"]), (["tensorboard"], ["tensorboard"])],
)
def test_report_to_as_the_stock_arguments_take_it(tmp_path, given, expected):
    assert arguments(tmp_path, report_to=given).report_to == expected


def test_report_to_all_is_whatever_is_installed(tmp_path):
    assert "tensorboard" in arguments(tmp_path, report_to="all").report_to


BAD = [
    (
        {"report_to": "tensorbord"},
        r"report_to: unknown tracker 'tensorbord' \(did you mean 'tensorboard'\?\)",
    ),
    ({"report_to": "xyzzy"}, r"unknown tracker 'xyzzy'; known are .*wandb"),
    ({"report_to": ["tensorboard", "wanbd"]}, r"unknown tracker 'wanbd' \(did you mean 'wandb'\?\)"),
    ({"report_to": ["tensorboard", "none"]}, "report_to: none stands alone"),
    ({"report_to": None}, "report_to must be a tracker, a list of trackers, all or none, got None"),
    ({"monitor_steps": -1}, "monitor_steps must be a number of steps, 0 or more .* got -1"),
    ({"monitor_steps": True}, "monitor_steps must be a number of steps"),
    ({"monitor_positions": 1}, "monitor_positions must be at least 2, got 1; 512 is"),
    ({"sample_steps": 2.5}, "sample_steps must be a number of steps, .* got 2.5"),
    ({"sample_max_new_tokens": 0}, "sample_max_new_tokens must be at least 1, got 0"),
    ({"sample_prompts": "a", "sample_steps": 1}, "sample_prompts must be a list of texts, got one text"),
    ({"sample_prompts": ["a"]}, "sample_prompts does nothing while sample_steps is 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_all_problems_at_once(tmp_path):
    with pytest.raises(MatrixLossConfigError) as error:
        arguments(tmp_path, matrix_kind="tokn", monitor_steps=-1, report_to="tensorbord", on_nonfinite="stp")
    for part in (
        "did you mean 'token'",
        "monitor_steps",
        "did you mean 'tensorboard'",
        "did you mean 'stop'",
    ):
        assert part in str(error.value)


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    import mce_llm.lm.arguments as home

    monkeypatch.setattr(home, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="report_to: wandb is not installed; pip install wandb"):
        arguments(tmp_path, report_to=["tensorboard", "wandb"])


def test_each_callback_is_there_once_and_only_if_asked_for(tmp_path):
    names = [type(c).__name__ for c in trainer_for(tmp_path).callback_handler.callbacks]
    for name in ("ThroughputCallback", "SpectraCallback", "PlainLinesCallback", "ChartsCallback"):
        assert names.count(name) == 1, names
    assert "SamplesCallback" not in names
    without = trainer_for(tmp_path, monitor_steps=0).callback_handler.callbacks
    assert not any(isinstance(c, monitoring.SpectraCallback) for c in without)


def test_stock_arguments_get_the_defaults(tmp_path):
    stock = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = MatrixTrainer(model=make_model(), args=stock, matrix_loss=MatrixLossConfig())
    (spectra,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, monitoring.SpectraCallback)]
    assert (spectra._steps, spectra._positions) == (100, 512)


def test_logs_land_in_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = trainer_for(tmp_path, report_to="tensorboard", max_steps=1)
    trainer.train()
    (board,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/runs/\w+_[\d-]+_\S+", board.logging_dir)
