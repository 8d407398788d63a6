"""The folder of a run."""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
import yaml

from mce_llm.running.settings import ConfigurationError
from mce_llm.vision.running import (
    OutputError,
    ResumeRules,
    RunSettings,
    load_checkpoint,
    open_run,
    save_checkpoint,
)


@dataclass
class Fitting:
    """Settings of a training."""

    epochs: int = 3
    lr: float = 1.0


def rules(tmp_path, **given):
    return ResumeRules((Fitting(**given), settings(tmp_path)), ("epochs",))


def settings(tmp_path, **given):
    return RunSettings(output_dir=str(tmp_path / "run"), cpu=True, **given)


def lines(run):
    with (run.path / "metrics.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_from_beginning_to_end(tmp_path):
    given = {"epochs": 3, "hub_token": "secret"}
    run = open_run(settings(tmp_path), given)
    assert run.checkpoint is None
    run.log(1, {"loss": 0.5, "note": "text"})
    save_checkpoint(run.checkpoint_file, {"step": 1})
    run.finish({"accuracy": 0.25})
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["accuracy"] == 0.25
    assert summary["processes"] == 1
    assert summary["device"] == "cpu"
    assert lines(run) == [{"step": 1, "loss": 0.5, "note": "text"}]
    assert yaml.safe_load((run.path / "recipe.yaml").read_text()) == {"epochs": 3}
    assert json.loads((run.path / "versions.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert not run.checkpoint_file.exists()
    assert list((run.path / "tensorboard").iterdir())
    with pytest.raises(OutputError, match=r"holds a finished run.*--overwrite true"):
        open_run(settings(tmp_path), given)
    again = open_run(settings(tmp_path, overwrite=True), given)
    assert again.checkpoint is None
    assert not (run.path / "summary.json").exists()
    assert not (run.path / "metrics.jsonl").exists()


def test_an_interrupted_run_goes_on(tmp_path, capsys):
    given = {"epochs": 3, "lr": 1.0, "output_dir": str(tmp_path / "run"), "cpu": True}
    run = open_run(settings(tmp_path), given)
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0 / step})
    save_checkpoint(run.checkpoint_file, {"step": 2})
    run = open_run(settings(tmp_path), {"epochs": 3, "lr": 2.0}, rules=rules(tmp_path, lr=2.0))
    assert run.checkpoint == run.checkpoint_file
    assert load_checkpoint(run.checkpoint)["step"] == 2
    run.rewind(2)
    assert [line["step"] for line in lines(run)] == [1, 2]
    said = capsys.readouterr().out
    assert "settings that differ, and hold from here on: lr 1.0 → 2.0" in said
    recipe = (run.path / "recipe.yaml").read_text()
    assert recipe.startswith("# until step 2: lr 1.0 (then 2.0)\n")
    assert yaml.safe_load(recipe)["lr"] == 2.0


def test_what_may_not_change(tmp_path):
    run = open_run(settings(tmp_path), {"epochs": 3, "output_dir": str(tmp_path / "run")})
    save_checkpoint(run.checkpoint_file, {"step": 2})
    with pytest.raises(OutputError, match=r"cannot go on with other settings: epochs 3 → 4.*--resume false"):
        open_run(settings(tmp_path), {"epochs": 4}, rules=rules(tmp_path, epochs=4))
    with pytest.raises(OutputError, match=r"holds a checkpoint"):
        open_run(settings(tmp_path, resume=False), {"epochs": 4})
    assert open_run(settings(tmp_path, resume=False, overwrite=True), {"epochs": 4}).checkpoint is None
    assert not run.checkpoint_file.exists()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    run = open_run(settings(tmp_path), {})
    run.log(1, {"loss": 1.0})
    run = open_run(settings(tmp_path), {})
    assert run.checkpoint is None
    assert not (run.path / "metrics.jsonl").exists()


def test_a_second_run_in_one_process_closes_the_files_of_the_first(tmp_path):
    """TensorBoard writes from a thread of its own: it would do so into a folder that is being emptied."""
    run = open_run(settings(tmp_path), {})
    others = set(threading.enumerate())
    run.log(1, {"loss": 1.0})
    (writer,) = set(threading.enumerate()) - others
    again = open_run(settings(tmp_path), {})
    assert not writer.is_alive()
    assert not (run.path / "tensorboard").exists()
    again.log(1, {"loss": 2.0})
    again.finish({})
    assert [line["loss"] for line in lines(again)] == [2.0]
    assert len(list((run.path / "tensorboard").iterdir())) == 1


OWNER = """
import sys
from mce_llm.vision.running import RunSettings, open_run
run = open_run(RunSettings(output_dir=sys.argv[1], cpu=True), {})
run.log(1, {"loss": 1.0})
print("open", flush=True)
sys.stdin.read()
"""


def test_two_runs_at_once_into_one_folder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(OutputError, match=rf"another run is writing to .*\(process {process.pid} on"):
            open_run(settings(tmp_path), {})
        assert (tmp_path / "run" / "metrics.jsonl").exists()  # nothing of the other's is touched
        process.kill()
        process.wait()
        open_run(settings(tmp_path), {}).finish({})
    assert not (tmp_path / "run" / "_LOCK").exists()


def test_files_of_others_stay(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run = open_run(settings(tmp_path), {})
    run.finish({})
    open_run(settings(tmp_path, overwrite=True), {})
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_places_that_cannot_be_written(tmp_path, unwritable):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; name a directory"):
        open_run(RunSettings(output_dir=str(tmp_path / "file"), cpu=True), {})
    with pytest.raises(OutputError, match="cannot write to output_dir"):
        open_run(RunSettings(output_dir=str(unwritable), cpu=True), {})


def test_all_problems_at_once():
    with pytest.raises(ConfigurationError) as caught:
        RunSettings(output_dir="", mixed_precision="bf61", seed=-1)
    assert "mixed_precision must be" in str(caught.value)
    assert "seed must be" in str(caught.value)
    assert "output_dir must name" in str(caught.value)


@pytest.mark.parametrize("broken", [None, "- no\n- mapping\n", "a: [\n"])
def test_a_record_that_cannot_be_read_is_said(tmp_path, broken, capsys):
    run = open_run(settings(tmp_path), {"output_dir": str(tmp_path / "run")})
    save_checkpoint(run.checkpoint_file, {"step": 2})
    (run.path / "recipe.yaml").unlink()
    if broken is not None:
        (run.path / "recipe.yaml").write_text(broken)
    assert open_run(settings(tmp_path), {}, rules=rules(tmp_path)).checkpoint is not None
    assert "settings that this run began with are unknown" in capsys.readouterr().out


def test_a_checkpoint_of_another_kind_of_run_is_left_alone(tmp_path):
    run = open_run(settings(tmp_path), {})
    save_checkpoint(run.checkpoint_file, {"step": 2})
    with pytest.raises(OutputError, match="holds the checkpoint of another kind of run"):
        open_run(settings(tmp_path), {})
    assert run.checkpoint_file.exists()
