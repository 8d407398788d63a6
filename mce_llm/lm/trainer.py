"""A Hugging Face `Trainer` that trains with matrix cross-entropy beside cross-entropy."""

from __future__ import annotations

from transformers import Trainer

from mce_llm.lm.training.mixin import MatrixLossMixin


class MatrixTrainer(MatrixLossMixin, Trainer):
    """Drop-in `Trainer`: same arguments, same loops, same checkpoints.

    Logs gain `ce_loss` and what the loss has beside it: `mce_loss`, `smoothing_loss`, or `emo_loss` and `emo_distance`
    (nats per unmasked label over the logging window and all ranks), and, for a mixture of experts, `aux_loss` (without its
    coefficient). Evaluation gains the same with the prefix `eval_`, `eval_mce_loss` with every loss,
    `eval_hidden_effective_rank` (of the covariance of the hidden states at unmasked positions) and, for the kind `token`,
    `eval_tail_mass` and `eval_quadrature_gap`; all are means over labels. `eval_loss` is made of them in place of Hugging
    Face's mean over batches, `eval_ce_loss + λ · eval_mce_loss` by default: but for the kinds `marginal` and `expected` it
    depends neither on the size of batches nor on the number of ranks. Without a single label there is none.

    Attributes:
        matrix_patch: The patch on the model; its `config` says which loss is in force.
    """
