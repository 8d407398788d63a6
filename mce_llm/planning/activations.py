"""What the layers save for the backward pass, tensor by tensor.

Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models, arXiv 2205.05198, §4.1) count
s·b·h·(34 + 5·a·s/h) bytes for a GPT layer with 16-bit products, softmax maps and dropout masks. The same count is made here
for the layers as transformers writes them: no maps with sdpa and flash attention (their backward pass recomputes them),
gated networks, grouped keys, normalisations in float32, and separate 16-bit copies for every product under autocast. With
checkpointing what is kept is the input of each layer (ibid., §5), and one layer at a time is saved in full.
"""

from __future__ import annotations

from dataclasses import dataclass

from mce_llm.planning.shapes import LayerShape, LinearShape, NormShape, TrainingShape
from mce_llm.planning.states import Precision

# The matrices at the ends of attention and of the feed-forward network.
_LAST = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "fc2", "dense_4h_to_h", "w2")


@dataclass(frozen=True)
class LayerActivations:
    """Bytes a token that one layer saves, by what they are.

    Attributes:
        norms: Inputs and outputs of the normalisations.
        inputs: Inputs of the matrices that are not among the others.
        attention: Queries, keys, values and the output; with eager attention the maps too.
        network: Inside the feed-forward network.
        adapters: What adapters save besides.
    """

    norms: float
    inputs: float
    attention: float
    network: float
    adapters: float

    @property
    def total(self) -> float:
        """Bytes a token."""
        return self.norms + self.inputs + self.attention + self.network + self.adapters

    @property
    def text(self) -> str:
        """The sum, spelt out."""
        parts = vars(self).items()
        return " + ".join(f"{name} {value:,.0f}" for name, value in parts if value)


def layer_activations(layer: LayerShape, training: TrainingShape, precision: Precision) -> LayerActivations:
    """What one layer saves for each token of the micro-batch."""
    p, stream = precision.product, precision.stream
    norms, seen_parallel = 0.0, False
    for norm in layer.norms:
        shared = layer.parallel and seen_parallel and norm.kind == "layer"
        norms += _norm(norm, stream, shared)
        seen_parallel = seen_parallel or norm.kind == "layer"

    # A product saves its input where its weight is trained. Under autocast each makes a 16-bit copy of its own;
    # otherwise those with the same input share it. The inputs of the last matrices are counted below.
    inputs = float(
        sum(
            p * linear.inputs
            for linear in layer.linears
            if (linear.trained or _keeps_input(linear, training))
            and not _is_last(linear.name)
            and (precision.casts or not linear.shared_input)
        )
    )
    if layer.experts:
        inputs += (
            stream * layer.norms[0].width * 2 * layer.experts
        )  # rows sent to each expert, and what comes back

    return LayerActivations(
        norms=norms,
        inputs=inputs,
        attention=_attention(layer, training, p),
        network=_network(layer, training, inner_bytes(layer, precision)),
        adapters=_adapters(layer, training, p),
    )


def _attention(layer: LayerShape, training: TrainingShape, p: int) -> float:
    """Queries, keys, values, output and its normaliser; with eager attention the maps."""
    total = p * 2 * (layer.query_width + layer.key_width) + 4 * layer.heads
    if layer.fused_width:
        total += p * (layer.fused_width - layer.key_width)  # the values are a part of one tensor, kept whole
    if layer.partial_rotation:
        total += p * layer.query_width
    repeated = training.attention == "eager" or (training.attention == "sdpa" and training.padded)
    if repeated:  # keys and values once for each query head
        total += p * 2 * (layer.query_width - layer.key_width)
    if training.attention == "eager":
        # softmax in float32, its copy in the dtype of the products, and the cap's result.
        maps = 4 + (p if p < 4 else 0) + (p if layer.caps_maps else 0)
        total += maps * layer.heads * training.length
    return float(total)


def inner_bytes(layer: LayerShape, precision: Precision) -> int:
    """Bytes of an element inside the feed-forward network; stacked experts compute in the dtype of their weights."""
    return precision.stream if layer.stacked_experts and precision.casts else precision.product


def eight_bit_inputs(layer: LayerShape, precision: Precision) -> float:
    """Bytes a token that the 8-bit products of a layer keep until the backward pass where checkpointing is not reentrant.

    bitsandbytes keeps each input outside of what autograd saves, where checkpointing does not reach it.
    """
    kept = [n.inputs for n in layer.linears if not n.trained and not n.shared_input]
    return float(precision.product * sum(kept))


def _keeps_input(linear: LinearShape, training: TrainingShape) -> bool:
    """Whether a frozen matrix keeps its input: in 8 bits it does, unless an adapter on it has it already."""
    return training.quantization == "8bit" and not linear.trained and not linear.adapted


def _network(layer: LayerShape, training: TrainingShape, p: int) -> float:
    """What the activation saves, and the input of the last matrix; gated, both branches of the product besides."""
    tensors = layer.activation + (3 if layer.gated else 1)
    last = [
        linear for linear in layer.linears if _is_last(linear.name) and linear.inputs == layer.inner_width
    ]
    if last and not any(linear.trained or _keeps_input(linear, training) for linear in last):
        tensors -= 1  # a frozen matrix does not save its input
    return float(p * layer.inner_width * tensors * max(layer.experts, 1))


def _norm(norm: NormShape, stream: int, input_is_saved: bool) -> float:
    if norm.kind == "layer":
        return 0.0 if input_is_saved else float(stream * norm.width)
    # In float32: the input, and what the scale multiplies, where it is trained.
    scaled = 4 if norm.scales_exactly else stream
    return float(norm.width * (4 + (4 if norm.centres else 0) + (scaled if norm.trained else 0)))


def _is_last(name: str) -> bool:
    """Whether a matrix is the one at the end of attention or of the feed-forward network."""
    return name.endswith(_LAST)


def _adapters(layer: LayerShape, training: TrainingShape, p: int) -> float:
    """Each adapter has a copy of its input, of its inner product, and with dropout the mask."""
    total = 0.0
    for linear in layer.linears:
        if linear.adapted:
            total += linear.inputs * (p + (1 if training.adapter_dropout else 0)) + p * training.adapter_rank
    return total
