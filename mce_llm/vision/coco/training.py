"""The steps of training a detector: optimizer, one stretch of iterations, and the state that a run goes on from.

When to evaluate and what to write in the end is the script's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mce_llm.running.processes import say
from mce_llm.vision.coco.errors import DetectorError
from mce_llm.vision.coco.settings import ScheduleSettings


@dataclass
class TrainingState:
    """How far a run has come, besides weights and momenta.

    Attributes:
        iteration: Steps that were made.
        evaluated: The iteration of the last evaluation, −1 for none.
        best: Its box AP was the highest so far, −1 for none.
        best_iteration: When.
        sums: Losses since the last line of the journal, summed over steps; the total first, then by name.
        count: How many steps these are.
    """

    iteration: int = 0
    evaluated: int = -1
    best: float = -1.0
    best_iteration: int = -1
    sums: Tensor | None = None
    count: int = 0

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return dict(vars(self))


def make_optimizer(detector: nn.Module, settings: ScheduleSettings) -> torch.optim.SGD:
    """SGD over what is trained; norms have a weight decay of their own.

    Args:
        detector: Its parameters that require gradients are trained.
        settings: Momentum and decays.

    Returns:
        The optimizer; its learning rate is set at each step.
    """
    norms = {
        id(parameter)
        for module in detector.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": settings.norm_weight_decay},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate_at(0),
        momentum=settings.momentum,
    )


def train_stretch(
    model: nn.Module,
    optimizer: Any,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]],
    state: TrainingState,
    settings: ScheduleSettings,
    accelerator: Accelerator,
    *,
    seed: int,
    after_step: Callable[[], None],
    log: Callable[[int, dict[str, float]], None],
    bar: Any,
) -> None:
    """Make a step with each batch; the state goes along.

    Every step seeds torch with (seed, iteration, process), so the samplers inside RPN and RoI heads draw the same
    after a resume as they would have without.

    Args:
        model: The detector, prepared by the accelerator.
        optimizer: Likewise.
        batches: This process's part of each batch.
        state: How far the run has come.
        settings: Of the schedule.
        accelerator: Devices and precision.
        seed: Of the run.
        after_step: Called when a step is whole: may save, and leave.
        log: Takes an iteration and values, each `log_every` steps.
        bar: A progress bar.

    Raises:
        DetectorError: A loss is not finite.
    """
    model.train()
    device = accelerator.device
    begun = time.monotonic()
    for done, (images, targets) in enumerate(batches, start=1):
        seed_step(seed, state.iteration, accelerator.process_index)
        rate = settings.learning_rate_at(state.iteration)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = model(
            [image.to(device, non_blocking=True) for image in images],
            [
                {name: value.to(device, non_blocking=True) for name, value in target.items()}
                for target in targets
            ],
        )
        total = torch.stack(list(losses.values())).sum()
        _check_finite(total, losses, state.iteration)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(total)
        if settings.clip_gradients is not None:
            accelerator.clip_grad_norm_(model.parameters(), settings.clip_gradients)
        optimizer.step()
        state.iteration += 1
        values = torch.stack([total, *(losses[name] for name in sorted(losses))]).detach()
        state.sums = values if state.sums is None else state.sums.to(device) + values
        state.count += 1
        bar.update(1)
        if state.iteration % settings.log_every == 0:
            window = dict(zip(("loss", *sorted(losses)), _window_means(state, accelerator), strict=True))
            window["learning_rate"] = rate
            log(state.iteration, window)
            seconds = (time.monotonic() - begun) / done
            _show(window, state.iteration, settings.iterations or 0, seconds, bar)
        after_step()


def seed_step(seed: int, iteration: int, process: int) -> None:
    """Seed torch for one step of one process."""
    word = np.random.SeedSequence([seed, iteration, process]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word) >> 1)


def _check_finite(total: Tensor, losses: dict[str, Tensor], iteration: int) -> None:
    if not torch.isfinite(total):
        parts = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        raise DetectorError(
            f"the loss is not finite at iteration {iteration} ({parts}); lower learning_rate, lengthen "
            "warmup_iterations, or set clip_gradients"
        )


def _window_means(state: TrainingState, accelerator: Accelerator) -> list[float]:
    """Means since the last line of the journal, over all processes; the window begins anew."""
    assert state.sums is not None
    means: list[float] = accelerator.reduce(state.sums / state.count, reduction="mean").tolist()
    state.sums, state.count = None, 0
    return means


def _show(values: dict[str, float], iteration: int, iterations: int, seconds: float, bar: Any) -> None:
    shown = {name.removeprefix("loss_"): f"{value:.3g}" for name, value in values.items()}
    if not bar.disable:
        bar.set_postfix(shown, refresh=False)
        return
    left = int(seconds * (iterations - iteration))
    text = "  ".join(f"{name} {value}" for name, value in shown.items())
    say(
        f"iteration {iteration}/{iterations}  {text}  {seconds:.2f} s each, {left // 3600}:{left // 60 % 60:02d} h left"
    )
