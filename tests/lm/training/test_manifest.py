"""A folder is a whole checkpoint, or the manifest says what is wrong with it."""

import json
import re

import pytest

from mce_llm.lm.training import manifest
from mce_llm.lm.training.manifest import (
    INCOMPLETE,
    MANIFEST,
    create,
    flush,
    leftovers,
    problem_of,
    read_manifest,
    remove,
    vouch,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with a large file, a small one and an empty one."""
    folder = tmp_path / "checkpoint-7"
    create(folder, {"owner": 0})
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    (folder / "global_step7").mkdir()
    (folder / "global_step7" / "states.pt").write_bytes(b"states")
    (folder / "empty").write_bytes(b"")
    flush(folder)
    write_manifest(folder, {"step": 7, "world_size": 1})
    return folder


def test_whole(folder):
    assert problem_of(folder) is None
    facts = read_manifest(folder)
    assert facts["step"] == 7
    assert set(facts["files"]) == {"model.safetensors", "global_step7/states.pt", "empty"}
    assert not (folder / INCOMPLETE).exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_block(path):
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name", "pattern"),
    [
        (cut, "model.safetensors", r"model.safetensors has 511999 bytes instead of 512000"),
        (flip_a_bit, "model.safetensors", r"model.safetensors has the digest \w{16}… instead of \w{16}…"),
        (lose_a_block, "model.safetensors", r"model.safetensors has the digest"),
        (flip_a_bit, "global_step7/states.pt", r"global_step7/states.pt has the digest"),
        (lambda path: path.unlink(), "empty", "empty is missing"),
        (cut, MANIFEST, f"its {MANIFEST} cannot be read"),
        (lambda path: path.write_text('{"files": {"../x": {"size": 1, "digest": ""}}}'), MANIFEST, "cannot be read"),
        (lambda path: path.write_text('{"files": {"/etc/x": {"size": 1, "digest": ""}}}'), MANIFEST, "cannot be read"),
        (lambda path: path.write_text('{"files": {"empty": 0}}'), MANIFEST, "cannot be read"),
        (lambda path: path.unlink(), MANIFEST, f"has no {MANIFEST}, .*import vouch; vouch"),
    ],
)  # fmt: skip
def test_damage(folder, damage, name, pattern):
    damage(folder / name)
    assert re.search(pattern, problem_of(folder))


def test_files_of_several_pieces(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_PIECE", 1000)
    write_manifest(folder, {})
    assert problem_of(folder) is None
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[1000:2000] + data[:1000] + data[2000:])  # the same pieces in another order
    assert "model.safetensors has the digest" in problem_of(folder)


def test_an_interrupted_save(tmp_path):
    folder = tmp_path / "checkpoint-3"
    create(folder, {"owner": 0, "save": "a"})
    assert manifest.marker_of(folder) == {"owner": 0, "save": "a"}
    (folder / "model.safetensors").write_bytes(b"half")
    assert problem_of(folder) == "its save was interrupted"
    create(folder, {"owner": 1, "save": "b"})  # another process was quicker
    assert manifest.marker_of(folder)["owner"] == 0
    assert leftovers(tmp_path) == []


def test_a_manifest_that_cannot_be_written_is_none(folder, monkeypatch):
    (folder / MANIFEST).unlink()
    (folder / INCOMPLETE).write_text("{}")
    monkeypatch.setattr(
        json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_manifest(folder, {})
    assert problem_of(folder) == "its save was interrupted"


def test_a_half_deleted_folder_is_no_checkpoint(folder, monkeypatch):
    monkeypatch.setattr(manifest.shutil, "rmtree", lambda *_, **__: None)  # killed right after the renaming
    remove(folder)
    assert not list(folder.parent.glob("checkpoint-*"))
    (left,) = leftovers(folder.parent)
    assert (left / "model.safetensors").exists()
    monkeypatch.undo()
    remove(left)
    assert list(folder.parent.iterdir()) == []


def test_vouching_for_a_folder(folder):
    (folder / MANIFEST).unlink()
    assert problem_of(folder)
    vouch(str(folder))
    assert problem_of(folder) is None
