"""Launches whose processes would work alone are refused."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from mce_llm.processes import LaunchError, check_engine, check_processes, join_processes


def test_one_process_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes().num_processes == 1


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
    check_engine(SimpleNamespace(distributed_type=engine))
    with pytest.raises(LaunchError, match=f"{engine.value} was asked for, but accelerate runs MULTI_CPU"):
        check_engine(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
