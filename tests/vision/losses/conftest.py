"""Rows of two views that the tests of this folder share."""

import pytest
import torch


@pytest.fixture(scope="session")
def views():
    """views(m, d, seed, noise): z1, z2 with gradients, p1, p2; correlated, not centred, of different lengths."""

    def make(m, d, seed=0, noise=0.7, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        base = draw(m, d) + 0.4 * draw(d)
        rows = [(base + noise * draw(m, d)) * (0.2 + draw(m, 1).abs()) for _ in range(4)]
        return [row.to(dtype).requires_grad_(index < 2) for index, row in enumerate(rows)]

    return make


@pytest.fixture(scope="session")
def value_and_gradients():
    """(loss, gradient to z1, gradient to z2) of loss(z1, z2, p1, p2)."""

    def evaluate(loss, rows):
        value = loss(*rows)
        return value.detach(), *torch.autograd.grad(value, rows[:2])

    return evaluate
