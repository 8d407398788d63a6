"""A training state in one file."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mce_llm.vision.running import CheckpointError, checkpoint, load_checkpoint, save_checkpoint
from mce_llm.vision.running.checkpoint import restore_random_state


def test_round_trip_with_the_random_state(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.manual_seed(5)
    save_checkpoint(path, {"step": 3, "weights": {"w": torch.arange(4.0)}, "none": None})
    expected = torch.rand(3)
    state = load_checkpoint(path)
    assert state["step"] == 3
    assert torch.equal(state["weights"]["w"], torch.arange(4.0))
    restore_random_state(state)
    assert torch.equal(torch.rand(3), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_random_state_of_a_device(tmp_path, monkeypatch, kind):
    state = [torch.tensor([1])]
    module = SimpleNamespace(get_rng_state=lambda: state[-1], set_rng_state=state.append)
    here = SimpleNamespace(
        device=torch.device(kind, 0), process_index=0, num_processes=1, is_main_process=True
    )
    monkeypatch.setattr(checkpoint, "PartialState", lambda: here)
    monkeypatch.setattr(torch, kind, module)
    save_checkpoint(tmp_path / "checkpoint.pt", {})
    state.append(torch.tensor([2]))
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    restore_random_state(loaded)
    assert state[-1] == 1
    here.device = torch.device("cpu")  # where it has no place to go to
    restore_random_state(loaded)
    assert len(state) == 3


def test_another_number_of_processes_has_no_state_to_put_back(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {})
    state = load_checkpoint(path)
    state["random_states"] = state["random_states"] * 2
    torch.manual_seed(1)
    before = torch.get_rng_state()
    restore_random_state(state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "torn"])
def test_what_cannot_be_read(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.rand(1000)})
    path.write_bytes(path.read_bytes()[:2000] if content == "torn" else content)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*--resume false --overwrite true"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"step": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "sprung").exists()


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from mce_llm.vision.running import CheckpointError, save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(path, {"step": 2, "weights": torch.rand(1_000_000)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files here")
def test_no_space_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "cannot write the checkpoint" in done.stdout, done.stderr[-2000:]
    assert "goes on from it" in done.stdout
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
