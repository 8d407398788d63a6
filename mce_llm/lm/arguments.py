"""`TrainingArguments` with the settings of the matrix loss beside everything Hugging Face's have."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from mce_llm.lm.config import MatrixLossConfig, MatrixLossConfigError


@dataclass
class MatrixTrainingArguments(TrainingArguments):
    """Training arguments of `MatrixTrainer`: Hugging Face's, and eight that begin with `matrix_`.

    One default differs from Hugging Face's: `logging_nan_inf_filter` is False, because it hides losses
    that are not finite.
    """

    matrix_kind: str = field(
        default="token",
        metadata={"help": "Which density matrices are compared: token, marginal or expected."},
    )
    matrix_weight: float = field(
        default=1.0,
        metadata={"help": "λ in L = CE + λ · MCE; 0 trains with cross-entropy alone."},
    )
    matrix_shrinkage: float = field(
        default=0.05,
        metadata={"help": "ε, the share of I/d mixed into the density matrices, in [0, 1)."},
    )
    matrix_support: int | None = field(
        default=64,
        metadata={
            "help": "Kind token: the k most probable tokens that are kept (0 or null: the full vocabulary)."
        },
    )
    matrix_order: int = field(default=8, metadata={"help": "Kind token: Lanczos steps; more are more exact."})
    matrix_embeddings: str = field(
        default="output",
        metadata={"help": "The table that gives the token geometry: output (the head) or input."},
    )
    matrix_center: bool = field(
        default=True, metadata={"help": "Subtract the mean embedding from every row."}
    )
    matrix_normalize: bool = field(default=True, metadata={"help": "Scale every centred row to length one."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses that are not finite out of the logged mean (hides divergence)."},
    )

    def __post_init__(self) -> None:
        """Check the matrix settings before anything slow happens.

        Raises:
            MatrixLossConfigError: Unusable matrix settings, all listed at once, under their names here.
        """
        _ = self.matrix_loss
        super().__post_init__()

    @property
    def matrix_loss(self) -> MatrixLossConfig:
        """The settings of the matrix loss as one object."""
        try:
            return MatrixLossConfig(
                kind=self.matrix_kind,  # type: ignore[arg-type]
                weight=self.matrix_weight,
                shrinkage=self.matrix_shrinkage,
                support=self.matrix_support or None,
                order=self.matrix_order,
                embeddings=self.matrix_embeddings,  # type: ignore[arg-type]
                center=self.matrix_center,
                normalize=self.matrix_normalize,
            )
        except MatrixLossConfigError as error:
            raise MatrixLossConfigError(f"in the matrix_* settings: {error}") from None
