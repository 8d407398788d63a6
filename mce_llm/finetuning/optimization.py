"""Do the settings of the optimizer and of the learning rate make any? Asked of a tiny model, before hours are spent.

transformers makes both when training starts, after data and weights are loaded, and passes over what it does not know.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler, trainer
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from mce_llm.running.devices import same_random_state
from mce_llm.running.messages import cause, nearest_hint, raise_all

# Where the number of steps follows from the data: what a schedule is asked with instead.
_STEPS = 1000
_FROM_THE_RUN = frozenset(
    {"self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
)
_WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")


def check_optimization(training: TrainingArguments, model: PreTrainedModel | None) -> None:
    """Make the optimizer and the schedule of a run, and take a step with both on the device of the run.

    Args:
        training: The settings.
        model: The model without weights, for optimizers that choose layers by name.

    Raises:
        ConfigurationError: They cannot be made, or settings would do nothing.
    """
    raise_all(optimization_problems(training, model, step=True))


def optimization_problems(
    training: TrainingArguments, model: PreTrainedModel | None, *, step: bool = False
) -> list[str]:
    """What is wrong with the settings of optimizer and schedule, one text each.

    Args:
        training: The settings.
        model: The model without weights, for optimizers that choose layers by name.
        step: Take a step on the device of the run, which is not every machine's.
    """
    if not (math.isfinite(training.learning_rate) and training.learning_rate >= 0):
        return [f"learning_rate must be 0 or more, got {training.learning_rate}; 2e-5 is usual"]
    device = training.device if step else torch.device("cpu")
    with _undisturbed(device):
        optimizer, problems = _optimizer(training, model, device)
        if optimizer is not None and step and not problems:
            problems = _step_problems(training, optimizer)
        plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
        return [*problems, *_schedule_problems(training, plain)]


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """No random number is drawn, and no warning given, that training would have drawn or given later."""
    with warnings.catch_warnings(), same_random_state(device):
        warnings.simplefilter("ignore")
        yield


class _Noted(dict[str, str]):
    """Arguments that remember which of them were asked for."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(super().keys())
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.asked.add(name)
        return super().pop(name, *default)


def _optimizer(
    training: TrainingArguments, model: PreTrainedModel | None, device: torch.device
) -> tuple[Any, list[str]]:
    """The optimizer of the run on a tiny model, or on the one without weights; and what is wrong with its settings."""
    name = _name(training.optim)
    given, problem = _arguments(training.optim_args)
    if problem:
        return None, [problem]
    chosen: Any = _Tiny().to(device) if training.optim_target_modules is None or model is None else model
    noted = _Noted(given)
    try:
        with _parsed_as(noted):
            made, arguments = Trainer.get_optimizer_cls_and_kwargs(training, chosen)
        groups = _groups(chosen, training.weight_decay)
        for key in ("params", "model", "optimizer_dict"):  # as `Trainer.create_optimizer` goes about it
            groups = arguments.pop(key, groups)
        optimizer = made(groups, **arguments)
    except Exception as error:  # as many types as there are optimizers
        return None, [f"{_subject(training)}: {cause(error)}"]
    idle = [key for key in given if key not in noted.asked]
    if idle:
        known = f"; it reads {', '.join(sorted(noted.asked))}" if noted.asked else ""
        hint = nearest_hint(idle[0], noted.asked) or known
        return optimizer, [f"optim_args: optim {name} does not read {', '.join(idle)}{hint}"]
    return optimizer, []


@contextmanager
def _parsed_as(arguments: _Noted) -> Iterator[None]:
    """Have transformers find these arguments in `optim_args`, so that they know which of them it reads."""
    held = trainer._parse_optim_args
    trainer._parse_optim_args = lambda _: arguments  # type: ignore[assignment]
    try:
        yield
    finally:
        trainer._parse_optim_args = held


def _arguments(text: Any) -> tuple[dict[str, str], str | None]:
    """`optim_args` taken apart as transformers does it, and what is wrong with it."""
    if not text:
        return {}, None
    parts = [part.split("=") for part in str(text).replace(" ", "").split(",")]
    if any(len(part) != 2 or not all(part) for part in parts):
        return {}, f"optim_args must be a mapping, or text such as momentum=0.9,nesterov=true, got {text!r}"
    return dict(parts), None


