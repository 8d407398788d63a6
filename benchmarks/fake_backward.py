"""The backward pass without the autograd engine, which wants a real device where tensors say that they have one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Take = Callable[[Tensor, Tensor], None]


def backward(make: Callable[[], Tensor]) -> None:
    """Form a loss and send its gradient through the graph to `.grad` of the leaves, as the engine would.

    A node is let go once it has run, so that what it saved is freed as it is by the engine. `torch.autograd.grad`, where
    the loss calls it, goes the same way; what it differentiates is then freed with the last reference to it.

    Args:
        make: Forms the loss, a scalar, and keeps nothing of it.
    """
    with patch.object(torch.autograd, "grad", _grad):
        loss = make()
        gradient, first = torch.ones_like(loss), loss.grad_fn
        del loss
        _Walk(_accumulate).run([(first, {0: gradient})])


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient.detach() if leaf.grad is None else leaf.grad + gradient


def _grad(output: Tensor, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """torch.autograd.grad of one scalar, in leaves."""
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    found: dict[int, Tensor] = {}

    def take(leaf: Tensor, gradient: Tensor) -> None:
        if any(leaf is wanted for wanted in leaves):
            found[id(leaf)] = gradient

    _Walk(take).run([(output.grad_fn, {0: torch.ones_like(output)})])
    return tuple(found[id(leaf)] for leaf in leaves)


class _Walk:
    """Runs every node of a graph when all its gradients have arrived.

    Args:
        take: Is given each leaf with its gradient.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._missing: dict[Any, int] = {}
        self._arrived: dict[Any, dict[int, Tensor]] = {}

    def run(self, ready: list[tuple[Any, dict[int, Tensor]]]) -> None:
        """Begin with these nodes and their gradients by number; the list is used up."""
        self._count_edges([node for node, _ in ready])
        # A graph task, which there is none of here, would say that the graph is not kept.
        task = torch._C._autograd
        with torch.no_grad(), patch.object(task, "_get_current_graph_task_keep_graph", lambda: False):
            while ready:
                ready.sort(key=lambda entry: _sequence(entry[0]))
                ready += self._step(*ready.pop())

    def _count_edges(self, todo: list[Any]) -> None:
        while todo:
            for following, _ in todo.pop().next_functions:
                if following is None:
                    continue
                if following not in self._missing:
                    todo.append(following)
                self._missing[following] = self._missing.get(following, 0) + 1

    def _step(self, node: Any, gradients: dict[int, Tensor]) -> list[tuple[Any, dict[int, Tensor]]]:
        """Run one node and hand on what it gives; returns the nodes that have all their gradients then."""
        ready = []
        for (following, number), result in self._results(node, gradients):
            if result is not None:
                sums = self._arrived.setdefault(following, {})
                sums[number] = sums[number] + result if number in sums else result
            self._missing[following] -= 1
            if not self._missing[following]:
                del self._missing[following]
                ready.append((following, self._arrived.pop(following, {})))
        return ready

    def _results(
        self, node: Any, gradients: dict[int, Tensor]
    ) -> list[tuple[tuple[Any, int], Tensor | None]]:
        """Run one node: pairs of who comes next, with the number of its gradient, and the gradient."""
        following = [edge for edge in node.next_functions if edge[0] is not None]
        if not gradients:
            return [(edge, None) for edge in following]
        if hasattr(node, "variable"):  # of a leaf
            self._take(node.variable, gradients.pop(0))
            return []
        given = [gradients.pop(number, None) for number in range(max(gradients) + 1)]
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            # Written in Python: there is a result for each argument, and an edge for each tensor.
            results = _tuple(node.apply(*given))
            needed = zip(results, node.needs_input_grad, strict=True)
            return list(zip(following, (result for result, need in needed if need), strict=True))
        pairs = zip(node.next_functions, _tuple(node(*given)), strict=True)
        return [(edge, result) for edge, result in pairs if edge[0] is not None]


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _sequence(node: Any) -> int:
    """The engine runs what was recorded last first, and gradients of leaves as soon as they are there."""
    return sys.maxsize if hasattr(node, "variable") else node._sequence_nr()
