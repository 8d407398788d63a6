"""Training runs of a tiny model in several processes on any engine, with unequal numbers of trained tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from helpers.models import make_model

WORKER = Path(__file__).with_name("engine_worker.py")


def run_engine(folder, engine, processes, runs, timeout=540):
    """Launch `engine_worker.py` once for several runs.

    Args:
        folder: Where the worker writes.
        engine: single, ddp, zero2, zero3 or fsdp2.
        processes: How many.
        runs: By name: `arguments` (of the trainer), `family` (of the model), `fault` and `where` it is, as a list of
            [optimizer step from 1, rank, micro-batch from 0]; `resume`, a checkpoint; `state_dict_type` of FSDP2; `rows`,
            settings of the training rows; `evaluate`, settings of evaluation rows by name.
        timeout: In seconds.

    Returns:
        By name: (what each rank logged and saw, weights).
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"engine": engine, "out": str(folder), "runs": runs}))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if engine.startswith("zero"):
        environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    if engine == "fsdp2":
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    stderr = output_of([*command, str(WORKER), str(job)], environment, timeout)
    assert stderr is None, stderr[-6000:]
    return {
        name: (
            [json.loads((folder / f"log-{name}-{rank}.json").read_text()) for rank in range(processes)],
            torch.load(folder / f"weights-{name}.pt"),
        )
        for name in runs
    }


def output_of(command, environment, timeout):
    """Run a launcher, and leave no worker of it behind where it takes too long.

    Args:
        command: The command.
        environment: Its environment.
        timeout: In seconds.

    Returns:
        What it wrote to stderr where it failed, else None.

    Raises:
        subprocess.TimeoutExpired: It took longer; the launcher was ended, and its workers with it.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            _, stderr = process.communicate(timeout=timeout)
        except BaseException:
            # torchrun puts each worker into a session of its own, and ends them when it is asked to end.
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return stderr if process.returncode else None


def start_weights(family="llama"):
    """What the worker's models begin with."""
    return make_model(family, initializer_range=0.2, scale=1.0).state_dict()


def deviations(weights, expected, start):
    """(largest relative deviation of a weight matrix, the same relative to how far training moved it); Frobenius."""
    assert weights.keys() >= expected.keys()
    of_weight, of_change = 0.0, 0.0
    for name, value in expected.items():
        off = (weights[name].double() - value.double()).norm().item()
        of_weight = max(of_weight, off / value.double().norm().item())
        of_change = max(of_change, off / (value.double() - start[name].double()).norm().item())
    return of_weight, of_change
