"""What the memory arithmetic needs to know of a model and of a run: sizes alone, no tensors.

`inspection` reads a `ModelShape` off a model; the arithmetic in `activations`, `loss`, `states` and `engines` sees
nothing but these plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mce_llm.errors import MceLlmError

GIB = 2**30
"""Bytes of a GiB."""

Role = Literal["embedding", "head", "linear", "norm", "adapter", "other"]
Attention = Literal["sdpa", "flash", "eager"]


class PlanningError(MceLlmError, ValueError):
    """Memory cannot be worked out from what was given; the message says what is missing or unknown."""


class UnplannedError(PlanningError):
    """The arithmetic does not cover this kind of model, which may train all the same."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one shape that do the same job.

    Attributes:
        role: embedding, head (the output head, or the one table of tied embeddings), linear (a matrix inside the
            layers), norm, adapter, or other (biases, experts, positions).
        shape: Of each of them.
        count: How many there are.
        trained: Whether they get gradients.
    """

    role: Role
    shape: tuple[int, ...]
    count: int = 1
    trained: bool = True

    @property
    def size(self) -> int:
        """Elements of one of them."""
        return math.prod(self.shape)

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        return self.size * self.count


@dataclass(frozen=True)
class LinearShape:
    """A matrix of a layer as activations see it.

    Attributes:
        name: Its name in the layer, such as `self_attn.q_proj`.
        inputs: Width of its input.
        outputs: Width of its output.
        shared_input: Another matrix before it in the layer reads the same input (k_proj after q_proj).
        adapted: It has an adapter.
        trained: Its own weight is trained.
    """

    name: str
    inputs: int
    outputs: int
    shared_input: bool = False
    adapted: bool = False
    trained: bool = True


@dataclass(frozen=True)
class NormShape:
    """A normalisation of a layer.

    Attributes:
        kind: `layer` is one operation; `rms` is written out, in float32.
        width: Elements of a token that it normalises.
        trained: Whether its scale is trained.
        scales_exactly: An `rms` one that multiplies by its scale in float32 too (Gemma, Cohere).
        centres: An `rms` one that subtracts the mean first (Cohere's layer normalisation, written out).
    """

    kind: Literal["rms", "layer"]
    width: int
    trained: bool = True
    scales_exactly: bool = False
    centres: bool = False


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; of several kinds of layers the largest.

    Attributes:
        parameters: Elements in it.
        linears: Its matrices, in the order in which they run.
        norms: Its normalisations; `width` is the elements that one normalises for a token.
        query_width: heads × head size.
        key_width: key-value heads × head size.
        heads: Query heads.
        inner_width: Width inside the feed-forward network, for one expert.
        gated: Whether it multiplies an activated by a linear branch (SwiGLU and kin).
        experts: Experts that a token goes through; 0 for a dense network.
        stacked_experts: Their matrices are one tensor of three dimensions, whose products autocast does not cast and
            which bitsandbytes does not quantise.
        parallel: Attention and feed-forward network read the same residual (GPT-NeoX, Phi).
        activation: Tensors of the inner width that the activation function saves: 1 for a single operation, more
            where it is written out.
        fused_width: Width of a fused product of queries, keys and values; 0 where there are three.
        partial_rotation: Positions rotate a part of each head, which copies queries and keys.
        caps_maps: Attention scores are capped (Gemma 2).
    """

    parameters: int
    linears: tuple[LinearShape, ...]
    norms: tuple[NormShape, ...]
    query_width: int
    key_width: int
    heads: int
    inner_width: int
    gated: bool
    experts: int = 0
    parallel: bool = False
    activation: int = 1
    fused_width: int = 0
    partial_rotation: bool = False
    caps_maps: bool = False
    stacked_experts: bool = False


@dataclass(frozen=True)
class ModelShape:
    """A causal language model.

    Attributes:
        name: For titles.
        model_type: That of its configuration.
        hidden_size: Width d of the residual stream.
        vocabulary: Rows V of the output head.
        num_layers: L.
        layer: The decoder layer.
        groups: All parameters, each counted once (tied embeddings too).
        head_trained: Whether the head gets gradients.
        tied: Whether embeddings and head are one table.
        softcap: Whether logits are capped.
        stored_dtype: Dtype in the configuration, what `dtype: auto` loads.
        longest: Positions the model knows; None where it has no limit.
    """

    name: str
    model_type: str
    hidden_size: int
    vocabulary: int
    num_layers: int
    layer: LayerShape
    groups: tuple[ParameterGroup, ...]
    head_trained: bool
    tied: bool
    softcap: bool = False
    stored_dtype: str = "float32"
    longest: int | None = None

    def elements(self, chosen: Callable[[ParameterGroup], bool] = lambda group: True) -> int:
        """Parameters of the chosen groups."""
        return sum(group.elements for group in self.groups if chosen(group))

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.elements()

    @property
    def trained(self) -> int:
        """Those that get gradients."""
        return self.elements(lambda group: group.trained)

    @property
    def adapted(self) -> bool:
        """Whether it has adapters."""
        return any(group.role == "adapter" for group in self.groups)

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest frozen or trained matrix inside the layers."""
        return max((group.size for group in self.groups if group.role == "linear"), default=0)


@dataclass(frozen=True)
class LossShape:
    """The loss over the logits, see `MatrixLossConfig`.

    Attributes:
        kind: token, marginal or expected.
        weight: λ; with 0 the matrix part is not computed.
        support: k of the kind token; None keeps the whole vocabulary.
        order: Krylov order of the kind token.
        chunk: Positions whose logits exist at a time.
        stock: transformers' own cross-entropy in its place: logits of all positions in full.
        loss: What is trained: `ce`, `label_smoothing`, `emo` or `mce`.
    """

    kind: str
    weight: float
    support: int | None
    order: int
    chunk: int
    stock: bool = False
    loss: str = "mce"


@dataclass(frozen=True)
class DeepSpeedSizes:
    """Sizes of DeepSpeed's buffers in elements, as in `zero_optimization`; the defaults are its own.

    Attributes:
        reduce_bucket: `reduce_bucket_size`.
        prefetch_bucket: `stage3_prefetch_bucket_size`.
        live: `stage3_max_live_parameters`.
        sub_group: `sub_group_size`.
    """

    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    live: int = 1_000_000_000
    sub_group: int = 1_000_000_000


@dataclass(frozen=True)
class TrainingShape:
    """One optimizer step, as one process sees it.

    Attributes:
        micro_batch: Rows of a forward pass.
        length: Tokens of a row.
        dtype: Dtype of the weights as they are loaded: float32, bfloat16 or float16.
        mixed: Dtype of the products under mixed precision; None for that of the weights.
        optim: A name of transformers' `OptimizerNames`.
        momentum: Momentum of SGD.
        checkpointing: Whether activations are recomputed in the backward pass.
        attention: sdpa, flash or eager.
        loss: The loss.
        quantization: 4bit or 8bit frozen weights; None.
        adapter_rank: r of the adapters; 0 without.
        adapter_dropout: Whether there is dropout in front of them.
        padded: Rows are padded, so attention gets a mask; packed rows have their own positions instead.
        accumulation: Micro-batches of the step.
        reduces_each_batch: FSDP2 reduces gradients after each of them, not after the last alone.
        reentrant: Checkpointing is reentrant, which only makes a difference to 8-bit weights.
        checkpointed_every: Every so many layers one is recomputed; the others keep their activations.
        deepspeed: Sizes of DeepSpeed's buffers.
    """

    micro_batch: int
    length: int
    dtype: str
    mixed: str | None
    optim: str
    checkpointing: bool
    attention: Attention
    loss: LossShape
    momentum: float = 0.0
    quantization: str | None = None
    adapter_rank: int = 0
    adapter_dropout: bool = False
    padded: bool = True
    accumulation: int = 1
    reduces_each_batch: bool = True
    reentrant: bool = True
    checkpointed_every: int = 1
    deepspeed: DeepSpeedSizes = DeepSpeedSizes()

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.micro_batch * self.length


_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def bytes_of(dtype: str) -> int:
    """Bytes of an element.

    Raises:
        PlanningError: A dtype that no model here is trained in.
    """
    if dtype not in _BYTES:
        raise PlanningError(f"no arithmetic for weights of dtype {dtype!r}; it knows {', '.join(_BYTES)}")
    return _BYTES[dtype]


def with_lora(model: ModelShape, rank: int) -> ModelShape:
    """The model with all its weights frozen and LoRA of this rank on every matrix inside the layers.

    Args:
        model: A model that is trained whole.
        rank: r; each matrix gains r × (inputs + outputs) trained parameters.

    Returns:
        The shape, as that of a `peft` model with `target_modules="all-linear"`.
    """
    frozen = [replace(group, trained=False) for group in model.groups if group.role != "adapter"]
    adapters = [
        ParameterGroup("adapter", shape, group.count)
        for group in frozen
        if group.role == "linear"
        for shape in ((rank, group.shape[1]), (group.shape[0], rank))
    ]
    linears = tuple(replace(linear, adapted=True, trained=False) for linear in model.layer.linears)
    norms = tuple(replace(norm, trained=False) for norm in model.layer.norms)
    layer = replace(model.layer, linears=linears, norms=norms)
    return replace(model, layer=layer, groups=merged([*frozen, *adapters]), head_trained=False)


def merged(groups: Iterable[ParameterGroup]) -> tuple[ParameterGroup, ...]:
    """Groups that differ in their count alone as one."""
    counts: dict[ParameterGroup, int] = {}
    for group in groups:
        key = replace(group, count=1)
        counts[key] = counts.get(key, 0) + group.count
    return tuple(replace(group, count=count) for group, count in counts.items())
