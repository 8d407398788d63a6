"""Find a causal model's output head and what the model does to the logits after it; refuse what would be wrong.

The head is found through the Hugging Face interface, and the treatment of the logits is measured rather than looked
up, so a scale or a softcap in an unknown architecture is either reproduced or refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mce_llm.errors import MceLlmError
from mce_llm.lm.whole_weights import check_plan, check_whole, whole
from mce_llm.running.messages import counted

# Returned by the head in place of logits: small values show a scale, large ones a saturation, both signs show symmetry.
_PROBE = (-1e5, -50.0, -3.0, -1e-3, 0.0, 1e-3, 0.5, 3.0, 50.0, 1e5)


# What transformers calls the loss of text models, and of multimodal ones around them; both are causal cross-entropy.
_CAUSAL_LOSSES = ("ForCausalLM", "ForConditionalGeneration")


class UnsupportedModelError(MceLlmError, TypeError):
    """The model, or its head, cannot be trained with the fused losses; the message says why and what to do."""


@dataclass(frozen=True)
class Head:
    """A supported output head.

    Attributes:
        module: The linear layer that is in use, with wrappers taken off.
        logit_scale: Factor that the model puts on the logits (1 for most).
        softcap: c where the model applies c·tanh(z/c) after the scale (Gemma 2), else None.
    """

    module: nn.Linear
    logit_scale: float
    softcap: float | None

    @property
    def num_rows(self) -> int:
        """V, from the weight itself: a copy that `peft` ties to the embeddings has its two sizes the wrong way round."""
        weight: Any = self.module.weight
        shape = getattr(weight, "ds_shape", weight.shape)  # ZeRO-3 leaves an empty tensor in place of a shard
        return int(shape[0])

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as plain tensors, where they are at hand: in the head's forward.

        Raises:
            ShardedWeightError: Tensor parallelism has left a part of them on each rank.
        """
        bias = None if self.module.bias is None else whole(self.module.bias, "the head's bias")
        return whole(self.module.weight, "the head's weight"), bias


