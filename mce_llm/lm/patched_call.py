"""What a patched model, its layers and its head share during one call of the model's forward."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mce_llm.errors import MceLlmError
from mce_llm.lm.observation import BatchShape


class BypassedLossError(MceLlmError, RuntimeError):
    """A patched model is trained in a way that never computes its loss; the message says what to use instead."""


@dataclass(frozen=True)
class LossParts:
    """The parts of one forward's loss, detached; sums over its unmasked labels, in nats.

    Attributes:
        cross_entropy_sum: Σ CE.
        matrix_sum: Σ MCE (the batch kinds: n · MCE); None where it was not computed.
        num_tokens: n, the number of unmasked labels.
        details: Means over the n labels, see `LossOutput.details`.
        batch: The size of the input that they came from.
        term_sums: What another loss has beside CE, sums by the names of `LossOutput.terms`.
        router_sum: n · aux_loss of a mixture of experts, without its coefficient; None where the model gives none.
        loss: What the forward gave back, in the precision that it was computed in.
    """

    cross_entropy_sum: Tensor
    matrix_sum: Tensor | None
    num_tokens: int
    details: dict[str, Tensor]
    batch: BatchShape
    term_sums: dict[str, Tensor] = field(default_factory=dict)
    router_sum: Tensor | None = None
    loss: Tensor | None = None


def with_value(rounded: Tensor, exact: Tensor) -> Tensor:
    """Return a loss that an engine has rounded with the value that it had before; gradients take the engine's way.

    FSDP2 gives back what a module returns in the dtype of its products: bfloat16, in which a loss of 1 to 2 nats is on a grid
    of 0.008.

    Args:
        rounded: The loss as it came back.
        exact: As it was computed.
    """
    if rounded.dtype == exact.dtype:
        return rounded
    loss = rounded.to(exact.dtype)
    return loss + (exact.detach().to(loss.device) - loss.detach())


@dataclass
class LossRequest:
    """What the head needs to turn hidden states into a loss, and the loss once it has.

    Attributes:
        compute: Maps hidden states, (B, T, d), and this request to the scalar loss.
        with_logits: The head returns logits, and the loss only here.
        labels: (B, T) target ids.
        shifted: The labels already belong to the positions that predict them.
        num_items: What the summed loss is divided by; None for the mean over unmasked labels.
        embeddings: (V, d′) input embeddings, if they give the token geometry.
        attention_mask: As the model was given it.
        loss: Set by the head.
        returned: What the head's call returned, with whatever engines have done to it.
    """

    compute: Callable[[Tensor, LossRequest], Tensor]
    with_logits: bool
    labels: Tensor
    shifted: bool
    num_items: Tensor | int | None
    embeddings: Tensor | None
    attention_mask: Tensor | None
    loss: Tensor | None = None
    returned: Tensor | None = None


@dataclass
class CallState:
    """The state of one call; idle between calls.

    Layers and head refer to this rather than to the patch, which holds the model: `peft` copies a head, and would copy
    the model with it.

    Attributes:
        model_name: The model's class, for messages.
        at_work: The patch computes the loss; otherwise it is as if there were none.
        running: The model's forward is running.
        request: The loss that the head is asked for; None where it is asked for logits.
    """

    model_name: str
    at_work: bool = True
    running: bool = False
    request: LossRequest | None = None

    def refuse_bypass(self, layers: nn.Module, _: Any) -> None:
        """Pre-forward hook of the layers: refuse to train them outside the model's own forward.

        Raises:
            BypassedLossError: They are in training mode, with gradients, the patch is at work and the model's forward is
                not running.
        """
        if self.at_work and not self.running and layers.training and torch.is_grad_enabled():
            raise BypassedLossError(
                f"the layers of {self.model_name} are being trained past its own forward, so the matrix "
                "loss would have no part in it; trl.SFTTrainer does so (use mce_llm.lm.MatrixSFTTrainer). Where it is "
                "meant, call remove() on the patch first"
            )


def model_forward() -> Callable[..., Any]:
    """The function that replaces a model's forward; it finds the patch on the model, which may be a copy."""

    def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
        return model._matrix_loss_patch._forward(*args, **kwargs)

    return forward


def head_forward(head: nn.Linear, hidden: Tensor) -> Tensor:
    """What a head's forward is replaced by.

    Args:
        head: The head, with a `CallState` as its `_matrix_loss_call`.
        hidden: (B, T, d) hidden states.

    Returns:
        Logits, (B, T, V), or, where a loss is asked for without logits, the loss in every place of a (B, T, 1) tensor.
    """
    call: Any = head._matrix_loss_call
    request: LossRequest | None = call.request
    if request is None:
        return type(head).forward(head, hidden)
    request.loss = request.compute(hidden, request)
    if request.with_logits:
        return type(head).forward(head, hidden)
    # Of the rank of logits, because the model scales, caps or casts what its head returns. A copy, because torch
    # warns of the hooks that engines put on a view.
    return request.loss.expand(*hidden.shape[:-1], 1).clone()


def unpatch_copy(head: nn.Module) -> None:
    """Give a head its class's forward back if it is a copy, as `peft` makes them, of one that was patched then."""
    if head.__dict__.get("forward") == types.MethodType(head_forward, head):
        del head.forward
        del cast(Any, head)._matrix_loss_call
