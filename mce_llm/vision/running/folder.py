"""The folder of a run: may it be written, is there something to go on from, and what is left in it.

summary.json is written last, so its presence is what makes a run finished.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from mce_llm.running.files import remove, write_json
from mce_llm.running.folder import (
    RECIPE,
    VERSIONS,
    OutputError,
    hold_folder,
    make_folder,
    release_folder,
    write_record,
)
from mce_llm.running.processes import gather, say, shared
from mce_llm.running.settings import raise_all
from mce_llm.running.step_log import StepLog
from mce_llm.vision.running.launching import make_accelerator
from mce_llm.vision.running.resuming import INPUTS, Changes, Input, ResumeRules, changes_since, check_inputs

CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.json"
_PRECISIONS = ("no", "bf16", "fp16")
_PACKAGES = ("torch", "torchvision", "timm", "accelerate")
METRICS = "metrics.jsonl"
SPECTRA = "spectra.jsonl"
_JOURNALS = (METRICS, SPECTRA, "tensorboard")
_OURS = (SUMMARY, CHECKPOINT, RECIPE, VERSIONS, INPUTS, *_JOURNALS)


@dataclass
class RunSettings:
    """Where a run writes, and on what it computes."""

    output_dir: str = field(metadata={"help": "Folder for everything that this run writes."})
    resume: bool = field(
        default=True, metadata={"help": "Go on from the checkpoint in output_dir, if there is one."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Remove a finished run, or with resume false a checkpoint, in output_dir."},
    )
    seed: int = field(default=0, metadata={"help": "Weights, order and views are functions of it."})
    mixed_precision: str = field(
        default="no",
        metadata={"help": "no, bf16 or fp16: the precision of the network's products; losses stay float32."},
    )
    cpu: bool = field(default=False, metadata={"help": "Compute on the CPU though there is an accelerator."})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values.
        """
        problems = []
        if self.mixed_precision not in _PRECISIONS:
            problems.append(f"mixed_precision must be no, bf16 or fp16, got {self.mixed_precision!r}")
        if not 0 <= self.seed < 2**31:
            problems.append(f"seed must be in [0, 2^31), got {self.seed}")
        if not self.output_dir:
            problems.append("output_dir must name a folder")
        raise_all(problems)


class RunFolder:
    """The folder of one run, and the accelerator it computes with.

    Attributes:
        path: The folder.
        settings: What `open_run` was given.
        accelerator: The processes, device and precision of this run.
        checkpoint: The checkpoint to go on from, or None.
    """

    def __init__(
        self, settings: RunSettings, accelerator: Accelerator, checkpoint: Path | None = None
    ) -> None:
        self.path = Path(settings.output_dir).expanduser()
        self.settings = settings
        self.accelerator = accelerator
        self.checkpoint = checkpoint
        self._steps = StepLog(self.path / METRICS)
        self._begun = time.monotonic()

    @property
    def checkpoint_file(self) -> Path:
        """Where this run keeps its state."""
        return self.path / CHECKPOINT

    @cached_property
    def _board(self) -> Any:
        # Imported here: it takes a second, and only the main process writes.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path / "tensorboard"), purge_step=self._purge_step)

    _purge_step: int | None = None
    _changed: tuple[Mapping[str, Any], Changes] | None = None  # what recipe.yaml does not say yet

    def rewind(self, step: int) -> None:
        """Go on from `step`: forget what was logged beyond it, so that the journal is that of one undisturbed run.

        Settings that hold from here on come into recipe.yaml, with a line on what was before.
        """
        if not PartialState().is_main_process:
            return
        self._steps.rewind(step)
        self._purge_step = step + 1
        if self._changed is not None:
            given, changes = self._changed
            recipe = (self.path / RECIPE).read_text(encoding="utf-8")
            remarks = [line[2:] for line in recipe.splitlines() if line.startswith("# ")]
            remarks.append(f"until step {step}: {', '.join(changes.history)}")
            write_record(self.path, given, _PACKAGES, remarks=remarks)
            self._changed = None

    def check_inputs(self, inputs: Mapping[str, Input]) -> None:
        """See that what a run reads is what it read before it was interrupted. All processes call this.

        Args:
            inputs: By what they are called in messages.

        Raises:
            OutputError: Some differ with which it cannot go on; the message says which.
        """
        problem, said = None, []
        if PartialState().is_main_process:
            try:
                said = check_inputs(self.path, inputs, goes_on=self.checkpoint is not None)
            except OutputError as error:
                problem = error
        if (problem := gather(problem)[0]) is not None:
            raise shared(problem)
        for sentence in said:
            say(sentence)

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Add a line to metrics.jsonl and, for numbers, points to TensorBoard; on the main process alone."""
        if not PartialState().is_main_process:
            return
        self._steps.append(step, dict(values))
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(name, value, step)

    def picture(self, name: str, image: torch.Tensor, step: int) -> None:
        """Show an image (3, H, W), uint8 or in [0, 1], in TensorBoard; on the main process alone."""
        if PartialState().is_main_process:
            self._board.add_image(name, image, step)

    def close(self) -> None:
        """Have the journal on disk and its files closed; another line would open them again."""
        if (board := self.__dict__.pop("_board", None)) is not None:
            board.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, in one move and last; then remove the checkpoint, which is of no more use.

        Args:
            summary: The results.
        """
        self.accelerator.wait_for_everyone()
        if PartialState().is_main_process:
            self.close()
            note = {
                **summary,
                "seed": self.settings.seed,
                "processes": PartialState().num_processes,
                "device": _device_name(self.accelerator.device),
                "seconds": round(time.monotonic() - self._begun, 1),
            }
            write_json(self.path / SUMMARY, note)
            self.checkpoint_file.unlink(missing_ok=True)
            release_folder(self.path)
        say(f"wrote {self.path / SUMMARY}")
        self.accelerator.wait_for_everyone()


