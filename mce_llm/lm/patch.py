"""Make a causal model's own `forward` compute the fused losses when it is given labels.

The model's own code runs unchanged, and where it calls its head, the head returns a tensor that carries the loss
instead of logits. What the call gives back is what is differentiated. Every engine that gathers weights around a module
call (ZeRO-3, FSDP, the hooks of accelerate) therefore has the head's weight at hand when it is needed, in the forward
and in the backward pass. One call: FSDP2 wraps the head and the norm before it as one group, and a second call of the
head alone would let it free the norm's weight in the middle of the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.dropped_inputs import refuse_dropped_inputs
from mce_llm.lm.heads import UnsupportedModelError, backbone_of, causal_model, find_head
from mce_llm.lm.instance_forward import (
    InstanceForward,
    PatchedModelError,
    is_class_forward,
    posing_as,
    signature_of,
)
from mce_llm.lm.linear_loss import linear_matrix_cross_entropy
from mce_llm.lm.observation import BatchShape, HeadObservation, Observer
from mce_llm.lm.patched_call import CallState, LossRequest, head_forward
from mce_llm.lm.router_loss import check_router_loss, router_term
from mce_llm.lm.token_mask import token_mask_of
from mce_llm.matrix.precision import autocast_off


@dataclass(frozen=True)
class LossParts:
    """The parts of one forward's loss, detached; sums over its unmasked labels, in nats.

    Attributes:
        cross_entropy_sum: Σ CE.
        matrix_sum: Σ MCE (the batch kinds: n · MCE); None where it was not computed.
        num_tokens: n, the number of unmasked labels.
        details: Means over the n labels, see `LossOutput.details`.
        batch: The size of the input that they came from.
        router_sum: n · aux_loss of a mixture of experts, without its coefficient; None where the model gives none.
    """

    cross_entropy_sum: Tensor
    matrix_sum: Tensor | None
    num_tokens: int
    details: dict[str, Tensor]
    batch: BatchShape
    router_sum: Tensor | None = None


class MatrixLossPatch:
    """The patch on one model: made by `patch_model`, taken off by `remove`.

    A deep copy of the model has a patch of its own, with the same settings and without the observer.

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
        if "_matrix_loss_patch" in self.model.__dict__:
            raise UnsupportedModelError("the model is patched already; call remove() on its patch first")
        self.config = config
        self.last: LossParts | None = None
        self.last_hidden: Tensor | None = None
        self.keep_logits = False
        self.keep_hidden = False
        self.process_group: ProcessGroup | None = None
        self.observer: Observer | None = None
        self._head = find_head(self.model)
        head = self._head.module
        if not is_class_forward(head):
            raise UnsupportedModelError(
                f"the head's forward was replaced on the instance ({head.forward!r}), and the loss, which is computed "
                "from the head's input and weight, would leave it out; delete it (`del head.forward`), or patch the "
                "model's forward instead of the head's"
            )
        rows = self._head.num_rows
        if token_mask is not None and token_mask.shape != (rows,):
            raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}, the head has {rows} rows")
        self._token_mask = token_mask
        self._call = CallState(type(self.model).__name__)
        self._signature = signature_of(self.model)
        self._model_forward = InstanceForward(self.model, posing_as(self.model, _model_forward()))
        self._head_forward = InstanceForward(head, head_forward)
        cast(Any, self.model)._matrix_loss_patch = self
        cast(Any, head)._matrix_loss_call = self._call
        layers = backbone_of(self.model)
        self._bypass_check = layers.register_forward_pre_hook(self._call.refuse_bypass)

    def remove(self) -> None:
        """Give model and head the forwards back that they had before; nothing happens the second time.

        Raises:
            PatchedModelError: Another forward was set on the model or its head since, which would be lost.
        """
        if self.model.__dict__.get("_matrix_loss_patch") is not self:
            return
        for what, replaced in (("model", self._model_forward), ("head", self._head_forward)):
            if (origin := replaced.covered_by()) is not None:
                raise PatchedModelError(
                    f"the {what}'s forward was replaced after the patch, by {origin}; put back the one before it first "
                    "(mixed precision of accelerate: accelerator.unwrap_model(model, keep_fp32_wrapper=False)), then "
                    "call remove()"
                )
        self._model_forward.restore()
        self._head_forward.restore()
        self._bypass_check.remove()
        del self.model._matrix_loss_patch
        del cast(Any, self._head.module)._matrix_loss_call

    @contextmanager
    def temporarily(self, **settings: Any) -> Iterator[None]:
        """Set attributes for the length of a block; the earlier values come back, after an exception too.

        Args:
            **settings: Any of `config`, `keep_logits`, `keep_hidden`, `process_group` and `observer`.

        Raises:
            TypeError: Another name.
        """
        if unknown := settings.keys() - {"config", "keep_logits", "keep_hidden", "process_group", "observer"}:
            raise TypeError(f"{', '.join(sorted(unknown))} cannot be set on a patch for a while")
        before = {name: getattr(self, name) for name in settings}
        self.__dict__.update(settings)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def __deepcopy__(self, memo: dict[int, Any]) -> MatrixLossPatch:
        """The patch of the copied model."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        fixed = {"last": None, "last_hidden": None, "observer": None, "process_group": self.process_group}
        twin.__dict__.update(fixed)
        for name, value in self.__dict__.items():
            if name not in fixed:
                twin.__dict__[name] = copy.deepcopy(value, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Pickle stores the forward of a model by name, so that the loss would be gone without a word."""
        raise PatchedModelError(
            "a patched model cannot be pickled; call remove() on its patch first, or save the weights alone "
            "(save_pretrained, state_dict)"
        )

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward is replaced by."""
        if args:  # name the positional ones, so that labels are found wherever they stand
            kwargs = {**self._signature.bind_partial(*args).arguments, **kwargs}
        nested, self._call.running = self._call.running, True
        try:
            if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
                return self._model_forward.own(**kwargs)
            return self._forward_with_loss(kwargs)
        finally:
            self._call.running = nested

    def _forward_with_loss(self, kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            refuse_dropped_inputs(self.model, kwargs)
        if self.model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._refuse_lost_gradients()
        labels = kwargs.pop("labels", None)
        shift_labels = kwargs.pop("shift_labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        return_dict = kwargs.pop("return_dict", None)
        as_tuple = not (self.model.config.return_dict if return_dict is None else return_dict)
        kwargs.pop("logits_to_keep", None)
        request = LossRequest(
            compute=self._loss,
            with_logits=self._wants_logits,
            labels=labels if shift_labels is None else shift_labels,
            shifted=shift_labels is not None,
            num_items=num_items,
            embeddings=self._input_table(),
            attention_mask=kwargs.get("attention_mask"),
        )
        self._call.request = request
        # Engines replace what the head returns, or put hooks on it; the hook that is set last sees what they made of it.
        handle = None
        if not torch.compiler.is_compiling():
            head = cast(nn.Module, self.model.get_output_embeddings())
            handle = head.register_forward_hook(lambda _, __, output: setattr(request, "returned", output))
        try:
            outputs = self._model_forward.own(return_dict=True, **kwargs)
        finally:
            self._call.request = None
            if handle is not None:
                handle.remove()
        loss = request.loss
        if loss is None:
            raise UnsupportedModelError(f"{type(self.model).__name__}.forward never called its output head")
        if request.returned is not None and not self._wants_logits:
            loss = request.returned.flatten()[0]
            loss = loss.clone()  # of a view, FSDP2 would lose the hook at `loss *= n`
        fields = {name: value for name, value in outputs.items() if name != "loss"}
        if not self._wants_logits:
            fields.pop("logits", None)
        if isinstance(auxiliary := fields.get("aux_loss"), Tensor):  # of a mixture of experts
            auxiliary, parts = auxiliary.to(loss.device), cast(LossParts, self.last)
            loss = loss + router_term(self.model, auxiliary, parts.num_tokens, num_items)
            self.last = replace(parts, router_sum=auxiliary.detach() * parts.num_tokens)
        result = type(outputs)(loss=loss, **fields)
        return result.to_tuple() if as_tuple else result

    def _refuse_lost_gradients(self) -> None:
        """Raise if trained parameters are offloaded: accelerate gives each forward a new copy, and drops its gradient."""
        lost = [name for name, p in self.model.named_parameters() if p.requires_grad and p.is_meta]
        if lost:
            raise UnsupportedModelError(
                f"{len(lost)} trainable parameters are offloaded to the CPU or to disk (the first: {lost[0]}), and their "
                "gradients would be lost; keep them on a device in device_map, or freeze them (requires_grad_(False))"
            )

    @property
    def _wants_logits(self) -> bool:
        return self.keep_logits and not self.model.training

    def _loss(self, hidden: Tensor, request: LossRequest) -> Tensor:
        """The head's forward in loss mode; runs where an engine has the head's weight gathered."""
        module, device = self._head.module, hidden.device
        # A model that is spread over devices has its head on one of them, and gets its inputs on another.
        labels, num_items = request.labels.to(device), request.num_items
        num_items = num_items.to(device) if isinstance(num_items, Tensor) else num_items
        embeddings = None if request.embeddings is None else request.embeddings.to(device)
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
            embeddings=embeddings,
            num_items=num_items,
            token_mask=self._token_mask,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
            process_group=self.process_group,
            details=not self.model.training,
        )
        count = num_items if num_items is not None else max(output.num_tokens, 1)
        self.last = LossParts(
            cross_entropy_sum=output.cross_entropy * count,
            matrix_sum=output.matrix_cross_entropy * count if config.weight else None,
            num_tokens=output.num_tokens,
            details=output.details,
            batch=batch,
        )
        if self.observer is not None:
            self._show(hidden, labels, embeddings, self.observer)
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
        if table.is_meta:
            raise UnsupportedModelError(
                "the input embeddings are offloaded and not at hand where the loss is computed; keep them on a device "
                "in device_map, or use embeddings='output'"
            )
        return table


def _model_forward() -> Callable[..., Any]:
    """The function that replaces a model's forward; it finds the patch on the model, which may be a copy."""

    def forward(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        patch: Any = model._matrix_loss_patch
        return patch._forward(*args, **kwargs)

    return forward


def patch_model(
    model: nn.Module,
    config: MatrixLossConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_mask: Tensor | None = None,
    rows: Iterable[Any] = (),
) -> MatrixLossPatch:
    """Make `model(input_ids, labels=…)` return L_CE + λ·MCE; without labels the model behaves as before.

    Patch before the model is wrapped by an engine or by `Trainer`. A forward that was set on the instance before is
    called inside the patch; a model with accelerate's hooks (`device_map`) may be patched before or after it is
    dispatched, but offloaded parameters have to be frozen.

    Args:
        model: A Hugging Face causal language model, or a `peft` model around one.
        config: The loss settings.
        tokenizer: Tells which rows of the head are tokens; the others stay out of the geometry.
        token_mask: (V,) bool that says the same directly.
        rows: Data sets that the model will be trained or evaluated on, as far as they are at hand; a padding token that
            is a label there stays in the geometry, see `token_mask_of`.

    Returns:
        The patch, which holds the parts of the latest loss and can be removed.

    Raises:
        UnsupportedModelError: A model, head or tokenizer that the losses would be wrong for.
        ValueError: Both `tokenizer` and `token_mask`, or a mask of another size.
    """
    if tokenizer is not None and token_mask is not None:
        raise ValueError("give tokenizer or token_mask, not both")
    check_router_loss(causal_model(model))
    if tokenizer is not None:
        inner = causal_model(model)
        token_mask = token_mask_of(tokenizer, find_head(inner).num_rows, model=inner, rows=rows)
    return MatrixLossPatch(model, config, token_mask)
