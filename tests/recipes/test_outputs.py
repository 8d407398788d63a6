"""Which checkpoint a run goes on from, and what it will not touch."""

import json

import pytest
import yaml

from mce_llm.recipes.outputs import OutputError, prepare_output, remove_earlier, write_record


@pytest.fixture
def prepare(tmp_path, capsys):
    """prepare_output on tmp_path; returns the checkpoint and what was said."""

    def call(given=(), *, resume=True, overwrite=False, output=tmp_path):
        found, stale = prepare_output(output, dict(given), resume=resume, overwrite=overwrite)
        assert all(path.exists() for path in stale)
        remove_earlier(stale)
        return found, capsys.readouterr().out.rstrip()

    return call


def checkpoint(output, step, *files):
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    for name in files or ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_new_folder(tmp_path, prepare):
    assert prepare(output=tmp_path / "a" / "b") == (None, "")
    assert (tmp_path / "a" / "b").is_dir()


def test_the_newest_complete_checkpoint(tmp_path, prepare):
    write_record(tmp_path, {})
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 110, "model.safetensors", "optimizer.pt")  # interrupted while it was written
    (tmp_path / "checkpoint-best").mkdir()
    found, said = prepare()
    assert found == str(newest)
    assert "checkpoint-110 is incomplete" in said
    assert "settings that differ" not in said


def test_deepspeed_checkpoints_have_a_folder_of_states(tmp_path, prepare):
    write_record(tmp_path, {})
    folder = checkpoint(tmp_path, 5, "trainer_state.json")
    (folder / "global_step5").mkdir()
    assert prepare()[0] == str(folder)


def test_changed_settings_are_said(tmp_path, prepare):
    write_record(tmp_path, {"learning_rate": 0.1, "seed": 3, "output_dir": "x"})
    checkpoint(tmp_path, 5)
    _, said = prepare({"learning_rate": 0.2, "seed": 3, "output_dir": "y", "bf16": True})
    assert said.endswith("trained with: learning_rate 0.1 → 0.2, bf16 None → True")


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["notes.txt"], "none of the 1 checkpoints .* is complete; .*--resume false"),
        (["model.safetensors", "trainer_state.json"], r"without the optimizer's state \(save_only_model\)"),
    ],
)
def test_checkpoints_to_no_use(tmp_path, prepare, files, pattern):
    checkpoint(tmp_path, 7, *files)
    with pytest.raises(OutputError, match=pattern):
        prepare()


@pytest.mark.parametrize("marker", ["train_results.json", "model.safetensors"])
def test_a_finished_run_is_kept_unless_overwritten(tmp_path, prepare, marker):
    checkpoint(tmp_path, 7)
    (tmp_path / marker).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=f"holds a finished run .*{marker}.*--overwrite true"):
        prepare()
    found, said = prepare(overwrite=True)
    assert found is None
    assert f"removing {tmp_path / marker}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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
    write_record(tmp_path, {"prompt": "plain", "columns": {"question": "Frage"}, "warmup_steps": 0.03})
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {
        "prompt": "plain",
        "columns": {"question": "Frage"},
        "warmup_steps": 0.03,
    }
    assert {"python", "torch", "transformers", "mce-llm"} <= set(
        json.loads((tmp_path / "versions.json").read_text())
    )
