"""The optimizers of self-supervised training by name, and which parameters they leave out of decay and adaptation.

LARS is timm's: its step is that of the paper, and it is kept and tested there. What it does not know is that biases and
the parameters of norms are to be left out, which is what `parameter_groups` is for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import raise_all

OPTIMIZERS = ("sgd", "lars")
TRUST_COEFFICIENT = 0.001  # η of the LARS paper


class OptimizerError(MceLlmError, ValueError):
    """An optimizer that cannot be built; the message says which value to change."""


def parameter_groups(
    module: nn.Module, weight_decay: float, *, lars: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """Split the trained parameters into matrices and kernels on one side, vectors on the other.

    Vectors (biases, and scales and shifts of norms: one dimension or none) get no weight decay, and under LARS no
    adaptation: their norms say nothing about the scale of a layer, and those that start at zero have none (You et al.
    2017; SimCLR and BYOL leave out the same).

    Args:
        module: What is trained; parameters that require no gradient are left alone.
        weight_decay: β, for the first group.
        lars: Add what timm's LARS must be told: `always_adapt`, true for the first group and false for the second.
        **options: Further options of both groups, such as `lr`.

    Returns:
        Groups for an optimizer, without empty ones.

    Raises:
        OptimizerError: Nothing in the module is trained.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise OptimizerError(
            "no parameter requires a gradient, so there is nothing to optimize; is the module frozen?"
        )
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": weight_decay, **options},
        {"params": vectors, "weight_decay": 0.0, **options},
    ]
    if lars:
        for group, adapted in zip(groups, (True, False), strict=True):
            group["always_adapt"] = adapted
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str, module: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer for all that is trained in a module.

    `sgd` decays every parameter, as the official code of SimSiam, MEC and Matrix-SSL does. With g the gradient, w the
    parameter, v the momentum, m its factor, β the decay and γ the learning rate::

        v ← m v + (g + β w),  w ← w − γ v.

    `lars` is the layer-wise adaptive rate of You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks",
    arXiv 1708.03888, with the learning rate outside the momentum (as in apex's LARC and all later code)::

        r = η ‖w‖ / (‖g‖ + β ‖w‖ + 1e-8) for each tensor, or 1 where ‖w‖ or ‖g‖ is 0,
        v ← m v + r (g + β w),  w ← w − γ v,

    with η = 0.001. Vectors have r = 1 and β = 0 (`parameter_groups`).

    Args:
        name: sgd or lars.
        module: What is trained.
        lr: γ; a schedule may set the groups' `lr` later, and finds this value as their `initial_lr`.
        momentum: m.
        weight_decay: β.

    Returns:
        The optimizer.

    Raises:
        OptimizerError: An unknown name or unusable values, all that are wrong at once; or nothing is trained.
    """
    problems = []
    if name not in OPTIMIZERS:
        problems.append(
            f"optimizer must be {' or '.join(OPTIMIZERS)}, got {name!r}{nearest_hint(name, OPTIMIZERS)}"
        )
    if not 0 <= lr < float("inf"):
        problems.append(f"learning rate must be at least 0 and finite, got {lr}")
    if not 0 <= momentum < 1:
        problems.append(f"momentum must be in [0, 1), got {momentum}; 0.9 is the usual choice")
    if not 0 <= weight_decay < float("inf"):
        problems.append(f"weight decay must be at least 0 and finite, got {weight_decay}")
    raise_all(problems, OptimizerError)
    lars = name == "lars"
    groups = parameter_groups(module, weight_decay, lars=lars)
    if not lars:  # one group, its order that of the module
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [{"params": parameters, "weight_decay": weight_decay}]
    return optimizer_of(name, groups, lr, momentum)


def optimizer_of(
    name: str, groups: list[dict[str, Any]], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """The optimizer over groups that were made before, such as several with learning rates of their own.

    Args:
        name: sgd or lars; for lars the groups are those of `parameter_groups(…, lars=True)`.
        groups: Parameters and their options.
        lr: For groups that have no `lr`.
        momentum: m of all groups.

    Returns:
        The optimizer; each group knows the learning rate it began with as `initial_lr`.
    """
    optimizer: torch.optim.Optimizer
    if name == "lars":
        # timm comes with the extra `vision`, and pretraining by SGD does without it.
        from timm.optim import Lars

        optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=TRUST_COEFFICIENT)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def restore_optimizer(optimizer: Any, saved: dict[str, Any]) -> None:
    """Put the momenta of a checkpoint back, and leave rates, decays and momentum factors as the settings of now have them.

    torch's own way brings the options of a group back too, so that none of these could be changed on the way.

    Args:
        optimizer: Built as the settings say.
        saved: Its `state_dict` of before.
    """
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
