"""What the fused loss (`mce_llm.lm.linear_loss`) allocates at the end of the forward pass.

Logits exist for one chunk of positions; the gradients of head and hidden states are formed there and then, that of the
head in float32 where there are several chunks. The kinds marginal and expected add d × d matrices in float64. Each line follows the code's own buffers,
and the tests hold it against the bytes that the code really allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from mce_llm.planning.shapes import ModelShape, TrainingShape
from mce_llm.planning.states import Precision

# Rows gathered at a time for the kind token, in elements: as in `token_form`; at most half as many as a chunk has logits,
# unless that is few.
_GATHERED_ELEMENTS, _LEAST_GATHERED = 2**27, 2**20
# d × d float64 matrices alive at once in value and gradient of tr(−P log Q + Q): 14 and 16 counted, of which `expected`
# has two for its second moments, and a workspace of two for the eigendecomposition.
_MATRICES = {"marginal": 16, "expected": 18}
# Positions × vocabulary float32 buffers beside the Krylov products of the full vocabulary, and the elements of the block
# in which those are brought together.
_FULL_VOCABULARY_EXTRA = 4
_ASSEMBLED_ELEMENTS = 2**26
# Elements of the table that are measured, or made float32, at a time: as in `geometry`.
_BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Allocation:
    """Bytes with their arithmetic."""

    bytes: float
    formula: str


def loss_allocations(
    model: ModelShape, training: TrainingShape, precision: Precision
) -> dict[str, Allocation]:
    """Name → what the loss allocates, all of it alive at once.

    Args:
        model: The model; V rows of the head and width d are read.
        training: N positions of a micro-batch, as if all of them were trained, and the loss settings.
        precision: Bytes under the engine.
    """
    loss, p, stream = training.loss, precision.product, precision.stream
    if loss.stock:
        return _stock(model, training, p)
    rows, width, tokens = model.vocabulary, model.hidden_size, training.tokens
    table, chunk = rows * width, min(loss.chunk, training.tokens)
    found: dict[str, Allocation] = {}

    def add(name: str, size: float, formula: str) -> None:
        if size:
            found[name] = Allocation(size, formula)

    # Of a bfloat16 head whose loss is one chunk, dW is one product; in float16 it would overflow.
    alone = stream < 4 and training.dtype == "bfloat16" and chunk >= tokens
    if model.head_trained:
        each, how = (2, "bfloat16, one product") if alone else (4, "float32")
        add("dW", each * table, f"V {rows:,} × d {width:,} × {each} B, gradient of the head in {how}")
    add(
        "dH",
        2 * stream * tokens * width,
        f"{tokens:,} tokens × d {width:,} × {stream} B × 2, hidden states and gradient",
    )
    if precision.casts or (model.head_trained and training.adapter_rank and p < 4):
        add(
            "casts",
            p * (table + tokens * width),
            f"({rows:,} + {tokens:,}) × d × {p} B, head and hidden states cast",
        )

    # After the statistics, or in turn with them: whichever is larger.
    each = 4 + (p if p < 4 else 0) + (4 if model.softcap else 0)
    if precision.casts:  # the share of dH is formed in the dtype of the products first
        logits, text = chunk * (rows * each + width * p), f"{chunk:,} positions × (V × {each} B + d × {p} B)"
    else:
        logits, text = chunk * rows * each, f"{chunk:,} positions × V × {each} B"
    if model.head_trained and p < 4 and not alone:
        logits += p * table
        text += f" + V × d × {p} B, one chunk's share of dW"
    if model.softcap and chunk < tokens and 12 * chunk * rows > logits:
        # The capped logits of a chunk live until those of the next are there.
        logits, text = 12 * chunk * rows, f"{chunk:,} positions × V × 4 B × 3"
    if loss.loss == "emo":
        logits += 4 * chunk * rows
        text += f" + {chunk:,} × V × 4 B, costs"
    kernel, kernel_text = _kernel(model, training, chunk, stream)
    if kernel > logits:
        logits, text = kernel, kernel_text
    add("logits of a chunk", logits, text)
    return found


def _stock(model: ModelShape, training: TrainingShape, p: int) -> dict[str, Allocation]:
    """What transformers' own cross-entropy allocates; the fullest moment is where its backward pass begins.

    Logarithms of probabilities, their gradient and that of the logits, V a position in float32 each. Where the logits are
    in 16 bits they, their float32 copy and the logarithms make less.
    """
    rows, tokens = model.vocabulary, training.tokens
    size = 12 * tokens * rows
    found = {
        "logits": Allocation(
            size, f"{tokens:,} tokens × V {rows:,} × 4 B × 3, logits in full and their gradient"
        )
    }
    if model.softcap:
        found["capped"] = Allocation(p * tokens * rows, f"{tokens:,} tokens × V × {p} B, before the cap")
    return found


def _kernel(model: ModelShape, training: TrainingShape, chunk: int, table: int) -> tuple[int, str]:
    """(bytes, arithmetic) at the fullest moment of what stands beside cross-entropy, the chunk's logits included.

    `table` is the bytes of an element of the head.
    """
    loss = training.loss
    rows, width, tokens = model.vocabulary, model.hidden_size, training.tokens
    buffer = 4 * chunk * rows
    if loss.loss == "emo":
        lengths = min(rows * width, _BLOCK_ELEMENTS)  # of rows, measured before the costs and dW are there
        upcast = lengths + lengths * chunk // width if table < 4 else 0  # and their products
        most = max(min(chunk * rows, _ASSEMBLED_ELEMENTS), upcast)
        if not model.head_trained and 4 * lengths > buffer + 4 * most:
            return buffer + 4 * lengths, f"{chunk:,} positions × V × 4 B + {lengths:,} × 4 B"
        return 2 * buffer + 4 * most, f"{chunk:,} positions × V × 4 B × 2 + {most:,} × 4 B"
    if loss.weight == 0:
        return 0, ""
    if loss.kind == "token":
        if loss.support is None or loss.support >= rows:
            count, block = (
                loss.order + _FULL_VOCABULARY_EXTRA,
                min(loss.order * chunk * rows, _ASSEMBLED_ELEMENTS),
            )
            text = (
                f"{chunk:,} positions × V × 4 B × ({loss.order} + {_FULL_VOCABULARY_EXTRA}) + {block:,} × 4 B"
            )
            return count * buffer + 4 * block, text
        frame = loss.support + 1
        row = 4 + (table if table < 4 else 0)  # a 16-bit row is gathered as it is, then made float32
        gathered = min(chunk * frame * width, _GATHERED_ELEMENTS, max(chunk * rows // 2, _LEAST_GATHERED))
        size = buffer + gathered * row + 4 * chunk * frame * (frame + 2 * loss.order)
        return size, (
            f"{chunk:,} positions × V × 4 B + {gathered:,} elements of gathered rows × {row} B + "
            f"{chunk:,} × {frame} × ({frame} + 2 × {loss.order}) × 4 B"
        )
    count = _MATRICES[loss.kind]
    size, text = buffer + count * 8 * width**2, f"{chunk:,} × V × 4 B + {count} × d² × 8 B"
    if loss.kind == "expected":
        size += 12 * tokens * width + buffer
        text += f" + {tokens:,} × d × 12 B + {chunk:,} × V × 4 B"
    return size, text
