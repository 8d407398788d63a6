"""Projector and predictor: the small networks between the encoder and the loss.

Both are the official ones (github.com/yifanzhang-pro/Matrix-SSL, after MEC and SimSiam): they are thrown away after
pretraining.
"""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Sequential):
    """Linear–BN–ReLU twice, then Linear–BN without affine parameters: features (B, in) to embeddings (B, out).

    The last linear layer's bias is left out, as the batch norm behind it would undo it.

    Args:
        in_dim: Width of the encoder's features.
        hidden_dim: Width of the two hidden layers.
        out_dim: d, the width of the embeddings; 2048 in the paper.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim, bias=False),
            nn.BatchNorm1d(out_dim, affine=False),
        )


class Predictor(nn.Sequential):
    """Linear–BN–ReLU, then Linear: the student's embeddings (B, d) to what it predicts of the teacher's (B, d).

    Args:
        dim: d.
        hidden_dim: Width of the bottleneck; 512 in the paper.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(
            nn.Linear(dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, d) → (B, d)."""
        return super().forward(input)
