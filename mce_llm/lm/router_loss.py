"""The auxiliary loss of the routers in a mixture of experts: its coefficient, and what it adds to a micro-batch's loss.

transformers adds `coefficient · aux_loss` to the mean over a batch, also where the batch is one part of an accumulated
step or of one process; the routers are then trained the harder, the more parts there are. Here it is a mean over
labels as everything else.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from mce_llm.lm.heads import UnsupportedModelError

# As transformers' causal models call it, on the model itself or in its config (text_config where it sees images).
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def check_router_loss(model: PreTrainedModel) -> None:
    """Refuse a model whose loss has a part that would be lost, or whose weight is not known.

    Raises:
        UnsupportedModelError: The coefficient of its auxiliary loss cannot be found, or it adds a z-loss.
    """
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        router_coefficient(model)
    if factor := getattr(model, "z_loss_coefficient", None):
        raise UnsupportedModelError(
            f"{type(model).__name__} adds a z-loss of the logits to its loss (z_loss_coefficient {factor}), and the fused "
            "loss would leave it out; set z_loss_coefficient to 0"
        )


def router_coefficient(model: PreTrainedModel) -> float:
    """What the model multiplies its `aux_loss` with.

    Raises:
        UnsupportedModelError: It is called by none of the known names.
    """
    owner, name = _place(model)
    return float(getattr(owner, name))


def set_router_coefficient(model: PreTrainedModel, coefficient: float) -> None:
    """Multiply the model's `aux_loss` with another number from now on.

    Raises:
        UnsupportedModelError: As `router_coefficient`.
    """
    owner, name = _place(model)
    setattr(owner, name, coefficient)


def router_term(
    model: PreTrainedModel, auxiliary: Tensor, num_labels: int, num_items: Tensor | int | None
) -> Tensor:
    """Coefficient · aux_loss · n/N, the part of the routers in the loss of one micro-batch.

    The shares n/N of all micro-batches of a step, over all ranks, sum to one. So accumulation and ranks change nothing
    but what the auxiliary loss itself depends on: which rows are routed together.

    Args:
        model: A mixture of experts.
        auxiliary: `aux_loss` of its output, a scalar.
        num_labels: n, the unmasked labels of this micro-batch; where there are none, the part is zero.
        num_items: N, those of all micro-batches of the step; None where this one is the step.

    Returns:
        A scalar on the device of `auxiliary`, attached to its graph.
    """
    share: Tensor | float = 0.0
    if num_labels:
        share = 1.0 if num_items is None else num_labels / num_items
    if isinstance(share, Tensor):
        share = share.to(auxiliary.device)
    return router_coefficient(model) * share * auxiliary


def _place(model: PreTrainedModel) -> tuple[Any, str]:
    """(object, name of its attribute) that holds the coefficient."""
    for owner in (model, model.config, model.config.get_text_config()):
        for name in _COEFFICIENTS:
            if isinstance(getattr(owner, name, None), (int, float)):
                return owner, name
    raise UnsupportedModelError(
        f"{type(model).__name__} gives an auxiliary loss of its routers, and neither it nor its config says how much of it "
        f"belongs to the loss ({' or '.join(_COEFFICIENTS)}); set config.router_aux_loss_coef, or "
        "config.output_router_logits = False to train without it"
    )