class _BackboneOutput(MoeModelOutputWithPast):
    """The output of a backbone, with None for every optional attribute that a model's forward may read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face causal language model inside `model`, with adapter wrappers of `peft` taken off.

    Raises:
        UnsupportedModelError: If there is none, or if it is an encoder-decoder or no causal model.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a Hugging Face causal language model (or a peft model around one), got {type(inner).__name__}"
        )
    name = type(inner).__name__
    if getattr(inner.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder; the losses shift labels as causal models do"
        )
    loss_type = getattr(inner, "loss_type", None)  # older classes leave it open, and are known by name
    causal_names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if loss_type not in _CAUSAL_LOSSES and not any(
        base.__name__ in causal_names for base in type(inner).__mro__
    ):
        raise UnsupportedModelError(
            f"{name} is not a causal language model (its loss is {loss_type}); "
            "load it with AutoModelForCausalLM"
        )
    causal = [
        module.is_causal for module in inner.modules() if isinstance(getattr(module, "is_causal", None), bool)
    ]
    if causal and not any(causal):
        raise UnsupportedModelError(
            f"{name} attends in both directions and would see the tokens that it has to predict; use a decoder, or "
            "set is_decoder=True in its config"
        )
    return inner


def find_head(model: PreTrainedModel) -> Head:
    """The head of a causal language model, checked.

    Raises:
        UnsupportedModelError: No head, an adapter on it, a quantised or unusual layer, or a treatment of the logits
            other than a scale and a softcap.
        ShardedWeightError: Tensor parallelism has left a part of it on each rank.
    """
    module = output_layer(model)
    logit_scale, softcap = logit_treatment(model)
    return Head(module, logit_scale, softcap)


def refuse_lost_gradients(model: PreTrainedModel) -> None:
    """Raise if trained parameters are offloaded: accelerate gives each forward a new copy, and drops its gradient.

    Raises:
        UnsupportedModelError: There are such parameters.
    """
    lost = [name for name, p in model.named_parameters() if p.requires_grad and p.is_meta]
    if lost:
        raise UnsupportedModelError(
            f"offloaded to the CPU or to disk: {counted(len(lost), 'trainable parameter')} (the first: {lost[0]}), whose "
            "gradients would be lost; keep them on a device in device_map, or freeze them (requires_grad_(False))"
        )


def head_not_called(model: PreTrainedModel, head: Head) -> UnsupportedModelError:
    """The error for a forward that went past the head that was found before, with the reason as far as it is known."""
    if output_layer(model) is not head.module:
        return UnsupportedModelError(
            "the output head was replaced after the model was patched (resize_token_embeddings, an adapter that trains it "
            "whole); "
            "make a new MatrixTrainer, or call remove() and patch_model again"
        )
    return UnsupportedModelError(f"{type(model).__name__}.forward never called its output head")


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns hidden states into logits; its weight need not be at hand.

    Raises:
        UnsupportedModelError: No such layer, an adapter on it, or a quantised or unusual one.
        ShardedWeightError: Tensor parallelism has left a part of it on each rank.
    """
    module: Any = model.get_output_embeddings()
    if module is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output embeddings (language-model head)")
    module = _trained_copy(module)
    if hasattr(module, "base_layer"):
        raise UnsupportedModelError(
            f"the head is wrapped by an adapter ({type(module).__module__}.{type(module).__name__}): its weight misses the adapter's part. "
            "Take the head out of target_modules, or train it whole with modules_to_save=['lm_head']"
        )
    if hasattr(module, "token_adapter"):
        raise UnsupportedModelError(
            "the head is tied to embeddings whose trainable_token_indices are trained: its weight misses these rows. Train the "
            "whole table with modules_to_save=['embed_tokens'] and ensure_weight_tying=True (peft 0.18), or untie the head"
        )
    weight = getattr(module, "weight", None)
    if type(module) is not nn.Linear or not isinstance(weight, Tensor) or not weight.is_floating_point():
        dtype = f", weight {weight.dtype}" if isinstance(weight, Tensor) else ""
        raise UnsupportedModelError(
            f"the head is a {type(module).__module__}.{type(module).__name__}{dtype}, not a plain floating-point torch.nn.Linear; keep a "
            "quantised model's head out of the quantisation (llm_int8_skip_modules=['lm_head'])"
        )
    check_plan(module)
    if not _gathered_by_fsdp(model):
        check_whole(weight, "the head's weight")
    return module


def _gathered_by_fsdp(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded the model already; weights are whole, then, where the head's forward runs."""
    return any(hasattr(module, "set_reshard_after_backward") for module in model.modules())


def _trained_copy(module: Any) -> Any:
    """The copy of a head that `modules_to_save` trains in place of the original one."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return module
    active = list(module.active_adapters)
    if len(active) != 1:
        raise UnsupportedModelError(
            f"the head has {len(active)} active adapters ({', '.join(active) or 'none'}); activate exactly one"
        )
    return copies[active[0]]


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The layers of a model without its head.

    Raises:
        UnsupportedModelError: They are no module of their own.
    """
    if model.base_model is not model:
        return model.base_model
    # base_model_prefix is none of its attributes, as in Llama4ForCausalLM: the part that begins with the embeddings.
    embeddings = model.get_input_embeddings()
    for part in model.children():
        if part is not embeddings and any(module is embeddings for module in part.modules()):
            return part
    raise UnsupportedModelError(f"{type(model).__name__} has no separate backbone (base_model_prefix)")


def logit_treatment(model: PreTrainedModel) -> tuple[float, float | None]:
    """(scale, softcap) of the logits, from what the model's own forward makes of probe values in place of logits.

    Backbone and head are replaced for one call, so nothing heavy runs and sharded weights are not touched. The head may be
    wrapped by an adapter.

    Raises:
        UnsupportedModelError: The model makes its logits otherwise, or treats them in another way.
    """
    backbone, head = backbone_of(model), cast(Any, model.get_output_embeddings())
    # The weight of an offloaded head has no values here, and the probe does not need it.
    device = torch.device("cpu") if head.weight.is_meta else head.weight.device
    probe = torch.tensor(_PROBE, dtype=torch.float32, device=device).view(1, 1, -1)
    hidden = torch.zeros(1, 1, head.in_features, dtype=torch.float32, device=device)
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)

    def stand_in_backbone(*_: Any, **__: Any) -> _BackboneOutput:
        return _BackboneOutput(last_hidden_state=hidden)

    saved = [(part, part.__dict__.get("forward")) for part in (backbone, head)]
    backbone.forward = stand_in_backbone
    head.forward = lambda *_, **__: probe
    try:
        with torch.no_grad():
            # As it is called: what was set on the instance in place of the class's forward has a say, too.
            treated = model.forward(input_ids=ids, use_cache=False).logits
    except Exception as error:
        raise UnsupportedModelError(
            f"could not find out what {type(model).__name__} does to its logits after the head: {error}{_text_class(model)}"
        ) from error
    finally:
        for part, own_forward in saved:
            del part.forward
            if own_forward is not None:
                part.forward = own_forward
    if treated.shape != probe.shape:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not make its logits from its backbone's hidden states with its own head"
            f"{_text_class(model)}"
        )
    return _fit_treatment(
        probe.cpu().double().flatten(), treated.cpu().double().flatten(), type(model).__name__
    )


