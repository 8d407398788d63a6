"""The networks around a loss."""

import pytest
import torch
from torch import nn

from mce_llm.vision.models import MomentumTeacher
from mce_llm.vision.training.method import METHODS, Student, targets


def student(method, classes=3):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    return Student(
        encoder, 6, METHODS[method], embedding_dim=8, projector_dim=7, predictor_dim=5, classes=classes
    )


@pytest.fixture
def views():
    torch.manual_seed(1)
    return torch.randn(9, 3, 2, 2), torch.randn(9, 3, 2, 2)


@pytest.mark.parametrize("method", list(METHODS))
def test_shapes_and_what_is_constant(method, views):
    module = student(method)
    teacher = MomentumTeacher(module.online)
    encoded = module(*views)
    assert encoded.z1.shape == encoded.z2.shape == (9, 8)
    assert encoded.features.shape == (9, 6)
    assert encoded.logits.shape == (9, 3)
    assert not encoded.features.requires_grad
    p1, p2 = targets(METHODS[method], teacher, encoded, *views)
    if METHODS[method].target == "none":
        assert p1 is p2 is None
        assert module.predictor is None
        return
    assert p1.shape == p2.shape == (9, 8)
    assert not p1.requires_grad
    # At the start the teacher is the student, so both kinds of target are its projections.
    torch.testing.assert_close(p1, encoded.projections[0].detach())
    torch.testing.assert_close(p2, encoded.projections[1].detach())


def test_the_probe_does_not_reach_the_encoder(views):
    module = student("matrix_ssl")
    module(*views).logits.sum().backward()
    assert module.probe.weight.grad is not None
    assert all(p.grad is None for name, p in module.named_parameters() if not name.startswith("probe."))


def test_no_classes_no_probe(views):
    module = student("sim_siam", classes=0)
    assert module.probe is None
    assert module(*views).logits is None


def test_views_do_not_share_a_batch_norm(views):
    """Each view is normalised by itself: shifting one leaves the other's embedding alone."""
    module = student("barlow_twins")
    first = module(*views).z1
    shifted = module(views[0], views[1] + 100).z1
    torch.testing.assert_close(first, shifted)
