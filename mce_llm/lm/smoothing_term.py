"""Label smoothing as a term of the fused loss: L = (1−s) · CE + s · S, S the cross-entropy against uniform targets.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7, in the form of
`torch.nn.functional.cross_entropy(label_smoothing=s)`. The uniform distribution is over the rows of the head that are
tokens: without a token mask over all of them, as in PyTorch. Rows that are no tokens get no share of the target.
"""

from __future__ import annotations

from torch import Tensor

from mce_llm.errors import LossInputError
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.loss_terms import Chunk, LossTerm

SMOOTHING = "smoothing_loss"
"""The name of its sum."""


def smoothing_term(
    config: MatrixLossConfig, vocabulary: int, token_mask: Tensor | None, like: Tensor
) -> LossTerm:
    """S = −1/n Σ_v log q_v over the n rows that are tokens, in nats for each position.

    Args:
        config: `smoothing` is read.
        vocabulary: V.
        token_mask: (V,) bool, False for rows that are no tokens; None for all True.
        like: A tensor of the dtype and on the device of the logits.

    Raises:
        LossInputError: A mask of another size.
    """
    if token_mask is not None and token_mask.shape != (vocabulary,):
        raise LossInputError(
            f"token_mask must have one entry per row of the head, got {tuple(token_mask.shape)} for {vocabulary} rows"
        )
    return _Smoothing(config, vocabulary, token_mask, like)


class _Smoothing(LossTerm):
    def __init__(
        self, config: MatrixLossConfig, vocabulary: int, token_mask: Tensor | None, like: Tensor
    ) -> None:
        assert config.smoothing is not None
        self.shares = (1 - config.smoothing, config.smoothing)
        tokens_V = like.new_ones(vocabulary) if token_mask is None else token_mask.to(like)
        self.target_V: Tensor = tokens_V / tokens_V.sum()
        self._sum = like.new_zeros(())

    def add(self, chunk: Chunk, gradient: bool) -> None:
        assert chunk.against_C is not None
        self._sum += chunk.against_C.sum()
        if gradient:
            # ∂L/∂logits = q − (1−s) · onehot(y) − s · u; the −1 at the label is not ours.
            smoothing = self.shares[1]
            chunk.q_CV.sub_(self.target_V, alpha=smoothing)
            at_label_C1 = chunk.q_CV.new_full((len(chunk.labels_C), 1), smoothing)
            chunk.q_CV.scatter_add_(-1, chunk.labels_C.unsqueeze(-1), at_label_C1)

    def sums(self, count: int) -> dict[str, Tensor]:
        return {SMOOTHING: self._sum}