def _text_class(model: PreTrainedModel) -> str:
    """A hint at the class that AutoModelForCausalLM loads for text alone, where that is another one."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    if known is None or any(base.__name__ == known for base in type(model).__mro__):
        return ""
    return f"; for text alone, AutoModelForCausalLM loads the same weights as {known}"


def _fit_treatment(probe: Tensor, treated: Tensor, name: str) -> tuple[float, float | None]:
    """The scale and the softcap that explain `treated`, or a refusal."""
    scale = float(treated[5] / probe[5])
    linear = probe * scale
    if scale > 0 and torch.allclose(treated, linear, rtol=1e-4, atol=1e-7):
        # The slope at the largest value has the least rounding in it.
        exact = float(treated[-1] / probe[-1])
        return (1.0 if math.isclose(exact, 1.0, rel_tol=1e-6) else exact), None
    cap = float(treated[-1])
    if (
        scale > 0
        and cap > 0
        and torch.allclose(treated, cap * torch.tanh(linear / cap), rtol=1e-3, atol=1e-6)
    ):
        return (1.0 if math.isclose(scale, 1.0, rel_tol=1e-3) else scale), cap
    raise UnsupportedModelError(
        f"{name} changes its logits after the head in a way that is neither a scale nor a softcap: "
        f"{probe.tolist()} became {treated.tolist()}"
    )


def input_table(model: PreTrainedModel) -> Tensor:
    """The input embeddings as they give the token geometry, (V, d′).

    Raises:
        UnsupportedModelError: An adapter adds to them, or they are sharded or offloaded.
        ShardedWeightError: Tensor parallelism has left a part of them on each rank.
    """
    layer: Any = model.get_input_embeddings()
    if hasattr(layer, "base_layer"):
        raise UnsupportedModelError(
            "the input embeddings are wrapped by an adapter: their weight misses the adapter's part; take them out of "
            "target_modules, or use embeddings='output'"
        )
    table: Tensor = layer.weight
    if table.numel() == 0 or (hasattr(table, "to_local") and _gathered_by_fsdp(model)):
        raise UnsupportedModelError(
            "the input embeddings are sharded and not at hand where the loss is computed; "
            "use embeddings='output' with ZeRO-3 and FSDP"
        )
    if table.is_meta:
        raise UnsupportedModelError(
            "the input embeddings are offloaded and not at hand where the loss is computed; keep them on a device "
            "in device_map, or use embeddings='output'"
        )
    return whole(table, "the input embeddings' weight")
