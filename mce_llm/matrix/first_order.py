"""Gradients in closed form: how a function here enters the autograd graph, and where it stops.

The matrix functions are differentiable once. `torch.autograd.function.once_differentiable` would let a second
derivative pass as zero whenever the incoming gradient is a constant, so that a gradient penalty would train on
a wrong number; here it is an error.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor


class _FirstDerivative(torch.autograd.Function):
    """The identity on a gradient; differentiating it again is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            "this function of mce_llm can be differentiated once: its second derivative is not implemented. "
            "Leave it out of the part that is differentiated twice (a gradient penalty, say)"
        )


def first_derivative(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """A gradient that a backward pass computed without graph, marked so that using its derivative raises.

    Args:
        gradient: What the backward pass returns.
        inputs: The tensors that it depends on.

    Returns:
        The gradient itself, unless the backward pass runs with `create_graph=True`.
    """
    return _FirstDerivative.apply(gradient, *inputs) if torch.is_grad_enabled() else gradient


class _KnownGradient(torch.autograd.Function):
    """A value with its gradients to one or two stacks of matrices, all computed beforehand."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        first: Tensor,
        first_gradient: Tensor | None,
        second: Tensor | None,
        second_gradient: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(first, first_gradient, second, second_gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, first_gradient, second, second_gradient = ctx.saved_tensors
        inputs = [grads[0], *(A for A in (first, second) if A is not None)]

        def scaled(A: Tensor | None, gradient: Tensor | None) -> Tensor | None:
            if A is None or gradient is None:
                return None
            with torch.no_grad():
                total = (grads[0][..., None, None] * gradient).sum_to_size(A.shape)
            return first_derivative(total, *inputs)

        return None, scaled(first, first_gradient), None, scaled(second, second_gradient), None


def with_gradient(
    value: Tensor,
    first: Tensor,
    first_gradient: Tensor | None,
    second: Tensor | None = None,
    second_gradient: Tensor | None = None,
) -> Tensor:
    """The value, put into the autograd graph with gradients that are already known.

    Args:
        value: (...), outside the graph.
        first: (..., d, d), the first matrix argument.
        first_gradient: (..., d, d), ∂value/∂first, or None where it is not needed.
        second: (..., d, d), the second matrix argument, if there is one.
        second_gradient: (..., d, d), ∂value/∂second, or None.

    Returns:
        (...), differentiable once.
    """
    return _KnownGradient.apply(value, first, first_gradient, second, second_gradient)


def needs_gradient(A: Tensor) -> bool:
    """Whether a gradient to A may be asked for; ask outside `torch.no_grad()`.

    Args:
        A: Any tensor.

    Returns:
        True inside an autograd graph that records A.
    """
    return A.requires_grad and torch.is_grad_enabled()
