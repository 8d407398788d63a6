"""Make a causal model's own `forward` compute the fused losses when it is given labels.

The model's own code runs unchanged, and where it calls its head, the head returns a tensor that carries the loss
instead of logits. What the call gives back is what is differentiated. Every engine that gathers weights around a module
call (ZeRO-3, FSDP, the hooks of accelerate) therefore has the head's weight at hand when it is needed, in the forward
and in the backward pass. One call: FSDP2 wraps the head and the norm before it as one group, and a second call of the
head alone would let it free the norm's weight in the middle of the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import Signature
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedTokenizerBase

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.dropped_inputs import refuse_dropped_inputs, take_loss_arguments
from mce_llm.lm.geometry_cache import GeometryCache
from mce_llm.lm.heads import (
    UnsupportedModelError,
    backbone_of,
    causal_model,
    find_head,
    head_not_called,
    input_table,
    refuse_lost_gradients,
)
from mce_llm.lm.instance_forward import (
    InstanceForward,
    PatchedModelError,
    is_class_forward,
    posing_as,
    signature_of,
)
from mce_llm.lm.linear_loss import linear_matrix_cross_entropy
from mce_llm.lm.loss_inputs import check_label_shape
from mce_llm.lm.observation import BatchShape, HeadObservation, Observer
from mce_llm.lm.patched_call import (
    CallState,
    LossParts,
    LossRequest,
    head_forward,
    model_forward,
    unpatch_copy,
    with_value,
)
from mce_llm.lm.router_loss import check_router_loss, router_term
from mce_llm.lm.token_mask import token_mask_of
from mce_llm.lm.whole_weights import whole
from mce_llm.matrix.precision import autocast_off

_SETTABLE = {"config", "keep_logits", "keep_hidden", "process_group", "geometries", "observer"}


class MatrixLossPatch:
    """The patch on one model: made by `patch_model`, taken off by `remove`.

    A trainer's patch is at work inside the trainer's own calls alone (`at_work`); in between the model computes what it
    would without it, and another trainer, or `patch_model`, takes its place. A deep copy of the model has a patch of its
    own, with the same settings and without the observer.

    Attributes:
        config: The loss settings; may be replaced between steps.
        last: Parts of the loss of the latest forward with labels, None before the first.
        last_hidden: With `keep_hidden`, the hidden states of its unmasked positions, (N, d), detached.
        keep_logits: Return logits beside the loss in eval mode (for `compute_metrics`); they cost T×V memory.
        keep_hidden: Hold on to `last_hidden` in eval mode.
        process_group: Ranks that share the statistics of the batch kinds; every rank then has to make each call.
        geometries: Remembers the token geometry from call to call, while weights stand still; None to read it each time.
        observer: Called in every forward with labels, inside the head's forward and after the loss, without
            gradients; None for nobody. Loss and gradients are the same with and without.
    """

    _call: CallState
    _signature: Signature
    _model_forward: InstanceForward
    _head_forward: InstanceForward
    _bypass_check: RemovableHandle

    def __init__(
        self,
        model: nn.Module,
        config: MatrixLossConfig,
        token_mask: Tensor | None,
        *,
        always_at_work: bool = True,
    ) -> None:
        self.model = causal_model(model)
        self._always_at_work = always_at_work
        self.config = config
        self.last: LossParts | None = None
        self.last_hidden: Tensor | None = None
        self.keep_logits = False
        self.keep_hidden = False
        self.process_group: ProcessGroup | None = None
        self.geometries: GeometryCache | None = None
        self.observer: Observer | None = None
        self._head = find_head(self.model)
        rows = self._head.num_rows
        if token_mask is not None and token_mask.shape != (rows,):
            raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}, the head has {rows} rows")
        self._token_mask = token_mask
        self._install()

    def _install(self) -> None:
        """Put the patch on the model, in the place of one that is not at work.

        Raises:
            UnsupportedModelError: Another patch is at work, or the head's forward is not that of its class.
            PatchedModelError: The patch before cannot be taken off the head that the model had then.
        """
        model, head = cast(Any, self.model), self._head.module
        before: MatrixLossPatch | None = model.__dict__.get("_matrix_loss_patch")
        if before is self:
            return
        if before is not None and before._call.at_work:
            raise UnsupportedModelError(
                "the model is patched already; call remove() on that patch first (model._matrix_loss_patch.remove(); with "
                "peft, on model.get_base_model())"
            )
        if before is not None and before._head.module is head:
            # The forwards stay as they are, and find the patch on the model: engines may have wrapped them since.
            self._call, self._signature = before._call, before._signature
            self._model_forward, self._head_forward = before._model_forward, before._head_forward
            self._bypass_check = before._bypass_check
        else:
            if before is not None:
                before.remove()
                unpatch_copy(head)
            if not is_class_forward(head):
                raise UnsupportedModelError(
                    f"the head's forward was replaced on the instance ({head.forward!r}), and the loss, which is computed "
                    "from the head's input and weight, would leave it out; delete it (`del head.forward`), or patch the "
                    "model's forward instead of the head's"
                )
            self._call = CallState(type(self.model).__name__)
            self._signature = signature_of(self.model)
            self._model_forward = InstanceForward(self.model, posing_as(self.model, model_forward()))
            self._head_forward = InstanceForward(head, head_forward)
            cast(Any, head)._matrix_loss_call = self._call
            self._bypass_check = backbone_of(self.model).register_forward_pre_hook(self._call.refuse_bypass)
        self._call.at_work = self._always_at_work
        model._matrix_loss_patch = self

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have a trainer's patch compute the loss for the length of a block; that of `patch_model` does so all the time.

        Raises:
            UnsupportedModelError: `patch_model` has put another one on the model since.
        """
        self._install()
        call = self._call
        before, call.at_work = call.at_work, True
        try:
            yield
        finally:
            call.at_work = before

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
            **settings: Any attribute but `last` and `last_hidden`.

        Raises:
            TypeError: Another name.
        """
        if unknown := settings.keys() - _SETTABLE:
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
        fixed = {
            **dict.fromkeys(("last", "last_hidden", "observer", "geometries")),
            "process_group": self.process_group,
        }
        twin.__dict__.update(fixed)
        for name, value in self.__dict__.items():
            if name not in fixed:
                twin.__dict__[name] = copy.deepcopy(value, memo)
        # The trainer whose call may be running runs the model, not the copy.
        twin._call.at_work = twin._always_at_work
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Pickle stores the forward of a model by name, so that the loss would be gone without a word."""
        raise PatchedModelError(
            "a patched model cannot be pickled; call remove() on its patch first (trainer.matrix_patch, or "
            "model._matrix_loss_patch), or save the weights alone (save_pretrained, state_dict)"
        )

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward is replaced by."""
        if not self._call.at_work:
            return self._model_forward.own(*args, **kwargs)
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
            refuse_lost_gradients(self.model)
        labels = kwargs.pop("labels", None)
        shift_labels = kwargs.pop("shift_labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        return_dict = kwargs.pop("return_dict", None)
        as_tuple = not (self.model.config.return_dict if return_dict is None else return_dict)
        take_loss_arguments(kwargs)
        request = LossRequest(
            compute=self._loss,
            with_logits=self._wants_logits,
            labels=labels if shift_labels is None else shift_labels,
            shifted=shift_labels is not None,
            num_items=num_items,
            embeddings=None if self.config.embeddings == "output" else input_table(self.model),
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
        if (loss := request.loss) is None:
            raise head_not_called(self.model, self._head)
        if request.returned is not None and not self._wants_logits:
            # Cloned, since of a view FSDP2 would lose the hook at `loss *= n`.
            loss = with_value(request.returned.flatten()[0].clone(), loss)
        left_out = ("loss",) if self._wants_logits else ("loss", "logits")
        fields = {name: value for name, value in outputs.items() if name not in left_out}
        if isinstance(auxiliary := fields.get("aux_loss"), Tensor):  # of a mixture of experts
            auxiliary, parts = auxiliary.to(loss), cast(LossParts, self.last)
            loss = loss + router_term(self.model, auxiliary, parts.num_tokens, num_items)
            self.last = replace(parts, router_sum=auxiliary.detach() * parts.num_tokens)
        self.last = replace(cast(LossParts, self.last), loss=loss.detach())
        result = type(outputs)(loss=loss, **fields)
        return result.to_tuple() if as_tuple else result

    @property
    def _wants_logits(self) -> bool:
        return self.keep_logits and not self.model.training

    def _loss(self, hidden: Tensor, request: LossRequest) -> Tensor:
        """The head's forward in loss mode; runs where an engine has the head's weight gathered."""
        hidden, (weight, bias) = whole(hidden, "the head's input"), self._head.weights()
        # A model that is spread over devices has its head on one of them, and gets its inputs on another.
        labels, num_items = request.labels.to(hidden.device), request.num_items
        num_items = num_items.to(hidden.device) if isinstance(num_items, Tensor) else num_items
        embeddings = None if request.embeddings is None else request.embeddings.to(hidden.device)
        batch = BatchShape.of(hidden, request.attention_mask)
        check_label_shape(labels, hidden)
        if not request.shifted:
            hidden, labels = hidden[:, :-1], labels[:, 1:]
        if self.keep_hidden and not self.model.training:
            self.last_hidden = hidden.detach()[labels != -100]
        measure = not self.model.training and not torch.is_grad_enabled()
        if self._token_mask is not None:  # copied once, since the host waits for a copy
            self._token_mask = self._token_mask.to(hidden.device)
        output = linear_matrix_cross_entropy(
            hidden,
            weight,
            labels,
            self.config,
            bias=bias,
            embeddings=embeddings,
            num_items=num_items,
            token_mask=self._token_mask,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
            process_group=self.process_group,
            details=not self.model.training,
            measure=measure,  # evaluation reports MCE in any case, so that runs with other losses can be compared
            geometries=self.geometries,
        )
        count = num_items if num_items is not None else max(output.num_tokens, 1)
        self.last = LossParts(
            cross_entropy_sum=output.cross_entropy * count,
            matrix_sum=output.matrix_cross_entropy * count if self.config.weight or measure else None,
            num_tokens=output.num_tokens,
            details=output.details,
            batch=batch,
            term_sums={name: value * count for name, value in output.terms.items()},
        )
        if self.observer is not None:
            self._show(hidden, labels, embeddings, self.observer)
        return output.loss

    # It branches on values, which no compiled graph can do.
    @torch.compiler.disable
    @torch.no_grad()
    def _show(self, hidden: Tensor, labels: Tensor, embeddings: Tensor | None, observer: Observer) -> None:
        """Let the observer see the head's inputs at the unmasked positions."""
        observation = HeadObservation.of_head(
            hidden,
            labels,
            *self._head.weights(),
            table=embeddings,
            token_mask=self._token_mask,
            config=self.config,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
        )
        with autocast_off(hidden.device.type):
            observer(observation)


def patch_model(
    model: nn.Module,
    config: MatrixLossConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_mask: Tensor | None = None,
    rows: Iterable[Any] = (),
    always_at_work: bool = True,
) -> MatrixLossPatch:
    """Make `model(input_ids, labels=…)` return the loss of `config`; without labels the model behaves as before.

    Beside a loss, `logits` is None: they are what the loss does without (`keep_logits` brings them back in eval mode).

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
        always_at_work: False for a patch that changes nothing outside of its `at_work` blocks, as a trainer's.

    Returns:
        The patch, which holds the parts of the latest loss and can be removed.

    Raises:
        UnsupportedModelError: A model, head or tokenizer that the losses would be wrong for, or a patch at work on it.
        ValueError: Both `tokenizer` and `token_mask`, or a mask of another size.
    """
    if tokenizer is not None and token_mask is not None:
        raise ValueError("give tokenizer or token_mask, not both")
    check_router_loss(causal_model(model))
    if tokenizer is not None:
        inner = causal_model(model)
        token_mask = token_mask_of(tokenizer, find_head(inner).num_rows, model=inner, rows=rows)
    return MatrixLossPatch(model, config, token_mask, always_at_work=always_at_work)
