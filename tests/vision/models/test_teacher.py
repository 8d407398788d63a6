"""The averaged teacher."""

import math

import pytest
import torch
from torch import nn

from mce_llm.vision.models import MomentumTeacher


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_parameters_and_statistics_are_averaged():
    torch.manual_seed(0)
    student = network()
    teacher = MomentumTeacher(student, 0.9)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    for value in student.parameters():
        value.data.add_(torch.randn_like(value))
    student(torch.randn(8, 3) * 5 + 2)  # moves the running statistics
    teacher.update(student, progress=0.0)
    after, theirs = teacher.network.state_dict(), student.state_dict()
    assert not torch.equal(theirs["1.running_var"], before["1.running_var"])
    for name, value in after.items():
        expected = 0.9 * before[name] + 0.1 * theirs[name] if value.is_floating_point() else theirs[name]
        torch.testing.assert_close(value, expected, msg=name)


def test_the_momentum_rises_by_half_a_cosine():
    teacher = MomentumTeacher(network(), 0.996)
    assert teacher.momentum_at(0) == pytest.approx(0.996)
    assert teacher.momentum_at(0.5) == pytest.approx(0.998)
    assert teacher.momentum_at(0.25) == pytest.approx(1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2)
    assert teacher.momentum_at(1) == 1
    assert teacher.momentum_at(2) == 1


def test_it_normalises_by_the_batch_and_keeps_its_statistics():
    student = network()
    teacher = MomentumTeacher(student)
    images = torch.randn(16, 3) * 3 + 1
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    given = teacher(images)
    assert not given.requires_grad
    torch.testing.assert_close(given, student.train()(images).detach())
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    teacher.network.eval()
    assert not torch.allclose(teacher.network(images), given)  # with running statistics it is something else


def test_it_is_not_trained():
    assert not [p for p in MomentumTeacher(network()).parameters() if p.requires_grad]


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\].*0.996 is the usual"):
        MomentumTeacher(network(), momentum)
