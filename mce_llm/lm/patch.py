"""Make a causal model's own `forward` compute the fused losses when it is given labels.

The model's own code runs unchanged, and where it calls its head, the head returns a tensor that carries the loss
instead of logits. What the call gives back is what is differentiated. Every engine that gathers weights around a module
call (ZeRO-3, FSDP) therefore has the head's weight at hand when it is needed, in the forward and in the backward pass.
One call: FSDP2 wraps the head and the norm before it as one group, and a second call of the head alone would let it free
the norm's weight in the middle of the backward pass.
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

from mce_llm.errors import MceLlmError
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.heads import UnsupportedModelError, causal_model, find_head
from mce_llm.lm.linear_loss import linear_matrix_cross_entropy
from mce_llm.lm.observation import BatchShape, HeadObservation, Observer
from mce_llm.matrix.precision import autocast_off


class BypassedLossError(MceLlmError, RuntimeError):
    """A patched model is trained in a way that never computes its loss; the message says what to use instead."""


@dataclass(frozen=True)
class LossParts:
    """The parts of one forward's loss, detached; sums over its unmasked labels, in nats.

    Attributes:
        cross_entropy_sum: Σ CE.
        matrix_sum: Σ MCE (the batch kinds: n · MCE); None where it was not computed.
        num_tokens: n, the number of unmasked labels.
        details: Means over the n labels, see `LossOutput.details`.
        batch: The size of the input that they came from.
    """

    cross_entropy_sum: Tensor
    matrix_sum: Tensor | None
    num_tokens: int
    details: dict[str, Tensor]
    batch: BatchShape


@dataclass
class _LossRequest:
    """What the head needs to turn hidden states into a loss, and the loss once it has."""

    labels: Tensor
    shifted: bool
    num_items: Tensor | int | None
    embeddings: Tensor | None
    attention_mask: Tensor | None
    loss: Tensor | None = None
    returned: Tensor | None = None


class MatrixLossPatch:
    """The patch on one model: made by `patch_model`, taken off by `remove`.

    Attributes:
        config: The loss settings; may be replaced between steps.
        last: Parts of the loss of the latest forward with labels, None before the first.
        last_hidden: With `keep_hidden`, the hidden states of its unmasked positions, (N, d), detached.
        keep_logits: Return logits beside the loss in eval mode (for `compute_metrics`); they cost T×V memory.
        keep_hidden: Hold on to `last_hidden` in eval mode.
        process_group: Ranks that share the statistics of the batch kinds; every rank then has to make each call.
        observer: Called in every forward with labels, inside the head's forward and after the loss, without
            gradients; None for nobody. Loss and gradients are the same with and without.
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
        self.observer: Observer | None = None
        self._head = find_head(self.model)
        rows = self._head.num_rows
        if token_mask is not None and token_mask.shape != (rows,):
            raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}, the head has {rows} rows")
        self._token_mask = token_mask
        self._request: _LossRequest | None = None
        self._running = False
        self._install()

    def remove(self) -> None:
        """Give the model its own forward back."""
        del self.model.forward
        del self._head.module.forward
        self._bypass_check.remove()

    def _install(self) -> None:
        patch, own_forward = self, type(self.model).forward
        signature = inspect.signature(own_forward)

        @functools.wraps(own_forward)
        def forward(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
            if args:  # name the positional ones, so that labels are found wherever they stand
                bound = signature.bind_partial(model, *args).arguments
                kwargs = {**{k: v for k, v in bound.items() if v is not model}, **kwargs}
            patch._running = True
            try:
                if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
                    return own_forward(model, **kwargs)
                return patch._forward_with_loss(own_forward, kwargs)
            finally:
                patch._running = False

        def refuse_bypass(*_: Any) -> None:
            if not patch._running and patch.model.training and torch.is_grad_enabled():
                raise BypassedLossError(
                    f"the layers of {type(patch.model).__name__} are being trained past its own forward, so the matrix "
                    "loss would have no part in it; trl.SFTTrainer does so (use mce_llm.lm.MatrixSFTTrainer). Where it is "
                    "meant, call remove() on the patch first"
                )

        layers: Any = self.model.base_model
        self._bypass_check = layers.register_forward_pre_hook(refuse_bypass)
        forward._matrix_loss_patch = self  # type: ignore[attr-defined]
        self.model.forward = types.MethodType(forward, self.model)
        own_head_forward = type(self._head.module).forward

        def head_forward(module: nn.Linear, hidden: Tensor) -> Tensor:
            request = patch._request
            if request is None:
                return own_head_forward(module, hidden)
            request.loss = patch._loss(hidden, request)
            if patch._wants_logits:
                return own_head_forward(module, hidden)
            # In the place of logits and of their rank, so that what the model does to them afterwards goes well; no
            # view, which engines that put hooks on it would warn of.
            return request.loss.expand(*hidden.shape[:-1], 1).clone()

        head: Any = self._head.module
        head.forward = types.MethodType(head_forward, head)

    def _forward_with_loss(self, own_forward: Any, kwargs: dict[str, Any]) -> Any:
        labels = kwargs.pop("labels", None)
        shift_labels = kwargs.pop("shift_labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        return_dict = kwargs.pop("return_dict", None)
        as_tuple = not (self.model.config.return_dict if return_dict is None else return_dict)
        kwargs.pop("logits_to_keep", None)
        request = _LossRequest(
            labels=labels if shift_labels is None else shift_labels,
            shifted=shift_labels is not None,
            num_items=num_items,
            embeddings=self._input_table(),
            attention_mask=kwargs.get("attention_mask"),
        )
        self._request = request
        # Engines replace what the head returns, or put hooks on it; the hook that is set last sees what they made of it.
        handle = None
        if not torch.compiler.is_compiling():
            head = cast(nn.Module, self.model.get_output_embeddings())
            handle = head.register_forward_hook(lambda _, __, output: setattr(request, "returned", output))
        try:
            outputs = own_forward(self.model, return_dict=True, **kwargs)
        finally:
            self._request = None
            if handle is not None:
                handle.remove()
        loss = request.loss
        if loss is None:
            raise UnsupportedModelError(f"{type(self.model).__name__}.forward never called its output head")
        if request.returned is not None and not self._wants_logits:
            loss = request.returned.flatten()[
                0
            ].clone()  # of a view, FSDP2 would lose the hook at `loss *= n`
        fields = {name: value for name, value in outputs.items() if name != "loss"}
        if not self._wants_logits:
            fields.pop("logits", None)
        if fields.get("aux_loss") is not None:  # mixture of experts: what the stock forward adds to its loss
            loss = loss + self.model.router_aux_loss_coef * fields["aux_loss"].to(loss.device)
        result = type(outputs)(loss=loss, **fields)
        return result.to_tuple() if as_tuple else result

    @property
    def _wants_logits(self) -> bool:
        return self.keep_logits and not self.model.training

    def _loss(self, hidden: Tensor, request: _LossRequest) -> Tensor:
        """The head's forward in loss mode; runs where an engine has the head's weight gathered."""
        module, labels = self._head.module, request.labels.to(hidden.device)
        batch = BatchShape.of(hidden, request.attention_mask)
        if not request.shifted:
            hidden, labels = hidden[:, :-1], labels[:, 1:]
        if self.keep_hidden and not self.model.training:
            self.last_hidden = hidden.detach()[labels != -100]
        config = self.config
        measure_only = config.weight == 0 and not self.model.training and not torch.is_grad_enabled()
        if measure_only:
            # Evaluation reports both parts in any case, so that a run with cross-entropy alone can be compared.
            config = replace(config, weight=1.0)
        output = linear_matrix_cross_entropy(
            hidden,
            module.weight,
            labels,
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
            batch=batch,
        )
        if self.observer is not None:
            self._show(hidden, labels, request.embeddings, self.observer)
        return output.cross_entropy if measure_only else output.loss

    # It reads values and branches on them, which no compiled graph can hold.
    @torch.compiler.disable
    @torch.no_grad()
    def _show(self, hidden: Tensor, labels: Tensor, embeddings: Tensor | None, observer: Observer) -> None:
        """Let the observer see the head's inputs at the unmasked positions."""
        module = self._head.module
        labels_T = labels.reshape(-1)
        kept_N = (labels_T != -100).nonzero().squeeze(-1)
        weight, device_type = module.weight.detach(), hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        observation = HeadObservation(
            hidden_ND=hidden.detach().reshape(-1, hidden.shape[-1]).index_select(0, kept_N),
            labels_N=labels_T.index_select(0, kept_N),
            weight_VD=weight,
            bias_V=None if module.bias is None else module.bias.detach(),
            table_VD=weight if embeddings is None else embeddings.detach(),
            token_mask=self._token_mask,
            config=self.config,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
            dtype=torch.get_autocast_dtype(device_type) if autocast else hidden.dtype,
        )
        with autocast_off(device_type):
            observer(observation)

    def _input_table(self) -> Tensor | None:
        if self.config.embeddings == "output":
            return None
        layer = self.model.get_input_embeddings()
        if hasattr(layer, "base_layer"):
            raise UnsupportedModelError(
                "the input embeddings are wrapped by an adapter: their weight misses the adapter's part; take them out of "
                "target_modules, or use embeddings='output'"
            )
        table = cast(Tensor, layer.weight)
        if table.numel() == 0 or hasattr(table, "to_local"):
            raise UnsupportedModelError(
                "the input embeddings are sharded and not at hand where the loss is computed; "
                "use embeddings='output' with ZeRO-3 and FSDP"
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
        token_mask = token_mask_of(tokenizer, find_head(causal_model(model)).num_rows)
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
