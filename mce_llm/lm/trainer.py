"""A Hugging Face `Trainer` that trains with matrix cross-entropy beside cross-entropy."""

from __future__ import annotations

from transformers import Trainer

from mce_llm.lm.training.mixin import MatrixLossMixin


class MatrixTrainer(MatrixLossMixin, Trainer):
    """Drop-in `Trainer`: same arguments, same loops, same checkpoints.

    Logs gain `ce_loss` and `mce_loss` (nats per unmasked label over the logging window and all ranks; `mce_loss`
    is absent where the weight is 0). Evaluation gains `eval_ce_loss`, `eval_mce_loss`, `eval_effective_rank` (of the
    covariance of the hidden states at unmasked positions) and, for the kind `token`, `eval_tail_mass` and
    `eval_quadrature_gap`; all are means over labels, whereas `eval_loss` stays Hugging Face's mean over batches.

    Attributes:
        matrix_patch: The patch on the model; its `config` says which loss is in force.
    """