class _Tiny(nn.Module):
    """A layer with weights of two and of one dimension, which some optimizers tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _step_problems(training: TrainingArguments, optimizer: Any) -> list[str]:
    """What a step on this device says."""
    if isinstance(optimizer, LayerWiseDummyOptimizer) or not isinstance(optimizer, torch.optim.Optimizer):
        return []
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.is_meta for p in weights):
        return []
    try:
        if callable(switch := getattr(optimizer, "train", None)):  # schedule-free ones have two modes
            switch()
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    except Exception as error:  # as many types as there are optimizers
        return [f"{_subject(training)}: {cause(error)}"]
    return []


def _schedule_problems(training: TrainingArguments, optimizer: torch.optim.Optimizer) -> list[str]:
    """What is wrong with the learning rate's schedule."""
    name, given = _name(training.lr_scheduler_type), training.lr_scheduler_kwargs
    if given is not None and not isinstance(given, dict):
        return [f"lr_scheduler_kwargs must be a mapping, got {given!r}"]
    given = given or {}
    subject = f"lr_scheduler_type {name}" + (f" with lr_scheduler_kwargs {given}" if given else "")
    known = _schedule_arguments(training.lr_scheduler_type)
    if strange := [key for key in given if key not in known]:
        takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
        hint = nearest_hint(strange[0], known) or takes
        return [f"lr_scheduler_kwargs: lr_scheduler_type {name} does not take {', '.join(strange)}{hint}"]
    if lacking := [key for key, needed in known.items() if needed and key not in given]:
        return [
            f"lr_scheduler_type {name} needs lr_scheduler_kwargs: {{{', '.join(f'{key}: …' for key in lacking)}}}"
        ]
    steps = training.max_steps if training.max_steps > 0 else _STEPS
    warmup = training.get_warmup_steps(steps)
    try:
        schedule = get_scheduler(
            training.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(given),
        )
        if not isinstance(schedule, LambdaLR):
            return _reacting_problem(schedule, name, training.learning_rate)
        rates = [
            schedule.lr_lambdas[0](n)
            for n in sorted({0, 1, warmup, steps, *range(0, steps, -(-steps // 50))})
        ]
    except Exception as error:  # wrong types and values end in as many errors as there are schedules
        return [f"{subject}: {cause(error)}"]
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        return [f"{subject} gives a learning rate that is negative or not finite"]
    if max(rates) > 1 + 1e-6:
        top = max(rates) * training.learning_rate
        return [
            f"{subject} would raise the learning rate to {top:g}, above learning_rate {training.learning_rate:g}"
        ]
    return []


def _reacting_problem(schedule: Any, name: str, rate: float) -> list[str]:
    """What is wrong with a schedule that follows what was measured."""
    for _ in range(3):
        schedule.step(1.0)
    least = max(getattr(schedule, "min_lrs", [0.0]))
    if not isinstance(schedule, ReduceLROnPlateau) and least > rate:  # that one never raises it
        return [
            f"lr_scheduler_type {name} keeps the learning rate at min_lr {least:g} or above, and learning_rate is {rate:g}; "
            f"set lr_scheduler_kwargs: {{min_lr: {rate / 100:g}}}, say"
        ]
    return []


def _schedule_arguments(kind: Any) -> dict[str, bool]:
    """The arguments that a schedule takes beside what the run gives it, and whether it needs them."""
    if _name(kind) in _WITHOUT_ARGUMENTS:
        return {}
    made: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]
    parameters = inspect.signature(made).parameters
    if "kwargs" in parameters:  # handed on to a class
        made = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": trainer.GreedyLR}[_name(kind)]
        parameters = inspect.signature(made).parameters
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in parameters.items()
        if name not in _FROM_THE_RUN
    }


def _subject(training: TrainingArguments) -> str:
    return f"optim {_name(training.optim)}" + (
        f" with optim_args {training.optim_args}" if training.optim_args else ""
    )


def _name(choice: Any) -> str:
    return str(getattr(choice, "value", choice))
