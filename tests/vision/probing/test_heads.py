import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mce_llm.vision.probing.heads import ParallelHeads, heads_optimizer


def problem(seed=0, n=64, width=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    features = torch.randn(n, width, generator=generator) * 3 + 5
    features[torch.arange(n), labels] += 6
    return features, labels


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_heads_side_by_side_learn_what_each_learns_alone(name):
    rates = [0.05, 0.5, 3.0]
    together = ParallelHeads(6, 4, 3, batch_norm=True, seed=1)
    optimizer = heads_optimizer(name, together, rates, 0.9, 1e-3)
    alone = []
    for rate in rates:
        head = ParallelHeads(6, 4, 1, batch_norm=True, seed=1)
        alone.append((head, heads_optimizer(name, head, [rate], 0.9, 1e-3)))
    for step in range(5):
        features, labels = problem(step)
        result = together.train_step(optimizer, features, labels)
        singles = [head.train_step(own, features, labels) for head, own in alone]
        assert result.images == 64
        torch.testing.assert_close(result.losses, torch.cat([single.losses for single in singles]))
    for number, (head, _) in enumerate(alone):
        torch.testing.assert_close(together.heads[number].weight, head.heads[0].weight)
        torch.testing.assert_close(together.heads[number].bias, head.heads[0].bias)


def test_a_step_is_torch_s_own():
    heads = ParallelHeads(6, 4, 1, batch_norm=True, seed=2)
    plain = nn.Sequential(nn.BatchNorm1d(6, eps=1e-6, affine=False), copy.deepcopy(heads.heads[0]))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2)
    ours = heads_optimizer("sgd", heads, [0.3], 0.9, 1e-2)
    for step in range(3):
        features, labels = problem(step)
        loss = F.cross_entropy(plain(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result = heads.train_step(ours, features, labels)
        assert result.losses[0].item() / 64 == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(heads.heads[0].weight, plain[1].weight)
    features, _ = problem(9)
    torch.testing.assert_close(heads.logits(features, 0, rows=10), plain.eval()(features).detach())


def test_a_head_that_diverges_takes_none_with_it():
    heads = ParallelHeads(6, 4, 2, batch_norm=False, seed=0)
    optimizer = heads_optimizer("sgd", heads, [0.01, 1e38], 0.0, 0.0)
    for step in range(4):
        result = heads.train_step(optimizer, *problem(step))
    assert torch.isfinite(result.losses).tolist() == [True, False]
    assert torch.isfinite(heads.heads[0].weight).all()
    assert not torch.isfinite(heads.heads[1].weight).all()


def test_lars_leaves_biases_alone():
    heads = ParallelHeads(6, 4, 2, batch_norm=False, seed=0)
    groups = heads_optimizer("lars", heads, [0.5, 2.0], 0.9, 0.1).param_groups
    assert [(g["params"][0].ndim, g["lr"], g["always_adapt"], g["weight_decay"]) for g in groups] == [
        (2, 0.5, True, 0.1),
        (1, 0.5, False, 0.0),
        (2, 2.0, True, 0.1),
        (1, 2.0, False, 0.0),
    ]
