import copy

import pytest
import torch
from torch import nn

from mce_llm.vision.training.optimizers import OptimizerError, build_optimizer, parameter_groups


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


def with_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def lars_by_hand(weights, gradients_of_steps, rates, momentum, decay, trust=0.001):
    """Scalars and loops: what the docstring says, tensor by tensor."""
    velocity = [torch.zeros_like(w) for w in weights]
    weights = [w.clone() for w in weights]
    for step, (gradients, rate) in enumerate(zip(gradients_of_steps, rates, strict=True)):
        for i, g in enumerate(gradients):
            w = weights[i]
            if w.ndim > 1:
                w_norm, g_norm = float((w * w).sum()) ** 0.5, float((g * g).sum()) ** 0.5
                ratio = (
                    trust * w_norm / (g_norm + decay * w_norm + 1e-8) if w_norm > 0 and g_norm > 0 else 1.0
                )
                update = ratio * (g + decay * w)
            else:
                update = g
            velocity[i] = update if step == 0 else momentum * velocity[i] + update
            weights[i] = w - rate * velocity[i]
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_lars_is_the_formula_over_several_steps(momentum, decay):
    torch.manual_seed(0)
    module = network()
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer("lars", module, 0.5, momentum, decay)
    gradients, rates = [], [0.5, 0.4, 0.1]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        with_gradients(module, step)
        gradients.append([p.grad.clone() for p in module.parameters()])
        optimizer.step()
    expected = lars_by_hand(start, gradients, rates, momentum, decay)
    for got, want in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-12, atol=0)


def test_lars_takes_a_plain_step_where_a_norm_is_zero():
    module = nn.Linear(3, 2).double()
    decay = 0.1
    with torch.no_grad():
        module.weight.zero_()
    optimizer = build_optimizer("lars", module, 0.5, 0.0, decay)
    with_gradients(module, 0)
    gradient = module.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), -0.5 * gradient, rtol=1e-12, atol=0)
    before = module.weight.detach().clone()
    module.weight.grad.zero_()
    optimizer.step()  # only the decay is left, not adapted
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.5 * decay), rtol=1e-12, atol=0)


def test_lars_adapts_and_decays_no_vectors():
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer("lars", module, 0.5, 0.0, weight_decay=0.3)
    with_gradients(module, 1)
    optimizer.step()
    for parameter, old in zip(module.parameters(), before, strict=True):
        plain = old - 0.5 * parameter.grad
        same = torch.allclose(parameter.detach(), plain, rtol=1e-12, atol=0)
        assert same == (parameter.ndim == 1)


def test_parameter_groups_split_by_dimension_and_leave_frozen_ones_out():
    module = network()
    module[0].weight.requires_grad_(False)
    kernels, vectors = parameter_groups(module, 0.2, lars=True, lr=3.0)
    assert [p.shape for p in kernels["params"]] == [(5, 16)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(4,), (4,), (4,), (5,)]
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)
    assert (kernels["always_adapt"], vectors["always_adapt"]) == (True, False)
    assert kernels["lr"] == vectors["lr"] == 3.0
    (only,) = parameter_groups(nn.BatchNorm1d(3), 0.2)
    assert only["weight_decay"] == 0.0
    assert "always_adapt" not in only


def test_sgd_decays_everything_in_one_group():
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer("sgd", module, 0.5, 0.9, weight_decay=0.1)
    with_gradients(module, 2)
    optimizer.step()
    (group,) = optimizer.param_groups
    assert group["initial_lr"] == 0.5
    assert len(group["params"]) == len(before)
    for parameter, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(
            parameter.detach(), old - 0.5 * (parameter.grad + 0.1 * old), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_a_saved_state_goes_on_exactly(name):
    torch.manual_seed(0)
    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    whole = build_optimizer(name, first, 0.1, 0.9, 1e-3)
    for step in range(2):
        with_gradients(first, step)
        whole.step()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(name, second, 0.7, 0.9, 1e-3)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))  # its tensors would be shared
    for module, optimizer in ((first, whole), (second, resumed)):
        with_gradients(module, 5)
        optimizer.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (
            ("larz", nn.Linear(2, 2), 0.1),
            r"optimizer must be sgd or lars, got 'larz' \(did you mean 'lars'\?\)",
        ),
        (("sgd", nn.Linear(2, 2), -1.0), "learning rate must be at least 0 and finite, got -1.0"),
        (("sgd", nn.Linear(2, 2), float("nan")), "learning rate .* got nan"),
        (("lars", nn.Linear(2, 2), 0.1, 1.0), r"momentum must be in \[0, 1\), got 1.0; 0.9"),
        (("lars", nn.Linear(2, 2), 0.1, 2.0, -1.0), "momentum .*; weight decay .* got -1.0"),
        (("lars", nn.Linear(2, 2).requires_grad_(False), 0.1), "no parameter requires a gradient.*frozen"),
        (("sgd", nn.ReLU(), 0.1), "no parameter requires a gradient"),
    ],
)
def test_unusable_values_are_refused(arguments, pattern):
    with pytest.raises(OptimizerError, match=pattern):
        build_optimizer(*arguments)
