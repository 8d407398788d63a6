"""No file of a checkpoint gets to run code, whoever loads it."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

from mce_llm.lm.training.pickles import data_only, unsafe_file


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def as_archive(path, attack):
    torch.save({"state": torch.zeros(2), "more": [attack]}, path)


def as_pickle(path, attack):
    path.write_bytes(pickle.dumps({"state": attack}))


def as_old_protocol(path, attack):
    path.write_bytes(pickle.dumps({"state": attack}, protocol=0))


def as_old_archive(path, attack):
    torch.save({"state": attack}, path, _use_new_zipfile_serialization=False)


ARCHIVES = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_1.pth",
    "pytorch_model.bin",
    "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
]
INDEX = "optimizer_0/.metadata"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *(
            (name, write)
            for name in ARCHIVES
            for write in (as_archive, as_pickle, as_old_protocol, as_old_archive)
        ),
        *((INDEX, write) for write in (as_pickle, as_old_protocol)),
    ],
)
def test_attacks(tmp_path, name, write):
    path = tmp_path / "checkpoint-5" / name
    path.parent.mkdir(parents=True)
    write(path, Attack(tmp_path / "executed"))
    found = unsafe_file(tmp_path / "checkpoint-5")
    assert found.startswith(f"{path} holds ")
    assert "mkdir" in found or "does not write" in found or "no index" in found
    assert not (tmp_path / "executed").exists()


def test_the_attack_is_one(tmp_path):
    as_archive(tmp_path / "optimizer.pt", Attack(tmp_path / "executed"))
    torch.load(tmp_path / "optimizer.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_what_checkpoints_hold(tmp_path):
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"numpy": numpy.random.get_state(), "cpu": torch.get_rng_state()}, tmp_path / "rng_state.pth")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save({"args": Path("never loaded")}, tmp_path / "training_args.bin")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit")
    assert unsafe_file(tmp_path) is None
    with data_only():
        torch.load(tmp_path / "rng_state.pth", weights_only=False)


def test_an_archive_with_two_pickles(tmp_path):
    """What is looked at is what is loaded."""
    path = tmp_path / "optimizer.pt"
    torch.save({"state": 1}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("optimizer/data.pkl", pickle.dumps(Attack(tmp_path / "executed"), protocol=2))
    unsafe_file(tmp_path)
    with data_only(), contextlib.suppress(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_every_load_is_held_to_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    as_archive(tmp_path / "x.pt", Attack(tmp_path / "executed"))
    with data_only(), pytest.raises(pickle.UnpicklingError, match="mkdir"):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert not (tmp_path / "executed").exists()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with data_only():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.fixture
def group():
    """A process group of one, as torch's distributed checkpoints want it."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_checkpoint(tmp_path, group):
    from torch.distributed import checkpoint

    state = {"weight": torch.arange(6.0), "steps": 3, "half": torch.ones(2, dtype=torch.bfloat16)}
    checkpoint.save(dict(state), checkpoint_id=tmp_path / "model")
    assert (tmp_path / "model" / ".metadata").exists()
    assert unsafe_file(tmp_path) is None
    loaded = {"weight": torch.zeros(6), "steps": 0, "half": torch.zeros(2, dtype=torch.bfloat16)}
    with data_only():
        checkpoint.load(loaded, checkpoint_id=tmp_path / "model")
    assert loaded["steps"] == 3
    assert torch.equal(loaded["weight"], state["weight"])
