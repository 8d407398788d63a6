"""What all losses here have in common: how they are called, logged and told of progress."""

from __future__ import annotations

from typing import ClassVar

import torch.distributed as dist
from torch import Tensor, nn

from mce_llm.vision.losses.settings import boolean, raise_problems


class ViewLoss(nn.Module):
    """A loss of two views of the same images; all are called alike, so that one training loop serves them all.

    `loss(z1, z2, p1, p2)` takes the student's rows of both views (m, d) and the teacher's (or target's) rows of both,
    which are constants. Losses that need no teacher ignore p1 and p2, which may then be None. Rows are those of this
    process; with `gather` the loss is that of the rows of all processes, the same number everywhere, and each process
    gets world_size times its share of the gradient, so that the mean that `DistributedDataParallel` takes is the
    gradient of the whole batch, for unequal numbers of rows too.

    Products run in float32 (float64 for float64 rows), without autocast and TF32, whatever the rows come in. The
    loss can be differentiated once.

    Args:
        gather: Bring the rows of all processes together. Without it each process has the loss of its own rows, with
            statistics of a smaller batch.
        validate: Raise typed errors for rows or losses that are not finite and for zero rows. It reads one small
            vector from the device at each call; without it nothing waits for the device (but for exact logarithms), and NaN
            spreads.
        process_group: The processes that share a batch; None for all.
    """

    needs_teacher: ClassVar[bool] = False

    def __init__(
        self, *, gather: bool = True, validate: bool = True, process_group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.gather = gather
        self.validate = validate
        self.process_group = process_group
        self.epoch: float | None = None

    def _check(self, problems: list[str]) -> None:
        """Raise all problems of the settings, those of this class included."""
        raise_problems(
            type(self).__name__,
            [*problems, *boolean("gather", self.gather), *boolean("validate", self.validate)],
        )

    def set_epoch(self, epoch: float) -> None:
        """Tell the loss how many epochs are done, in fractions, before each step; some have a schedule.

        Args:
            epoch: Finished epochs, e.g. `epoch + step / steps_per_epoch`.
        """
        self.epoch = float(epoch)

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss under "loss", and what it is made of, detached, for a log; computed once.

        Args:
            z1: (m, d), the student's rows of the first view.
            z2: (m, d), of the second.
            p1: (m, d), the teacher's rows of the first view.
            p2: (m, d), of the second.

        Returns:
            Scalars by name.
        """
        raise NotImplementedError

    def forward(self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None) -> Tensor:
        """The scalar loss; arguments as in `components`."""
        return self.components(z1, z2, p1, p2)["loss"]
