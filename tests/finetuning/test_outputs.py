"""Which checkpoint a run goes on from, and what it will not touch."""

import json

import pytest
import yaml

from mce_llm.finetuning.outputs import begin_record, mark_finished, prepare_output, remove_earlier
from mce_llm.lm.training.manifest import INCOMPLETE, MANIFEST, create, read_manifest, vouch
from mce_llm.running.folder import LOCK, OutputError


@pytest.fixture
def prepare(tmp_path, capsys):
    """prepare_output on tmp_path; returns the checkpoint and what was said."""

    def call(*, resume=True, overwrite=False, output=tmp_path, engine="plain"):
        found, stale = prepare_output(output, resume=resume, overwrite=overwrite, engine=engine)
        assert all(path.exists() for path in stale)
        remove_earlier(stale)
        return found, capsys.readouterr().out.rstrip()

    return call


def checkpoint(output, step, *files):
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    for name in files or ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("{}")
    vouch(folder)
    return folder


def interrupted(output, step):
    """What a kill in the middle of a save leaves behind."""
    folder = output / f"checkpoint-{step}"
    create(folder, {"owner": 0})
    (folder / "model.safetensors").write_text("{}")
    return folder


def test_a_new_folder(tmp_path, prepare):
    assert prepare(output=tmp_path / "a" / "b") == (None, "")
    assert (tmp_path / "a" / "b").is_dir()


def test_the_newest_whole_checkpoint(tmp_path, prepare):
    begin_record(tmp_path, {})
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    (checkpoint(tmp_path, 105) / "optimizer.pt").write_text("{")
    interrupted(tmp_path, 110)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".removed-checkpoint-80-1").mkdir()
    (tmp_path / ".new-checkpoint-120-1").mkdir()
    found, said = prepare()
    assert found == str(newest)
    assert "checkpoint-110 is not whole, so it is skipped: its save was interrupted" in said
    assert "checkpoint-105 is not whole, so it is skipped: optimizer.pt has 1 bytes instead of 2" in said
    there = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert there == ["checkpoint-100", "checkpoint-90", "checkpoint-best"]


def test_interrupted_in_the_very_first_save(tmp_path, prepare):
    begin_record(tmp_path, {})
    folder = interrupted(tmp_path, 10)
    found, said = prepare()
    assert found is None
    assert "training starts from the beginning" in said
    assert not folder.exists()


def test_interrupted_in_the_last_save(tmp_path, prepare):
    """The results are there, but nobody knows how much of them."""
    begin_record(tmp_path, {})
    newest = checkpoint(tmp_path, 10)
    for name in ("train_results.json", "model.safetensors"):
        (tmp_path / name).write_text("{")
    assert prepare()[0] == str(newest)
    mark_finished(tmp_path)
    with pytest.raises(OutputError, match="holds a finished run"):
        prepare()


def test_an_interrupted_removal(tmp_path, prepare, monkeypatch):
    """What is left of a finished run is never taken for a run to go on with."""
    checkpoint(tmp_path, 7)
    checkpoint(tmp_path, 9)
    (tmp_path / "train_results.json").write_text("{}")
    _, stale = prepare_output(tmp_path, resume=True, overwrite=True)
    for count in range(len(stale)):
        remove_earlier(stale[count : count + 1])
        found, left = prepare_output(tmp_path, resume=True, overwrite=True)
        assert found is None
        assert left == stale[count + 1 :]


def test_another_engine(tmp_path, prepare):
    folder = checkpoint(tmp_path, 7)
    facts = read_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps({**facts, "engine": "deepspeed zero 2", "world_size": 2}))
    with pytest.raises(OutputError, match="was saved by 'deepspeed zero 2', and this launch is 'plain'"):
        prepare()
    with pytest.raises(OutputError, match="in 2 shards, one a process, and this launch has 1 processes"):
        prepare(engine="deepspeed zero 2")


def test_deepspeed_checkpoints_have_a_folder_of_states(tmp_path, prepare):
    begin_record(tmp_path, {})
    folder = checkpoint(tmp_path, 5, "trainer_state.json")
    (folder / "global_step5").mkdir()
    (folder / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("")
    vouch(folder)
    assert prepare(engine="deepspeed zero 2")[0] == str(folder)
    with pytest.raises(OutputError, match="was saved by 'deepspeed', and this launch is 'plain'"):
        prepare()


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["model.safetensors", "trainer_state.json"], r"without the optimizer's state \(save_only_model\)"),
    ],
)
def test_checkpoints_to_no_use(tmp_path, prepare, files, pattern):
    checkpoint(tmp_path, 7, *files)
    with pytest.raises(OutputError, match=pattern):
        prepare()


def test_checkpoints_without_a_manifest(tmp_path, prepare):
    folder = checkpoint(tmp_path, 7)
    (folder / MANIFEST).unlink()
    pattern = (
        rf"(?s)none of the 1 checkpoints .* is whole:\n  checkpoint-7: it has no {MANIFEST}.*--resume false"
    )
    with pytest.raises(OutputError, match=pattern):
        prepare()
    (folder / INCOMPLETE).write_text("{}")
    assert prepare()[0] is None


@pytest.mark.parametrize("marker", ["train_results.json", "model.safetensors"])
def test_a_finished_run_is_kept_unless_overwritten(tmp_path, prepare, marker):
    checkpoint(tmp_path, 7)
    (tmp_path / marker).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=f"holds a finished run .*{marker}.*--overwrite true"):
        prepare()
    assert not (tmp_path / LOCK).exists()  # who is refused does not keep others out
    found, said = prepare(overwrite=True)
    assert found is None
    assert f"removing {tmp_path / marker}" in said
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", LOCK}


def test_starting_anew_leaves_no_checkpoint_to_stumble_over(tmp_path, prepare):
    folder = checkpoint(tmp_path, 7)
    with pytest.raises(OutputError, match=r"holds checkpoints .checkpoint-7.*--overwrite true"):
        prepare(resume=False)
    assert prepare(resume=False, overwrite=True)[0] is None
    assert not folder.exists()


def test_folders_that_cannot_be_written(tmp_path, prepare):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; name a directory"):
        prepare(output=tmp_path / "file")
    with pytest.raises(OutputError, match=r"cannot write to output_dir .*Not a directory"):
        prepare(output=tmp_path / "file" / "below")


def test_record(tmp_path):
    begin_record(tmp_path, {"prompt": "plain", "columns": {"question": "Frage"}, "warmup_steps": 0.03})
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {
        "prompt": "plain",
        "columns": {"question": "Frage"},
        "warmup_steps": 0.03,
    }
    assert {"python", "torch", "transformers", "mce-llm"} <= set(
        json.loads((tmp_path / "versions.json").read_text())
    )
