"""Devices that are not here: what is asked of torch's module for each type, with stand-ins in their place."""

from types import SimpleNamespace

import pytest
import torch

from mce_llm.running import devices


@pytest.fixture(autouse=True)
def modules_of_this_test():
    """Torch remembers the module of a device: that of an earlier test, or this one's stand-in later on."""
    forget = getattr(torch.get_device_module, "cache_clear", lambda: None)
    forget()
    yield
    forget()


class Module:
    """What torch.cuda and torch.xpu have in common, over one number in place of random states."""

    def __init__(self, *, initialized=True):
        self.calls, self.state, self._initialized = [], 1, initialized

    def synchronize(self, device):
        self.calls.append(device)

    def max_memory_allocated(self, device):
        return 5 if device.index == 1 else 0

    def max_memory_reserved(self, device):
        return 8 if device.index == 1 else 0

    def is_initialized(self):
        return self._initialized

    def get_rng_state_all(self):
        return [self.state]

    def set_rng_state_all(self, states):
        (self.state,) = states

    def get_rng_state(self, device):
        return torch.tensor(self.state)

    def set_rng_state(self, state, device):
        self.state = int(state)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_cuda_and_xpu(monkeypatch, kind):
    module, device = Module(), torch.device(kind, 1)
    monkeypatch.setattr(torch, kind, module)
    devices.synchronize(device)
    assert module.calls == [device]
    assert devices.peak_memory(device) == (5, 8)
    with devices.same_random_state(device):
        module.state = 2
        torch.rand(1)
    assert module.state == 1


def mps(monkeypatch):
    """MPS, whose functions take no device, and which counts no peaks."""
    states = [torch.tensor(1)]
    module = SimpleNamespace(
        calls=0, get_rng_state=lambda: states[-1], set_rng_state=states.append, states=states
    )
    module.synchronize = lambda: setattr(module, "calls", module.calls + 1)
    monkeypatch.setattr(torch, "mps", module)
    return module


def test_mps(monkeypatch):
    module, device = mps(monkeypatch), torch.device("mps")
    devices.synchronize(device)
    assert module.calls == 1
    assert devices.peak_memory(device) is None
    with devices.same_random_state(device):
        module.states.append(torch.tensor(2))
    assert module.states[-1] == 1


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_devices_without_a_module(kind):
    device = torch.device(kind)
    devices.synchronize(device)
    assert devices.peak_memory(device) is None
    before = torch.get_rng_state()
    with devices.same_random_state(device):
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("initialized", [True, False])
def test_states_of_all_devices_in_use(monkeypatch, kind, initialized):
    module = Module(initialized=initialized)
    monkeypatch.setattr(torch, kind, module)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    before = torch.get_rng_state()
    with devices.same_random_states():
        module.state = 2
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)
    # One that is not in use has none yet, and asking for it would start it.
    assert module.state == (1 if initialized else 2)


def test_states_of_mps_and_of_the_cpu_alone(monkeypatch):
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with devices.same_random_states():
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)
    module = mps(monkeypatch)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    with devices.same_random_states():
        module.states.append(torch.tensor(2))
        torch.rand(1)
    assert module.states[-1] == 1
    assert torch.equal(torch.get_rng_state(), before)
