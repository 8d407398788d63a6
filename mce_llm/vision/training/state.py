"""What pretraining goes on from after an interruption: weights, optimizers, and how many steps were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.vision.losses import ViewLoss
from mce_llm.vision.models import MomentumTeacher
from mce_llm.vision.running.checkpoint import load_checkpoint, restore_random_state, save_checkpoint
from mce_llm.vision.training.method import Student
from mce_llm.vision.training.optimizers import restore_optimizer


@dataclass
class PretrainState:
    """The networks and optimizers of a run, and the step they have come to.

    Attributes:
        student: Not wrapped for data parallelism, so that names in a checkpoint do not depend on the launch.
        teacher: Its moving average, or None for methods without one.
        optimizers: As the accelerator prepared them: that of the networks first, then that of the online probe, if any.
        scaler: Of fp16's gradients, or None.
        loss: What is trained on; some losses remember what happened.
        step: Optimizer steps done.
    """

    student: Student
    teacher: MomentumTeacher | None
    optimizers: list[Any]
    scaler: Any
    loss: ViewLoss
    step: int = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint, in one move. All processes call this.

        Args:
            path: The file.

        Raises:
            CheckpointError: It cannot be written; an earlier one is as it was.
        """
        save_checkpoint(
            path,
            {
                "step": self.step,
                "student": self.student.state_dict(),
                "teacher": None if self.teacher is None else self.teacher.state_dict(),
                "optimizers": [each.state_dict() for each in self.optimizers],
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "loss": self.loss.state_dict(),
            },
        )

    def restore(self, path: Path) -> None:
        """Put back what a checkpoint has, the random states of the processes included; the options of optimizers stay.

        Args:
            path: The file.

        Raises:
            CheckpointError: It cannot be read.
        """
        saved = load_checkpoint(path)
        self.student.load_state_dict(saved["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(saved["teacher"])
        for each, its_state in zip(self.optimizers, saved["optimizers"], strict=True):
            restore_optimizer(each, its_state)
        if self.scaler is not None and saved["scaler"] is not None:
            self.scaler.load_state_dict(saved["scaler"])
        if "loss" in saved:  # older checkpoints have none, and their losses remembered nothing
            self.loss.load_state_dict(saved["loss"])
        self.step = int(saved["step"])
        restore_random_state(saved)
