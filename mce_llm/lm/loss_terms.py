"""The interface between the fused loss and what stands in it beside cross-entropy, for one chunk of logits at a time.

Legend: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Chunk:
    """The predictions of one chunk of positions.

    Attributes:
        start: Number of its first position.
        q_CV: Softmax of the logits. A term that is asked for the gradient overwrites it.
        labels_C: Target ids, none ignored.
        cross_entropy_C: −log q_y, nats.
        against_C: −Σ_v u_v log q_v for the term's own `target_V` u; None where it has none.
    """

    start: int
    q_CV: Tensor
    labels_C: Tensor
    cross_entropy_C: Tensor
    against_C: Tensor | None


class LossTerm:
    """A part T of a loss L = a · CE + b · T, over all positions of one call; what it needs once is made before.

    Attributes:
        shares: (a, b).
        target_V: A distribution over the vocabulary whose cross-entropy the term needs, (V,); None for none.
        two_passes: It has to see every chunk once before it can tell a gradient.
    """

    shares: tuple[float, float]
    target_V: Tensor | None = None
    two_passes = False

    def gather(self, q_CV: Tensor, labels_C: Tensor) -> None:
        """First of two passes: take in one chunk, whose probabilities may be overwritten."""
        raise NotImplementedError

    def finish(self, group: ProcessGroup | None) -> None:
        """End of the first of two passes: bring the ranks of `group` together (None: this process alone)."""
        raise NotImplementedError

    def add(self, chunk: Chunk, gradient: bool) -> None:
        """Add a chunk to the sums; with `gradient` q becomes ∂(a·CE + b·T)/∂logits, but for −1 at the label."""
        raise NotImplementedError

    def sums(self, count: int) -> dict[str, Tensor]:
        """Sums over the `count` positions by name, as they are logged; the first is T itself, in nats."""
        raise NotImplementedError

    def means(self, count: int) -> dict[str, Tensor]:
        """Means over the `count` positions that tell what approximations cost, by name; empty for none."""
        return {}
