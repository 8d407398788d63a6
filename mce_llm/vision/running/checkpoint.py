"""A training state in one file, replaced in one move: there is always a whole one, whenever the process is killed.

Sharded engines need folders with manifests; the models here are small enough to be whole in every process, so the main
process writes everything. What differs between processes (random states) is gathered first.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from mce_llm.running.devices import device_module
from mce_llm.running.files import whole_file
from mce_llm.running.folder import CheckpointError
from mce_llm.running.messages import cause
from mce_llm.running.processes import gather

_STATES = "random_states"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state beside the file, have it on disk, then put it in the file's place. All processes call this.

    The random states of all processes are added, and put back by `restore_random_state`.

    Args:
        path: The file.
        state: Tensors, numbers, text, and lists and mappings of these.

    Raises:
        CheckpointError: It cannot be written; an earlier file is as it was. Raised in every process.
    """
    states = gather(_random_state())
    problem = None
    if PartialState().is_main_process:
        try:
            with whole_file(path) as beside:
                torch.save({**state, _STATES: states}, beside)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            problem = (
                f"cannot write the checkpoint {path}: {cause(error)}; the last one is whole, so with space the same "
                "command goes on from it"
            )
    problem = gather(problem)[0]
    if problem is not None:
        raise CheckpointError(problem)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state; nothing in the file is run as code.

    Args:
        path: The file.

    Returns:
        What was saved, its tensors on the CPU.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {cause(error)}; start anew with --resume false --overwrite true"
        ) from error


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put this process's random state back, where as many processes run as wrote the checkpoint.

    With another number of processes there is nothing to put back; views and orders do not depend on it, as every
    sample's randomness is a function of the seed, the epoch and its index.

    Args:
        state: What `load_checkpoint` gave.
    """
    states, here = state[_STATES], PartialState()
    if len(states) != here.num_processes:
        return
    own, module = states[here.process_index], device_module(here.device)
    torch.set_rng_state(own["cpu"])
    if module is not None and own.get(here.device.type) is not None:
        module.set_rng_state(own[here.device.type])


def _random_state() -> dict[str, Any]:
    device = PartialState().device
    states = {"cpu": torch.get_rng_state()}
    if (module := device_module(device)) is not None:
        states[device.type] = module.get_rng_state()
    return states
