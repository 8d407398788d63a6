"""Launches whose processes would work alone are refused."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from helpers.waiting import HANG
from mce_llm.running.processes import (
    LaunchError,
    check_engine,
    check_processes,
    join_processes,
    leave_processes,
)


def test_one_process_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes().num_processes == 1


def test_leaving_alone_changes_nothing():
    leave_processes()
    leave_processes()


WORKER = """
import pathlib, sys, time, torch
from mce_llm.running.processes import join_processes, leave_processes
state = join_processes()
if state.is_main_process:
    time.sleep(0.5)  # the other one has to wait for it
done = torch.tensor(float(state.is_main_process))
torch.distributed.all_reduce(done)
leave_processes()
assert not torch.distributed.is_initialized()
# One file each: what two processes print may be interleaved.
pathlib.Path(sys.argv[1], f"left-{state.process_index}").write_text(str(int(done)))
"""


def test_every_process_leaves(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=HANG,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert [(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.mark.parametrize(("launched", "seen"), [("2", 1), ("8", 1), ("1", 2)])
def test_processes_that_work_alone(monkeypatch, launched, seen):
    monkeypatch.setenv("WORLD_SIZE", launched)
    with pytest.raises(LaunchError, match=f"{launched} processes were launched.*sees {seen}.*use_cpu"):
        check_processes(seen)


@pytest.mark.parametrize(
    ("variable", "engine"),
    [("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED), ("ACCELERATE_USE_FSDP", DistributedType.FSDP)],
)
def test_an_engine_that_does_not_run(monkeypatch, variable, engine):
    check_engine(SimpleNamespace(distributed_type=DistributedType.NO))  # none was asked for
    monkeypatch.setenv(variable, "true")
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2))
    check_engine(SimpleNamespace(distributed_type=engine, state=state))
    with pytest.raises(LaunchError, match=f"{engine.value} was asked for, but accelerate runs MULTI_CPU"):
        check_engine(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))


@pytest.mark.parametrize(
    ("kind", "what"), [("cp", "context"), ("sp", "sequence"), ("tp", "tensor")], ids=["cp", "sp", "tp"]
)
def test_parallelism_that_would_be_taken_for_data_parallelism(monkeypatch, kind, what):
    for name in ("cp", "sp", "tp", "dp_shard"):
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "2")
    check_processes(1)  # left over from elsewhere: accelerate does not look at it
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    message = rf"{what} parallelism was asked for \(parallelism_config_{kind}_size 2\).*use data parallelism"
    with pytest.raises(LaunchError, match=message):
        check_processes(1)
    if kind == "tp":
        check_processes(1, tensor_parallel=True)
    else:
        with pytest.raises(LaunchError, match=message):
            check_processes(1, tensor_parallel=True)
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "1")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "2")
    check_processes(1)


def test_megatron_lm_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "false")
    check_processes(1)
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(LaunchError, match=r"Megatron-LM was asked for \(use_megatron_lm\)"):
        check_processes(1, tensor_parallel=True)


@pytest.mark.parametrize("plugin", [FullyShardedDataParallelPlugin(fsdp_version=1), SimpleNamespace()])
def test_the_first_version_of_fsdp(plugin):
    """Also where accelerate is too old to know another."""
    state = SimpleNamespace(fsdp_plugin=plugin)
    with pytest.raises(LaunchError, match=r"FSDP1 was asked for.*set fsdp_version: 2"):
        check_engine(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state))
