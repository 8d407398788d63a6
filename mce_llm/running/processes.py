"""Are all the processes that a launcher started really working together, with the engine that was asked for?

accelerate decides both on its own, and where it cannot do as asked (no accelerator and no `use_cpu`, for instance) it
goes on with every process alone: each trains on all the data, and all write to the same files. Here that is an error.
"""

from __future__ import annotations

import os
import time
from typing import Any, TypeVar

import accelerate
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from mce_llm.errors import MceLlmError
from mce_llm.running.installation import named_file
from mce_llm.running.messages import raise_all
from mce_llm.running.visible_text import print_visible

_Value = TypeVar("_Value")
_Error = TypeVar("_Error", bound=MceLlmError)
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
}
# What accelerate can split beside the data.
_SPLIT = {"cp": "context", "sp": "sequence", "tp": "tensor"}
_SECONDS_TO_LET_GO = 0.2


class LaunchError(MceLlmError, RuntimeError):
    """Processes do not work together as they were launched to; the message says what to change."""


def join_processes() -> PartialState:
    """Join the other processes of this launch, on the CPU where there is no accelerator or `--cpu` asked for it.

    Returns:
        The state, with as many processes as were launched.

    Raises:
        LaunchError: accelerate left the others out.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    state = PartialState(cpu=asked or not torch.accelerator.is_available())
    check_processes(state.num_processes)
    return state


def check_processes(num_processes: int, *, tensor_parallel: bool = False) -> None:
    """Make sure that as many processes work together as were launched, and each on data of its own.

    Args:
        num_processes: How many accelerate sees.
        tensor_parallel: Whether weights may be split over processes.

    Raises:
        LaunchError: It is another number, or the launch asks for parallelism that this program has not.
    """
    raise_all(other_parallelism(tensor_parallel=tensor_parallel), LaunchError)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes != launched:
        raise LaunchError(
            f"{launched} processes were launched, but each works alone (accelerate sees {num_processes}); without an "
            "accelerator, set use_cpu: true"
        )


def other_parallelism(config: Any = None, *, tensor_parallel: bool = False) -> list[str]:
    """What parallelism is asked for beside that over data, one text a kind.

    Processes that share sequences or weights get the same data, and count them once each where nobody knows of it.

    Args:
        config: accelerate's `ParallelismConfig`; by default what the launch asks for.
        tensor_parallel: Whether weights may be split over processes.
    """
    launched = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true"
    problems = []
    for name, what in _SPLIT.items():
        if name == "tp" and tensor_parallel:
            continue
        size = getattr(config, f"{name}_size", 1)
        if config is None and launched:
            size = int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))
        if size > 1:
            problems.append(
                f"{what} parallelism was asked for (parallelism_config_{name}_size {size}), which has not been tested here; "
                "leave it out, and use data parallelism (DDP, ZeRO, FSDP2)"
            )
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false").lower() == "true":
        problems.append(
            "Megatron-LM was asked for (use_megatron_lm), which puts models and losses of its own in the place of these; "
            "leave it out, and use data parallelism (DDP, ZeRO, FSDP2)"
        )
    return problems


def check_engine(accelerator: Accelerator) -> None:
    """Make sure that the sharding engine that was launched is the one that runs.

    Args:
        accelerator: The one that training uses.

    Raises:
        LaunchError: accelerate went on without it, or it is FSDP in its first version.
    """
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "false").lower() == "true" and accelerator.distributed_type != engine:
            raise LaunchError(
                f"{engine.value} was asked for, but accelerate runs {accelerator.distributed_type.value}: the model "
                "would not be sharded; launch with a configuration that fits this machine "
                f"({named_file('recipes/accelerate/cpu.yaml')} without an accelerator)"
            )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise LaunchError(first_fsdp_text())


def first_fsdp_text() -> str:
    """Why FSDP is refused in its first version, and what to set."""
    return (
        "FSDP1 was asked for, which flattens the weights that the loss needs whole; set fsdp_version: 2 (accelerate "
        f"1.6 or later, this is {accelerate.__version__}), as {named_file('recipes/accelerate/fsdp2.yaml')} does"
    )


def leave_processes() -> None:
    """Wait for the other processes and close the connections to them; call it where a program has done its work.

    Otherwise gloo's threads may still be letting go of the last tensors that they sent while the interpreter shuts
    down. They need its lock for that, Python ends a thread that asks for it then, and that aborts the whole process
    (pytorch/pytorch pull request 179291): a finished run would report a failure.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    state.wait_for_everyone()
    state.destroy_process_group()
    # A model wrapped for data parallelism keeps the threads alive even now. They hold nothing to wait on, so this
    # gives them the lock for a moment: of 30 launches of two processes, 6 aborted without it, and none with it.
    time.sleep(_SECONDS_TO_LET_GO)


def gather(value: _Value) -> list[_Value]:
    """Bring a value from every process to every process; all must call it, so it is a barrier too.

    Args:
        value: What this process gives; small, as it is pickled.

    Returns:
        The values in the order of the processes.
    """
    if PartialState().num_processes == 1:
        return [value]
    values: list[Any] = [None] * PartialState().num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def shared(error: _Error) -> _Error:
    """Mark an error that every process raises, so that one message comes of it; see `launching.run_script`."""
    error.on_every_process = True
    return error


def say(text: str) -> None:
    """Print on the main process alone."""
    if PartialState().is_main_process:
        print_visible(text)
