"""The token geometry is read once an optimizer step, and never one that the weights have left behind."""

import pytest
import torch

from helpers.monitored import trainer_for
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.geometry_cache import GeometryCache

ACCUMULATION, STEPS = 3, 4


class WritesData(torch.optim.SGD):
    """Changes weights as engines do: through `.data`, which torch does not count."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data.add_(weight.grad, alpha=-group["lr"])


@pytest.fixture
def reads(monkeypatch):
    own, seen = TokenGeometry.from_table.__func__, []

    def from_table(cls, *args):
        seen.append(1)
        return own(cls, *args)

    monkeypatch.setattr(TokenGeometry, "from_table", classmethod(from_table))
    return seen


def trained(folder, optimizer=WritesData, **settings):
    trainer = trainer_for(
        folder,
        rows=40,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=STEPS,
        monitor_steps=0,
        **settings,
    )
    trainer.optimizer = optimizer(trainer.model.parameters(), lr=1.0)
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_once_a_step_and_once_an_evaluation(tmp_path, reads):
    trainer = trained(tmp_path)
    assert len(reads) == STEPS
    trainer.evaluate(trainer.train_dataset)
    assert len(reads) == STEPS + 1


def test_the_losses_are_those_of_geometries_read_anew(tmp_path, monkeypatch):
    kept = trained(tmp_path / "kept")
    monkeypatch.setattr(GeometryCache, "geometry", lambda self, *given: TokenGeometry.from_table(*given))
    anew = trained(tmp_path / "anew")
    assert logged(kept, "loss") == logged(anew, "loss")
    assert logged(kept, "mce_loss") == logged(anew, "mce_loss")
    assert len(set(logged(kept, "mce_loss"))) == STEPS
    for name, weight in kept.model.state_dict().items():
        assert torch.equal(weight, anew.model.state_dict()[name]), name


def test_a_geometry_of_the_step_before_would_be_seen(tmp_path, monkeypatch):
    """The control: without being told that the weights have changed, the losses differ."""
    kept = trained(tmp_path / "kept")
    monkeypatch.setattr(GeometryCache, "clear", lambda self: None)
    stale = trained(tmp_path / "stale")
    assert logged(kept, "mce_loss")[0] == logged(stale, "mce_loss")[0]
    assert logged(kept, "mce_loss")[1:] != logged(stale, "mce_loss")[1:]
