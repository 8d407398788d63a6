"""Checkpoints of a trainer: whole before older ones go, chosen by what is in them, and none that runs code."""

import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.interrupted import checkpoint_names, make_trainer, same, weights
from mce_llm.lm import MatrixTrainer
from mce_llm.lm.training import checkpoints, manifest
from mce_llm.lm.training.checkpoints import CheckpointError, engine_of, newest_whole, rotate
from mce_llm.lm.training.manifest import INCOMPLETE, MANIFEST, problem_of
from mce_llm.lm.training.pickles import UnsafeCheckpointError


@pytest.fixture
def trainer(tmp_path):
    """A trainer of a small model with dropout, by changed settings."""
    return partial(make_trainer, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights after four steps, more than an epoch."""
    run = make_trainer(tmp_path_factory.mktemp("undisturbed"), save_strategy="no")
    run.train()
    return weights(run)


def test_saved_checkpoints_are_whole(trainer, tmp_path):
    trainer().train()
    assert checkpoint_names(tmp_path / "out") == ["checkpoint-2", "checkpoint-4"]
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        assert problem_of(folder) is None
        facts = manifest.read_manifest(folder)
        assert (facts["world_size"], facts["engine"]) == (1, "plain")
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(facts["files"])


class Killed(BaseException):
    pass


EVENTS = ("create", "flush", "write_manifest", "remove")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_stage_of_the_second_save(trainer, undisturbed, tmp_path, monkeypatch, event, after):
    """With a limit of one, something whole is always left, and going on from it ends where all ends."""

    def end_there(*arguments):
        calls.append(event)
        if len(calls) == (1 if event == "remove" else 2):
            if after:
                own(*arguments)
            raise Killed
        own(*arguments)

    calls, own = [], getattr(manifest, event)
    monkeypatch.setattr(manifest, event, end_there)
    with pytest.raises(Killed):
        trainer(save_total_limit=1).train()
    monkeypatch.undo()
    found, _ = newest_whole(tmp_path / "out", engine="plain")
    assert found is not None
    again = trainer(save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), undisturbed)
    # Killed after the last save was whole, a run has nothing left to save, and so removes no older one.
    allowed = {"checkpoint-4", "checkpoint-2"} if event in ("write_manifest", "remove") else {"checkpoint-4"}
    assert {"checkpoint-4"} <= set(checkpoint_names(tmp_path / "out")) <= allowed
    assert manifest.leftovers(tmp_path / "out") == []


def test_stock_rotation_would_be_caught(trainer, tmp_path, monkeypatch):
    """The negative control: rotating before the new checkpoint is whole leaves nothing."""

    def rotate_first(own_trainer, trial, write):
        rotate(tmp_path / "out", 1, set())
        for _, folder in checkpoints.list_checkpoints(tmp_path / "out"):
            manifest.remove(folder)
        raise Killed

    def second(own_trainer, trial, write):
        monkeypatch.setattr(checkpoints, "save_whole", rotate_first)
        own(own_trainer, trial, write)

    own = checkpoints.save_whole
    monkeypatch.setattr(checkpoints, "save_whole", second)
    with pytest.raises(Killed):
        trainer(save_total_limit=1).train()
    assert newest_whole(tmp_path / "out", engine="plain") == (None, [])


def test_the_best_checkpoint_stays(trainer, tmp_path):
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    settings |= {"metric_for_best_model": "loss", "learning_rate": 3.0, "lr_scheduler_type": "constant"}
    kept = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            kept.append((state.best_global_step, checkpoint_names(args.output_dir)))

    run = trainer([Watch()], save_total_limit=1, **settings)
    run.train()
    assert run.state.best_global_step < 4
    for step, (best, there) in enumerate(kept):
        assert set(there) == {f"checkpoint-{number}" for number in (best, step) if number}
    assert checkpoint_names(tmp_path / "out") == [f"checkpoint-{run.state.best_global_step}"]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 10):
        folder = tmp_path / f"checkpoint-{step}"
        manifest.create(folder, {})
        manifest.write_manifest(folder, {"step": step})
    (tmp_path / "checkpoint-7").mkdir()  # of another program
    rotate(tmp_path, None, set())
    rotate(tmp_path, 4, {tmp_path / "checkpoint-10"})
    assert len(checkpoint_names(tmp_path)) == 5
    rotate(tmp_path, 2, {tmp_path / "checkpoint-10", tmp_path / "checkpoint-1"})
    assert checkpoint_names(tmp_path) == ["checkpoint-1", "checkpoint-10", "checkpoint-7"]
    rotate(tmp_path, 1, {tmp_path / "checkpoint-10", tmp_path / "checkpoint-1"})
    assert checkpoint_names(tmp_path) == ["checkpoint-1", "checkpoint-10", "checkpoint-7"]


def test_going_on_at_the_last_step_trains_no_further(trainer, undisturbed, tmp_path):
    """transformers takes one step too many where the last one is not the end of an epoch."""
    trainer().train()
    saved = (tmp_path / "out" / "checkpoint-4" / MANIFEST).stat().st_mtime_ns
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert same(weights(again), undisturbed)
    assert (tmp_path / "out" / "checkpoint-4" / MANIFEST).stat().st_mtime_ns == saved


def test_evaluation_does_not_change_what_is_trained(trainer, undisturbed):
    evaluated = trainer(save_strategy="no", eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert same(weights(evaluated), undisturbed)


def test_a_checkpoint_of_an_earlier_run_is_written_over(trainer, tmp_path):
    trainer(max_steps=2).train()
    other = trainer(max_steps=2, learning_rate=0.5)
    other.train()
    saved = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert torch.equal(saved["model.embed_tokens.weight"], other.model.model.embed_tokens.weight)


def torn(folder):
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-10])


def interrupted(folder):
    (folder / MANIFEST).unlink()
    (folder / INCOMPLETE).write_text("{}")


def foreign(folder):
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (torn, r"optimizer.pt has \d+ bytes instead of \d+"),
        (interrupted, "its save was interrupted"),
        (foreign, f"it has no {MANIFEST}"),
    ],
)
def test_the_one_before_is_taken(trainer, tmp_path, capsys, damage, pattern):
    trainer().train()
    folder = tmp_path / "out" / "checkpoint-4"
    damage(folder)
    found, in_the_way = newest_whole(tmp_path / "out", engine="plain")
    assert found == tmp_path / "out" / "checkpoint-2"
    assert in_the_way == [folder]
    said = capsys.readouterr().out
    assert f"{folder} is not whole, so it is skipped: " in said
    assert re.search(pattern, said)


@pytest.mark.parametrize(("damage", "lost"), [(torn, True), (foreign, True), (interrupted, False)])
def test_none_is_whole(trainer, tmp_path, damage, lost):
    trainer(max_steps=2).train()
    damage(tmp_path / "out" / "checkpoint-2")
    if lost:
        with pytest.raises(
            CheckpointError, match=r"none of the 1 checkpoints .* is whole:\n  checkpoint-2: "
        ):
            newest_whole(tmp_path / "out", engine="plain")
    else:
        assert newest_whole(tmp_path / "out", engine="plain") == (None, [tmp_path / "out" / "checkpoint-2"])


def rewrite(folder, **facts):
    before = manifest.read_manifest(folder)
    manifest.write_manifest(folder, {name: before[name] for name in ("step", "world_size", "engine")} | facts)


@pytest.mark.parametrize(
    ("facts", "pattern"),
    [
        ({"engine": "deepspeed zero 2"}, "was saved by 'deepspeed zero 2', and this launch is 'plain'"),
        ({"engine": "fsdp"}, "was saved by 'fsdp'"),
    ],
)
def test_another_engine(trainer, tmp_path, facts, pattern):
    trainer(max_steps=2).train()
    rewrite(tmp_path / "out" / "checkpoint-2", **facts)
    with pytest.raises(CheckpointError, match=pattern):
        trainer().train(resume_from_checkpoint=True)


def test_another_number_of_processes(trainer, tmp_path, capsys):
    trainer(max_steps=2).train()
    folder = tmp_path / "out" / "checkpoint-2"
    rewrite(folder, world_size=4)
    assert newest_whole(tmp_path / "out", engine="plain")[0] == folder
    assert "saved by 4 processes, and this launch has 1" in capsys.readouterr().out
    rewrite(folder, world_size=4, engine="deepspeed zero 3")
    with pytest.raises(
        CheckpointError, match=r"in 4 shards.*this launch has 1 processes; launch with --num_processes 4"
    ):
        newest_whole(tmp_path / "out", engine="deepspeed zero 3")


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
def test_a_checkpoint_with_code(trainer, tmp_path, name):
    trainer(max_steps=2).train()
    folder = tmp_path / "out" / "checkpoint-2"
    torch.save({"state": Attack(tmp_path / "executed")}, folder / name)
    rewrite(folder)
    assert problem_of(folder) is None
    with pytest.raises(UnsafeCheckpointError, match=rf"{name} holds .*mkdir.*nothing was loaded"):
        trainer().train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "executed").exists()


def test_the_engine_is_known_however_it_was_asked_for(monkeypatch):
    plugin = SimpleNamespace(zero_stage=2)
    assert engine_of(SimpleNamespace(deepspeed_plugin=plugin)) == "deepspeed zero 2"
    assert engine_of(SimpleNamespace(fsdp=[])) == "plain"
    assert engine_of(SimpleNamespace(fsdp=True)) == "fsdp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` does
    assert engine_of(SimpleNamespace(fsdp=None)) == "fsdp"


def test_pushing_comes_after_the_manifest(trainer, tmp_path, monkeypatch):
    pushed = []

    def push(self, folder):
        pushed.append((Path(folder).name, problem_of(Path(folder)), (Path(folder) / INCOMPLETE).exists()))

    run = trainer()
    run.args.push_to_hub = True
    monkeypatch.setattr(MatrixTrainer, "_push_from_checkpoint", push)
    monkeypatch.setattr(MatrixTrainer, "_finish_current_push", lambda self: None)
    run.train()
    assert pushed == [("checkpoint-2", None, False), ("checkpoint-4", None, False)]
    assert run.args.push_to_hub


def test_a_save_that_fails_leaves_the_settings(trainer, monkeypatch, tmp_path):
    run = trainer(save_total_limit=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MatrixTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert run.args.save_total_limit == 1
    assert newest_whole(tmp_path / "out", engine="plain") == (None, [tmp_path / "out" / "checkpoint-2"])


def test_nothing_to_go_on_from(trainer):
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in"):
        trainer().train(resume_from_checkpoint=True)
