"""Make a causal model's own `forward` compute the fused losses when it is given labels.

The model's code before the head runs unchanged; the head is then called once more as a module, in a mode in which
it returns the loss instead of logits. Every engine that gathers weights around a module call (ZeRO-3, FSDP)
therefore has the head's weight at hand when it is needed, in the forward and in the backward pass.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.heads import UnsupportedModelError, causal_model, find_head
from mce_llm.lm.linear_loss import linear_matrix_cross_entropy


@dataclass(frozen=True)
class LossParts:
    """The parts of one forward's loss, detached; sums over its unmasked labels, in nats.

    Attributes:
        cross_entropy_sum: Σ CE.
        matrix_sum: Σ MCE (the batch kinds: n · MCE); None where it was not computed.
        num_tokens: n, the number of unmasked labels.
        details: Means over the n labels, see `LossOutput.details`.
    """

    cross_entropy_sum: Tensor
    matrix_sum: Tensor | None
    num_tokens: int
    details: dict[str, Tensor]


@dataclass
class _LossRequest:
    """What the head needs to turn hidden states into a loss."""

    labels: Tensor
    num_items: Tensor | int | None
    embeddings: Tensor | None


class MatrixLossPatch:
    """The patch on one model: made by `patch_model`, taken off by `remove`.

    Attributes:
        config: The loss settings; may be replaced between steps.
        last: Parts of the loss of the latest forward with labels, None before the first.
        last_hidden: With `keep_hidden`, the hidden states of its unmasked positions, (N, d), detached.
        keep_logits: Return logits beside the loss in eval mode (for `compute_metrics`); they cost T×V memory.
        keep_hidden: Hold on to `last_hidden` in eval mode.
        process_group: Ranks that share the statistics of the batch kinds; every rank then has to make each call.
    """

    def __init__(self, model: nn.Module, config: MatrixLossConfig, token_mask: Tensor | None) -> None:
        self.model = causal_model(model)
        if "forward" in self.model.__dict__ and hasattr(self.model.forward, "_matrix_loss_patch"):
            raise UnsupportedModelError("the model is patched already; call remove() on its patch first")
        self.config = config
        self.last: LossParts | None = None
        self.last_hidden: Tensor | None = None
        self.keep_logits = False
        self.keep_hidden = False
        self.process_group: ProcessGroup | None = None
        self._head = find_head(self.model)
        rows = self._head.module.out_features
        if token_mask is not None and token_mask.shape != (rows,):
            raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}, the head has {rows} rows")
        self._token_mask = token_mask
        self._capturing = False
        self._captured: Tensor | None = None
        self._request: _LossRequest | None = None
        self._install()

    def remove(self) -> None:
        """Give the model its own forward back."""
        del self.model.forward
        del self._head.module.forward

    def _install(self) -> None:
        patch, own_forward = self, type(self.model).forward
        signature = inspect.signature(own_forward)

        @functools.wraps(own_forward)
        def forward(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
            if args:  # name the positional ones, so that labels are found wherever they stand
                bound = signature.bind_partial(model, *args).arguments
                kwargs = {**{k: v for k, v in bound.items() if v is not model}, **kwargs}
            if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
                return own_forward(model, **kwargs)
            return patch._forward_with_loss(own_forward, kwargs)

        forward._matrix_loss_patch = self  # type: ignore[attr-defined]
        self.model.forward = types.MethodType(forward, self.model)
        own_head_forward = type(self._head.module).forward

        def head_forward(module: nn.Linear, hidden: Tensor) -> Tensor:
            if patch._request is not None:
                return patch._loss(hidden)
            if patch._capturing:
                patch._captured = hidden
                if not (patch.keep_logits and not patch.model.training):
                    return hidden[..., :1].detach()  # a stand-in for logits that nobody reads
            return own_head_forward(module, hidden)

        head: Any = self._head.module
        head.forward = types.MethodType(head_forward, head)

    def _forward_with_loss(self, own_forward: Any, kwargs: dict[str, Any]) -> Any:
        labels = kwargs.pop("labels", None)
        shift_labels = kwargs.pop("shift_labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        return_dict = kwargs.pop("return_dict", None)
        as_tuple = not (self.model.config.return_dict if return_dict is None else return_dict)
        kwargs.pop("logits_to_keep", None)
        self._capturing = True
        try:
            outputs = own_forward(self.model, return_dict=True, **kwargs)
        finally:
            self._capturing = False
        hidden, self._captured = self._captured, None
        if hidden is None:
            raise UnsupportedModelError(f"{type(self.model).__name__}.forward never called its output head")
        if shift_labels is None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        shift_labels = shift_labels.to(hidden.device)
        if self.keep_hidden and not self.model.training:
            self.last_hidden = hidden.detach()[shift_labels != -100]

        self._request = _LossRequest(shift_labels, num_items, self._input_table())
        try:
            loss = cast(nn.Module, self.model.get_output_embeddings())(hidden)
        finally:
            self._request = None
        fields = {name: value for name, value in outputs.items() if name != "loss"}
        if not (self.keep_logits and not self.model.training):
            fields.pop("logits", None)
        if fields.get("aux_loss") is not None:  # mixture of experts: what the stock forward adds to its loss
            loss = loss + self.model.router_aux_loss_coef * fields["aux_loss"].to(loss.device)
        result = type(outputs)(loss=loss, **fields)
        return result.to_tuple() if as_tuple else result

    def _loss(self, hidden: Tensor) -> Tensor:
        """The head's forward in loss mode; runs where an engine has the head's weight gathered."""
        request, module = self._request, self._head.module
        assert request is not None
        config = self.config
        measure_only = config.weight == 0 and not self.model.training and not torch.is_grad_enabled()
        if measure_only:
            # Evaluation reports both parts in any case, so that a run with cross-entropy alone can be compared.
            config = replace(config, weight=1.0)
        output = linear_matrix_cross_entropy(
            hidden,
            module.weight,
            request.labels,
            config,
            bias=module.bias,
            embeddings=request.embeddings,
            num_items=request.num_items,
            token_mask=self._token_mask,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
            process_group=self.process_group,
            details=not self.model.training,
        )
        count = request.num_items if request.num_items is not None else max(output.num_tokens, 1)
        self.last = LossParts(
            cross_entropy_sum=output.cross_entropy * count,
            matrix_sum=output.matrix_cross_entropy * count if config.weight else None,
            num_tokens=output.num_tokens,
            details=output.details,
        )
        return output.cross_entropy if measure_only else output.loss

    def _input_table(self) -> Tensor | None:
        if self.config.embeddings == "output":
            return None
        table = cast(Tensor, self.model.get_input_embeddings().weight)
        if table.numel() == 0:
            raise UnsupportedModelError(
                "the input embeddings are sharded and not at hand where the loss is computed; "
                "use embeddings='output' with ZeRO-3"
            )
        return table


def patch_model(
    model: nn.Module,
    config: MatrixLossConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_mask: Tensor | None = None,
) -> MatrixLossPatch:
    """Make `model(input_ids, labels=…)` return L_CE + λ·MCE; without labels the model behaves as before.

    Patch before the model is wrapped by an engine or by `Trainer`.

    Args:
        model: A Hugging Face causal language model, or a `peft` model around one.
        config: The loss settings.
        tokenizer: Tells which rows of the head are tokens; the others stay out of the geometry.
        token_mask: (V,) bool that says the same directly.

    Returns:
        The patch, which holds the parts of the latest loss and can be removed.

    Raises:
        UnsupportedModelError: A model, head or tokenizer that the losses would be wrong for.
        ValueError: Both `tokenizer` and `token_mask`, or a mask of another size.
    """
    if tokenizer is not None and token_mask is not None:
        raise ValueError("give tokenizer or token_mask, not both")
    if tokenizer is not None:
        token_mask = token_mask_of(tokenizer, find_head(causal_model(model)).module.out_features)
    return MatrixLossPatch(model, config, token_mask)


def token_mask_of(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Tensor:
    """(num_rows,) bool: True for rows that a tokenizer can emit.

    Vocabularies are padded to round sizes, and a padding token that is nothing else is never trained; such rows hold
    what the initialisation left and say nothing about language.

    Raises:
        UnsupportedModelError: If the tokenizer has ids beyond the table.
    """
    ids = sorted(set(tokenizer.get_vocab().values()))
    if ids and ids[-1] >= num_rows:
        raise UnsupportedModelError(
            f"the tokenizer has ids up to {ids[-1]}, the model's head only {num_rows} rows; "
            "resize the embeddings (model.resize_token_embeddings) or use the model's own tokenizer"
        )
    mask = torch.zeros(num_rows, dtype=torch.bool)
    mask[torch.tensor(ids, dtype=torch.long)] = True
    used: Sequence[int | None] = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        mask[tokenizer.pad_token_id] = False
    return mask
