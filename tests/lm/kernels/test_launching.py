"""Where the kernels run."""

import pytest
import torch

from mce_llm.lm.kernels import launching


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of some capability, with Triton beside it."""

    def pretend(capability):
        launching._compiles_for.cache_clear()
        monkeypatch.setattr(launching, "_installed", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    yield pretend
    launching._compiles_for.cache_clear()


@pytest.mark.parametrize(
    ("capability", "answer"), [((9, 0), True), ((8, 0), True), ((7, 5), False), (None, False)]
)
def test_gpus_that_triton_compiles_for(gpu, capability, answer):
    gpu(capability)
    assert launching.runs_on(torch.device("cuda", 0)) is answer
    assert not launching.runs_on(torch.device("cpu"))


def test_an_interpreter_runs_on_the_cpu_alone(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launching.runs_on(torch.device("cpu"))
    assert not launching.runs_on(torch.device("cuda", 0))


def test_nowhere_without_triton(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr(launching, "_installed", lambda: False)
    assert not launching.runs_on(torch.device("cuda", 0))


@pytest.mark.parametrize(("number", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(number, power):
    assert launching.power_of_two(number) == power
