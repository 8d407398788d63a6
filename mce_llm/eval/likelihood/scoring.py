"""What a causal language model makes of each token of some texts, forward only, without the logits of more than a chunk.

Legend: B rows, L positions of the longest, N scored positions of a batch, C of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.items import TokenScores
from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.heads import backbone_of, causal_model, logit_treatment
from mce_llm.lm.instance_forward import InstanceForward
from mce_llm.matrix.precision import exact_dtype

_CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
_LOWEST = -1e30  # in place of −∞, where a model rules a token out: 0 · −∞ is no number


class Scorer:
    """A model whose head is asked for a chunk of positions at a time.

    The model's own forward runs, and its own head: adapters on it, a bias, quantised weights and what comes before it count as
    they do in the model. A scale or a softcap behind the head is measured, and put on the logits in float32.

    Args:
        model: A causal language model of Hugging Face, perhaps with an adapter of `peft`; in evaluation mode.

    Raises:
        UnsupportedModelError: It is none, or does something to its logits other than a scale and a softcap.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        inner = causal_model(model)
        backbone_of(inner)
        self._logit_scale, self._softcap = logit_treatment(inner)
        head: Any = inner.get_output_embeddings()
        self._head: nn.Module = head
        self._vocabulary = int(getattr(head, "out_features", None) or head.weight.shape[0])
        embeddings: Any = inner.get_input_embeddings()
        self._device: torch.device = embeddings.weight.device

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[TokenScores]:
        """Score the tokens of completions, each behind its prompt.

        Rows are padded on the right, where a causal model cannot see, so that it needs no mask, and computes what it would for
        one row.

        Args:
            prompts: Token ids of each row, one at least.
            completions: Those that are scored, one at least.

        Returns:
            Of each row what the model makes of its completion; computed in float32, or what is wider, from the
            logits that the head gives in its dtype.

        Raises:
            EvaluationError: If the logits are not finite where they must be.
        """
        rows = [[*prompt, *completion][:-1] for prompt, completion in zip(prompts, completions, strict=True)]
        longest = max(map(len, rows))
        # With its own last token: models warn of padding tokens without a mask.
        ids_BL = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])
        scored_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            scored_BL[number, len(prompt) - 1 : len(row)] = True
        targets_N = torch.tensor([token for completion in completions for token in completion])
        with _head_input(self._head) as caught:
            self._model(input_ids=ids_BL.to(self._device), use_cache=False)
            if caught.hidden is None:
                raise EvaluationError(
                    f"{type(self._model).__name__}.forward never called its output head, so that it cannot be scored"
                )
            hidden_ND = caught.hidden[scored_BL.to(caught.hidden.device)]
            parts = [
                self._chunk(caught.head(hidden_CD), targets_C)
                for hidden_CD, targets_C in self._chunks(hidden_ND, targets_N.to(hidden_ND.device))
            ]
        whole = torch.cat(parts, dim=1).cpu().numpy()
        if not np.isfinite(whole).all():
            raise EvaluationError(
                f"the model's logits give {int((~np.isfinite(whole).all(axis=0)).sum())} of {whole.shape[1]} tokens no finite "
                "likelihood; the weights are damaged, or --dtype float16 overflows: use --dtype bfloat16 or float32"
            )
        ends = np.cumsum([len(completion) for completion in completions])[:-1]
        return [
            TokenScores(nats, entropy, confidence, top1 > 0)
            for nats, entropy, confidence, top1 in np.split(whole, ends, axis=1)
        ]

    def _chunks(self, hidden_ND: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(1, elements_on(hidden_ND.device, _CHUNK_ELEMENTS) // self._vocabulary)
        yield from zip(hidden_ND.split(size), targets_N.split(size), strict=True)

    def _chunk(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """(4, C) in float64 where the device has it: nats, entropy, confidence, and 1 where the target is the most probable token."""
        z_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self._logit_scale != 1.0:
            z_CV = z_CV * self._logit_scale
        if self._softcap is not None:
            z_CV = torch.tanh(z_CV / self._softcap) * self._softcap
        top_C, best_C = z_CV.max(dim=-1)
        target_C = z_CV.gather(1, targets_C[:, None]).squeeze(1)
        z_CV = (z_CV - top_C[:, None]).clamp_(min=_LOWEST)
        weights_CV = z_CV.exp()
        total_C = weights_CV.sum(dim=-1)
        exact = exact_dtype(total_C.device)
        total_C, sum_C = total_C.to(exact), weights_CV.mul_(z_CV).sum(dim=-1).to(exact)
        log_total_C = total_C.log()
        mean_C = sum_C / total_C
        return torch.stack(
            [
                log_total_C - (target_C.to(exact) - top_C.to(exact)),
                log_total_C - mean_C,
                total_C.reciprocal(),
                (best_C == targets_C).to(exact),
            ]
        )


class _Caught:
    """What reached the head in one forward, and the head's own forward."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None
        self.head: Any = None


@contextmanager
def _head_input(head: nn.Module) -> Iterator[_Caught]:
    """Have the head keep what it is given, and give back one column of zeros in place of logits."""
    caught = _Caught()

    def stand_in(_: nn.Module, hidden: Tensor, *__: Any, **___: Any) -> Tensor:
        caught.hidden = hidden
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    replaced = InstanceForward(head, stand_in)
    caught.head = replaced.own
    try:
        yield caught
    finally:
        replaced.restore()
