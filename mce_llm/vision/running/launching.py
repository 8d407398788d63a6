"""The processes of one run of a vision script: how they join, and how they agree to stop."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from mce_llm.running.installation import named_file
from mce_llm.running.launched_precision import launched_precision, unused_precision_text
from mce_llm.running.messages import cause, raise_all
from mce_llm.running.preemption import PreemptedError, reason, requested
from mce_llm.running.processes import LaunchError, check_processes, other_parallelism, say
from mce_llm.running.settings import ConfigurationError

_WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def make_accelerator(mixed_precision: str, *, cpu: bool) -> Accelerator:
    """Join the processes that were launched together.

    Args:
        mixed_precision: no, bf16 or fp16.
        cpu: Leave an accelerator alone.

    Returns:
        Their accelerator; data parallelism is the only engine it may have.

    Raises:
        LaunchError: The processes work alone, the model would be sharded, or gradients would be accumulated.
        ConfigurationError: The machine cannot do the precision.
    """
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") or 1) > 1:
        raise LaunchError(
            "gradient_accumulation_steps is set in the launch configuration, but the losses here are of whole batches: "
            "a sum over parts of a batch is another loss; set it to 1 and use more processes or smaller images"
        )
    raise_all(other_parallelism(), LaunchError)  # before accelerate says something else of it
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision, cpu=cpu or asked or not torch.accelerator.is_available()
        )
    except ValueError as error:  # such as fp16 on a CPU
        raise ConfigurationError(f"mixed_precision {mixed_precision}: {cause(error)}") from error
    check_processes(accelerator.num_processes)
    if launched_precision() != mixed_precision and (
        text := unused_precision_text(f"the settings have mixed_precision: {mixed_precision}")
    ):
        say(text)
    if accelerator.distributed_type not in _WHOLE:
        raise LaunchError(
            f"{accelerator.distributed_type.value} shards models, which the encoders here need not be; launch with "
            f"{named_file('recipes/accelerate/ddp.yaml')} (cpu.yaml without an accelerator)"
        )
    return accelerator


def images_per_process(batch_size: int, num_processes: int) -> int:
    """Deal the images of a step out to the processes.

    Args:
        batch_size: Images of a step, over all processes.
        num_processes: How many there are.

    Returns:
        Images of each process.

    Raises:
        ConfigurationError: They cannot be dealt out evenly.
    """
    if batch_size % num_processes:
        raise ConfigurationError(
            f"batch_size {batch_size} cannot be dealt out evenly to {num_processes} processes; "
            f"{batch_size // num_processes * num_processes or num_processes} can"
        )
    return batch_size // num_processes


def stop_agreed() -> bool:
    """Whether any process was asked to stop. All processes call this at the same step, and hear the same."""
    state = PartialState()
    if state.num_processes == 1:
        return requested()
    flag = torch.tensor([int(requested())], device=state.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def leave_if_asked(save: Callable[[], object], checkpoint: Path) -> None:
    """At the end of an optimizer step: where a stop was asked for, save and leave. All processes call this.

    Args:
        save: Writes the checkpoint.
        checkpoint: The file that it writes, for the message.

    Raises:
        PreemptedError: A stop was asked for; the process ends with exit code 143.
    """
    if stop_agreed():
        save()
        raise PreemptedError(reason(), checkpoint)
