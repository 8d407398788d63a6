"""Reading a `ModelShape` off a model, which may be on the meta device, without weights, and may have adapters.

Parameters are counted from the model itself, whatever its architecture. What activations depend on (heads, widths,
experts) comes from its decoder layers and its configuration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mce_llm.lm.heads import causal_model
from mce_llm.planning.shapes import (
    LayerShape,
    LinearShape,
    ModelShape,
    NormShape,
    ParameterGroup,
    PlanningError,
    Role,
    UnplannedError,
    merged,
)

_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
_GATED = ("gate_proj", "up_proj")
_FUSED_QUERY_KEY_VALUE = ("query_key_value", "qkv_proj", "c_attn", "Wqkv")
_SCALES_EXACTLY = ("Gemma", "Cohere")
_WRITTEN_OUT = {
    "NewGELUActivation": 4,
    "FastGELUActivation": 4,
    "QuickGELUActivation": 2,
    "ReLUSquaredActivation": 2,
}
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
_INNER_WIDTH = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")


def shape_of(model: nn.Module, name: str = "") -> ModelShape:
    """The sizes of a causal language model.

    Args:
        model: Of transformers, or a `peft` model around one. Nothing is computed with it.
        name: For titles; by default its class.

    Returns:
        Its shape; `trained` follows `requires_grad`.

    Raises:
        PlanningError: It has no layers or no head that are known as such.
        UnplannedError: What its layers keep for the backward pass is not known.
        UnsupportedModelError: It is no causal language model.
    """
    inner = causal_model(model)
    config = inner.config.get_text_config()
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    if head is None:
        raise PlanningError(f"{type(inner).__name__} has no output embeddings (language-model head)")
    layers = _decoder_layers(inner)
    tied = any(weight is other for weight in head.parameters() for other in embeddings.parameters())
    trained_head = [p.requires_grad for p in head.parameters()]
    return ModelShape(
        name=name or type(inner).__name__,
        model_type=config.model_type,
        hidden_size=_own(config, "hidden_size"),
        vocabulary=int(max(p.shape[0] for p in head.parameters())),
        num_layers=len(layers),
        layer=_layer_shape(max(layers, key=_size), config),
        groups=_groups(inner, head, embeddings),
        head_trained=any(trained_head),
        tied=tied,
        softcap=getattr(config, "final_logit_softcapping", None) is not None,
        stored_dtype=str(getattr(inner.config, "dtype", None) or torch.float32).removeprefix("torch."),
        longest=getattr(config, "max_position_embeddings", None),
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The longest list of modules, and of lists as long the one that holds most."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise PlanningError(f"{type(model).__name__} has no list of layers")
    return max(lists, key=lambda found: (_size(found), len(found)))


def _groups(model: nn.Module, head: nn.Module, embeddings: nn.Module) -> tuple[ParameterGroup, ...]:
    ends: dict[int, Role] = {id(p): "embedding" for p in embeddings.parameters() if p.ndim == 2}
    ends |= {id(p): "head" for p in head.parameters() if p.ndim == 2}
    groups, seen = [], set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            role: Role = ends.get(id(parameter)) or _role(f"{prefix}.{name}", module, parameter)
            shape = tuple(parameter.shape)
            if isinstance(module, Conv1D) and len(shape) == 2:
                shape = shape[::-1]  # it keeps its matrix the other way round
            groups.append(ParameterGroup(role, shape, trained=parameter.requires_grad))
    return merged(groups)


def _role(name: str, module: nn.Module, parameter: nn.Parameter) -> Role:
    if "lora_" in name:
        return "adapter"
    if parameter.ndim == 2 and isinstance(module, nn.Linear | Conv1D):
        return "linear"
    return "norm" if "Norm" in type(module).__name__ else "other"


def _layer_shape(layer: nn.Module, config: Any) -> LayerShape:
    linears = _linears(layer)
    heads = _own(config, "num_attention_heads")
    if not heads:
        raise UnplannedError(
            f"{config.model_type} has no attention, and what its layers keep for the backward pass is not known here; "
            "measure a short run"
        )
    head_size = _own(config, "head_dim") or config.hidden_size // heads
    key_heads = _own(config, "num_key_value_heads") or heads
    experts = next((int(n) for name in _EXPERTS_PER_TOKEN if (n := getattr(config, name, None))), 0)
    experts = experts if any(p.ndim == 3 for p in layer.parameters()) or _in_experts(layer) else 0
    norms = tuple(_norms(layer, heads * head_size, key_heads * head_size, head_size))
    parallel = bool(getattr(config, "use_parallel_residual", False))
    if sum(norm.width == config.hidden_size for norm in norms) == 1:
        # Both branches read what one normalisation gave, so the feed-forward network's input is the attention's.
        parallel = True
        first_inner = next((n for n, linear in enumerate(linears) if _is_inner(linear.name)), None)
        if first_inner is not None:
            linears[first_inner] = replace(linears[first_inner], shared_input=True)
    gated = experts > 0 or any(linear.name.endswith((*_GATED, "gate_up_proj")) for linear in linears)
    return LayerShape(
        parameters=_size(layer),
        linears=tuple(linears),
        norms=norms,
        query_width=heads * head_size,
        key_width=key_heads * head_size,
        heads=heads,
        inner_width=_inner_width(linears, config, experts),
        gated=gated,
        experts=experts,
        parallel=parallel,
        activation=_tensors_of_activation(layer),
        fused_width=max((n.outputs for n in linears if n.name.endswith(_FUSED_QUERY_KEY_VALUE)), default=0),
        partial_rotation=_rotated_share(config) < 1,
        caps_maps=getattr(config, "attn_logit_softcapping", None) is not None,
        stacked_experts=any(p.ndim == 3 for p in layer.parameters()),
    )


def _own(config: Any, name: str) -> int:
    """A setting as it is stored, 0 without it: of layers that differ, the value that is none of theirs in particular."""
    stored = config.attribute_map.get(name, name)
    value = vars(config)[stored] if stored in vars(config) else getattr(config, name, None)
    return int(value or 0)


def _rotated_share(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("partial_rotary_factor") or 1) if isinstance(rope, dict) else 1.0


def _tensors_of_activation(layer: nn.Module) -> int:
    """How many tensors its activation function saves: transformers writes some out, operation by operation."""
    found = {type(module).__name__ for module in layer.modules()}
    return max((count for name, count in _WRITTEN_OUT.items() if name in found), default=1)


def _in_experts(layer: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "experts" for name, _ in layer.named_modules())


def _is_inner(name: str) -> bool:
    return name.startswith(("mlp", "feed_forward", "ffn")) or name.endswith(("fc1", "gate_proj"))


def _linears(layer: nn.Module) -> list[LinearShape]:
    found: list[LinearShape] = []
    for name, module in layer.named_modules():
        if ".experts." in f".{name}." or "lora_" in name:
            continue  # experts are counted by the width of one and how many a token goes through
        base = getattr(module, "base_layer", module)
        if not isinstance(base, nn.Linear | Conv1D) or name.endswith(".base_layer"):
            continue
        # A quantised weight is packed, and keeps no shape; the layer does.
        rows, columns = (
            base.weight.shape[::-1] if isinstance(base, Conv1D) else (base.out_features, base.in_features)
        )
        last, group = name.rpartition(".")[2], name.rpartition(".")[0]
        siblings = next((names for names in (_QUERY_KEY_VALUE, _GATED) if last in names), ())
        shared = any(other.name in {f"{group}.{sibling}" for sibling in siblings} for other in found)
        adapted = base is not module and hasattr(module, "lora_A")
        trained = base.weight.requires_grad
        found.append(LinearShape(name, int(columns), int(rows), shared, adapted, trained))
    return found


def _norms(layer: nn.Module, query_width: int, key_width: int, head_size: int) -> list[NormShape]:
    norms = []
    for name, module in layer.named_modules():
        if "Norm" not in type(module).__name__ or not (weights := list(module.parameters(recurse=False))):
            continue
        width = int(weights[0].numel())
        if width == head_size:  # one norm for the queries, or the keys, of every head
            width = query_width if name.rpartition(".")[2].startswith("q") else key_width
        trained = weights[0].requires_grad
        if isinstance(module, nn.LayerNorm):
            norms.append(NormShape("layer", width, trained))
        else:
            name = type(module).__name__
            exact, centres = name.startswith(_SCALES_EXACTLY), "LayerNorm" in name
            norms.append(NormShape("rms", width, trained, exact, centres))
    return norms


def _inner_width(linears: list[LinearShape], config: Any, experts: int) -> int:
    """Width inside the feed-forward network: from its matrices, or for experts from the configuration."""
    if not experts:
        outputs = [linear.outputs for linear in linears if _is_inner(linear.name)]
        gate_and_up = any(linear.name.endswith("gate_up_proj") for linear in linears)
        if outputs:
            return max(outputs) // (2 if gate_and_up else 1)
    width = next((getattr(config, name, None) for name in _INNER_WIDTH if getattr(config, name, None)), None)
    return int(width or 4 * config.hidden_size)
