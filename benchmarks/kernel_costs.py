"""Bytes and arithmetic of our Triton programs, for dry runs: what their arguments say that they read and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from op_costs import Cost
from torch import Tensor


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def softmax_program(
    logits: Tensor,
    labels: Tensor,
    cross_entropies: Tensor,
    largest: Tensor,
    norms: Tensor,
    maxima: Tensor,
    *_: Any,
    **settings: Any,
) -> Cost:
    """One pass over the logits."""
    written = _bytes(cross_entropies, largest, norms)
    if settings["MAXIMA"]:
        written += _bytes(maxima)
    return Cost(_bytes(logits, labels), written)


def gradient_program(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    norms: Tensor,
    factors: Tensor,
    ids: Tensor,
    kept: Tensor,
    gradients: Tensor,
    *_: Any,
    **__: Any,
) -> Cost:
    """One pass over the logits that writes their gradient."""
    return Cost(_bytes(logits, labels, largest, norms, factors, ids, kept), _bytes(gradients))


def gram_program(
    table: Tensor,
    mean: Tensor,
    scale: Tensor,
    ids: Tensor,
    grams: Tensor,
    labels: Tensor,
    labels2: Tensor,
    *_: Any,
    **__: Any,
) -> Cost:
    """Every row of every frame read once; two 16-bit products of the rows beside the label."""
    width = table.shape[1]
    rows = ids.numel() * width * table.element_size()
    flops = 2 * 2 * grams.numel() * width
    return Cost(rows + _bytes(ids), _bytes(grams, labels, labels2), flops, torch.float16)


def form_program(
    grams: Tensor,
    labels: Tensor,
    labels2: Tensor,
    weights: Tensor,
    shifts: Tensor,
    poles: Tensor,
    values: Tensor,
    previous: Tensor,
    gradients: Tensor,
    traces: Tensor,
    *_: Any,
    **settings: Any,
) -> Cost:
    """Three products with the Gram matrix and four with the basis a step, in float32."""
    order = settings["ORDER"]
    flops = order * (3 * 2 * grams.numel() + 4 * 2 * order * labels.numel())
    read = _bytes(grams, labels, labels2, weights, shifts, poles)
    return Cost(read, _bytes(values, gradients, traces), flops, torch.float32)


def frame_program(*arguments: Any, **_: Any) -> Cost:
    """Kept tokens in, frames out."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return _in_and_out(tensors, reads=7)


def factor_program(*arguments: Any, **_: Any) -> Cost:
    """Quadratic forms in, factors of the gradient out."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return _in_and_out(tensors, reads=7)


def _in_and_out(tensors: list[Tensor], reads: int) -> Cost:
    """Those with a number a position or a kept token; of the vocabulary's scales as many are read as there are ids."""
    positions = tensors[-1].shape[0]
    inside = [tensor for tensor in tensors[:reads] if tensor.shape[0] == positions]
    return Cost(_bytes(*inside) + 4 * tensors[0].numel(), _bytes(*tensors[reads:]))


COSTS: dict[str, Callable[..., Cost]] = {
    program.__name__: program
    for program in (
        softmax_program,
        frame_program,
        gram_program,
        form_program,
        factor_program,
        gradient_program,
    )
}