def open_run(
    settings: RunSettings, given: Mapping[str, Any], *, rules: ResumeRules | None = None
) -> RunFolder:
    """Join the processes of this launch, and make the folder or find in it what to go on from. All processes call this.

    Args:
        settings: Where and how.
        given: All settings that were given, for recipe.yaml.
        rules: What a start may change of a run that it goes on with; None for a script that writes no checkpoint.

    Returns:
        The folder. Its `checkpoint` is None for a run that begins.

    Raises:
        OutputError: The folder cannot be written, or holds a finished run, or one that may not be gone on from.
    """
    accelerator = make_accelerator(settings.mixed_precision, cpu=settings.cpu)
    folder = Path(settings.output_dir).expanduser()
    problem: OutputError | None = None
    checkpoint = None
    run = RunFolder(settings, accelerator)
    if accelerator.is_main_process:
        try:
            make_folder(folder)
            hold_folder(folder, let_go=run.close)
            checkpoint = _prepared(run, given, rules)
        except OutputError as error:
            release_folder(folder)
            problem = error
    problem, checkpoint = gather((problem, checkpoint))[0]
    if problem is not None:
        raise shared(problem)
    if checkpoint is not None:
        say(f"going on from {checkpoint}")
        run.checkpoint = checkpoint
    return run


def _prepared(run: RunFolder, given: Mapping[str, Any], rules: ResumeRules | None) -> Path | None:
    folder, settings, checkpoint = run.path, run.settings, run.checkpoint_file
    try:
        finished = (folder / SUMMARY).exists()
        if finished or (checkpoint.exists() and not settings.resume):
            if not settings.overwrite:
                raise OutputError(
                    f"output_dir {str(folder)!r} holds {'a finished run' if finished else 'a checkpoint'}; choose "
                    "another output_dir, or remove it with --overwrite true"
                )
            for name in _OURS:
                remove(folder / name)
        if checkpoint.exists():
            if rules is None:
                raise OutputError(
                    f"output_dir {str(folder)!r} holds the checkpoint of another kind of run; choose another output_dir"
                )
            _check_settings(run, given, rules)
            return checkpoint
        for name in _JOURNALS:  # of a run that never came to its first checkpoint
            remove(folder / name)
        write_record(folder, given, _PACKAGES)
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {str(folder)!r}: {error.strerror or error}") from error
    return None


def _check_settings(run: RunFolder, given: Mapping[str, Any], rules: ResumeRules) -> None:
    """Say which settings changed since the run began, and refuse what its state would not fit."""
    changes = changes_since(run.path, given, rules)
    if changes is None:
        say(f"the settings that this run began with are unknown: {RECIPE} cannot be read")
        return
    if changes.refused:
        raise OutputError(changes.refusal(run.path))
    for sentence in changes.sentences():
        say(sentence)
    if changes.applied:
        run._changed = (given, changes)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
