"""Two trainers in one folder, curves that go on, and what loading a checkpoint reports."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.modules.module import _IncompatibleKeys
from transformers import TrainerCallback

from helpers.interrupted import Rows, checkpoint_names, make_trainer, same, weights
from helpers.models import make_model
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.training.checkpoints import CheckpointError
from mce_llm.lm.training.loading import without_tied
from mce_llm.lm.training.run_settings import RunSettings
from mce_llm.running.folder import LOCK, OutputError, folder_held

HOLD = """
import sys
from pathlib import Path
from mce_llm.running.folder import hold_folder
hold_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """Another process at work in the folder of `make_trainer`; returns it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_another_process_trains_in_the_folder(held_elsewhere, tmp_path):
    trainer = make_trainer(tmp_path)
    for resume in (None, True):
        with pytest.raises(OutputError, match=rf"another run is writing .*\(process {held_elsewhere.pid} on"):
            trainer.train(resume_from_checkpoint=resume)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    # What saves nothing is in nobody's way.
    make_trainer(tmp_path, save_strategy="no", max_steps=1).train()
    held_elsewhere.stdin.close()
    held_elsewhere.wait()
    trainer.train()
    assert checkpoint_names(tmp_path / "out") == ["checkpoint-2", "checkpoint-4"]


class Looks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.locked = (self.folder / LOCK).exists()


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_notebook_does_not_lock_itself_out(tmp_path):
    looks = Looks()
    looks.folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, [Fails()]).train()
    assert not (tmp_path / "out" / LOCK).exists()
    trainer, other = make_trainer(tmp_path, [looks]), make_trainer(tmp_path)
    trainer.train()
    assert looks.locked
    assert not (tmp_path / "out" / LOCK).exists()
    other.train()
    trainer.train()
    with folder_held(tmp_path / "out"):
        other.train()
        assert (tmp_path / "out" / LOCK).exists(), "who held the folder before still does"
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_trainer_in_python_goes_on_with_its_new_arguments(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=2, lr_scheduler_type="constant").train()
    again = make_trainer(
        tmp_path, max_steps=4, lr_scheduler_type="constant", learning_rate=0.002, matrix_weight=0.5
    )
    again.train(resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert "from step 3 on: max_steps 2 → 4, learning_rate 0.01 → 0.002, matrix_weight 1.0 → 0.5" in said
    assert [group["lr"] for group in again.optimizer.param_groups] == [0.002] * 2
    record = RunSettings.read(tmp_path / "out" / "checkpoint-4")
    assert record.changes[0].after_step == 2
    assert record.changes[0].differences["learning_rate"] == (0.01, 0.002)
    with pytest.raises(CheckpointError, match="seed 42 → 3"):
        make_trainer(tmp_path, seed=3).train(resume_from_checkpoint=True)


def test_the_arguments_have_no_say_over_a_schedule_that_was_handed_over(tmp_path):
    def trainer(rate, steps):
        made = make_trainer(tmp_path, max_steps=steps)
        made.optimizer = torch.optim.SGD(made.model.parameters(), lr=rate)
        made.lr_scheduler = torch.optim.lr_scheduler.StepLR(made.optimizer, 1, gamma=0.5)
        return made

    trainer(0.1, 2).train()
    again = trainer(0.1, 4)
    again.train(resume_from_checkpoint=True)
    assert again.lr_scheduler.get_last_lr() == [0.1 * 0.5**4]


def test_a_checkpoint_without_a_record_goes_on_as_it_is(tmp_path, capsys):
    from mce_llm.lm.training.manifest import vouch

    make_trainer(tmp_path, max_steps=2).train()
    folder = tmp_path / "out" / "checkpoint-2"
    (folder / "run_settings.json").unlink()
    vouch(folder)
    again = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert "does not say what it was trained with" in capsys.readouterr().out
    assert again.state.global_step == 4


def test_curves_go_on(tmp_path, monkeypatch):
    """Killed after step 3, past the checkpoint of step 2: one folder of events, and each step once in the curve."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)

    class StopsAfterThree(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    common = {"report_to": "tensorboard", "logging_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, [StopsAfterThree()], **common).train()
    make_trainer(tmp_path, learning_rate=0.001, **common).train(resume_from_checkpoint=True)
    (run,) = (tmp_path / "out" / "runs").iterdir()
    curves = EventAccumulator(str(run)).Reload()
    rates = curves.Scalars("train/learning_rate")
    assert [event.step for event in rates] == [1, 2, 3, 4]
    history = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())[
        "log_history"
    ]
    assert [event.value for event in rates] == pytest.approx(
        [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    )
    make_trainer(tmp_path, **common).train()
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2, (
        "a run from the beginning has curves of its own"
    )


def tied_trainer(folder, **changed):
    settings = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    settings |= {"dataloader_pin_memory": False, "per_device_train_batch_size": 4, **changed}
    arguments = MatrixTrainingArguments(output_dir=str(folder), **settings)
    return MatrixTrainer(
        model=make_model("llama-tied"), args=arguments, train_dataset=Rows(), eval_dataset=Rows()
    )


def test_tied_weights_are_not_missing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "transformers"):
        logging.getLogger("transformers").propagate = True
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
        whole = tied_trainer(tmp_path, **best)
        whole.train()
        again = tied_trainer(tmp_path, **best)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "missing keys" not in caplog.text
    assert same(weights(again), weights(whole))


def test_what_is_missing_is_still_said():
    model = make_model("llama-tied")
    tied = "lm_head.weight"
    lost = "model.layers.0.self_attn.q_proj.weight"
    found = without_tied(model, _IncompatibleKeys([lost, tied], ["other"]))
    assert (found.missing_keys, found.unexpected_keys) == ([lost], ["other"])
    both = _IncompatibleKeys([tied, "model.embed_tokens.weight"], [])
    assert without_tied(model, both).missing_keys == both.missing_keys, "of two names, neither was loaded"
    untied = _IncompatibleKeys([tied], [])
    assert without_tied(make_model(), untied).missing_keys == [tied]


def test_the_card_of_a_checkpoint(tmp_path):
    make_trainer(tmp_path, logging_steps=1, eval_strategy="steps", eval_steps=2).train()
    early, late = ((tmp_path / "out" / f"checkpoint-{step}" / "README.md").read_text() for step in (2, 4))
    assert "| optimizer steps | `2 of 4` |" in early
    assert "after step 2:" in early
    assert "| optimizer steps | `4 of 4` |" in late
    assert "after step 4:" in late
