"""On what the runs of a study are launched: GPUs or cores shared out between runs at the same time, and launcher options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mce_llm.running.launch_options import (
    given_options,
    num_processes,
    usable_cores,
    with_default_file,
    with_defaults,
    with_shipped_file,
)
from mce_llm.running.messages import counted
from mce_llm.studies.errors import StudyError


@dataclass(frozen=True)
class Slot:
    """The share of a machine that one run gets.

    Attributes:
        gpus: What CUDA_VISIBLE_DEVICES is for it; None where it is left as it is.
        gpu_count: How many those are.
        cores: Its share of the CPU.
        shared: Whether other runs go on beside it.
    """

    gpus: tuple[str, ...] | None
    gpu_count: int
    cores: int
    shared: bool

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that keep a run in its share."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def launch_words(self, words: Sequence[str]) -> list[str]:
        """Options of `accelerate launch` for this share.

        Args:
            words: Those of the study.

        Raises:
            ConfigurationError: They cannot be used.
            StudyError: More processes than the share has GPUs.
        """
        words = with_default_file(with_shipped_file(words))
        asked = num_processes(words)
        if self.gpus is not None:
            if asked is not None and "num_processes" in given_options(words) and asked > self.gpu_count:
                raise StudyError(
                    f"num_processes {asked}, and each run gets {counted(self.gpu_count, 'GPU')}; ask for fewer processes, or "
                    "fewer --jobs"
                )
            if asked is not None and asked > self.gpu_count:  # of a launch file for the whole machine
                words += ["--num_processes", str(self.gpu_count)]
        words = with_defaults(words, gpus=self.gpu_count, cores=self.cores)
        given = given_options(words)
        count = num_processes(words) or 1
        if self.shared and count > 1 and "main_process_port" not in given:
            words += ["--main_process_port", "0"]  # any that is free
        return words

    def processes(self, words: Sequence[str]) -> int:
        """How many processes options of `accelerate launch` start here.

        Args:
            words: As `launch_words` returns them.
        """
        return num_processes(words) or max(1, self.gpu_count)


def slots_of(jobs: int) -> list[Slot]:
    """Share the machine out between so many runs at the same time.

    Args:
        jobs: How many; 1 gives each run everything.

    Raises:
        StudyError: More than there are GPUs, or cores.
    """
    import torch

    cores = usable_cores()
    count = torch.cuda.device_count()
    have, noun = (count, "GPU") if count else (cores, "core")
    if jobs > have:
        raise StudyError(
            f"--jobs {jobs} on a machine with {counted(have, noun)}; {have} at most can run at once"
        )
    if jobs == 1:
        return [Slot(None, count, cores, False)]
    if not count:
        return [Slot(None, 0, cores // jobs, True)] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    share = count // jobs
    return [
        Slot(tuple(names[job * share : (job + 1) * share]), share, cores // jobs, True) for job in range(jobs)
    ]
