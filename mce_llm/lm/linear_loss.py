"""Cross-entropy and matrix cross-entropy straight from hidden states and the head's weight.

Value and gradient are formed together in the forward pass, chunk by chunk, so that logits exist for one chunk at a
time; the backward pass only scales what is there. Positions whose label is ignored never reach the head.
Legend: T positions, N unmasked positions, C positions of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from mce_llm.lm.batch_kernel import BatchStatistics, batch_statistics
from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.linear_head import HeadGradients, LinearHead
from mce_llm.lm.loss_inputs import check_inputs, check_labels
from mce_llm.lm.token_kernel import into_logit_gradient, is_full_vocabulary, token_chunk
from mce_llm.matrix.precision import autocast_off

# Elements of one chunk of logits. Large enough to keep a matrix product busy, small beside a V×d table.
_CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
_FULL_VOCABULARY_BUFFERS = 3.4  # how many times that many elements its buffers may have together
_TILE = 8


@dataclass
class LossOutput:
    """What `linear_matrix_cross_entropy` returns; every part is a scalar in nats.

    Attributes:
        loss: `cross_entropy + weight · matrix_cross_entropy`, attached to the graph.
        cross_entropy: L_CE, detached.
        num_tokens: How many labels were not ignored.
        details: With `details=True`: `tail_mass` (mean δ) and `quadrature_gap` (mean value at order m minus that at
            order m−1) of the `token` kind. Empty otherwise.
    """

    loss: Tensor
    cross_entropy: Tensor
    num_tokens: int
    details: dict[str, Tensor] = field(default_factory=dict)
    _matrix: Tensor | None = None
    _measure: Callable[[], Tensor] | None = None

    @cached_property
    def matrix_cross_entropy(self) -> Tensor:
        """MCE, detached. With weight 0 the loss does not need it, and it is computed when first asked for."""
        if self._matrix is None:
            assert self._measure is not None
            self._matrix, self._measure = self._measure(), None
        return self._matrix


# Its shapes depend on the labels and its gradients are formed in the forward pass: a compiled model breaks its graph
# here, runs this part as it is, and goes on.
@torch.compiler.disable
def linear_matrix_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    config: MatrixLossConfig,
    bias: Tensor | None = None,
    embeddings: Tensor | None = None,
    num_items: Tensor | int | float | None = None,
    *,
    token_mask: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    process_group: ProcessGroup | None = None,
    details: bool = False,
    chunk_size: int | None = None,
) -> LossOutput:
    """L = L_CE + λ·MCE of logits = softcap(scale · (H Wᵀ + b)), without ever holding all the logits.

    Args:
        hidden: (..., d) hidden states, any floating dtype; under autocast products run in its dtype.
        weight: (V, d) weight of the head.
        labels: (...) int64 targets, already shifted, each in [0, V) or `ignore_index`.
        config: Kind, λ, ε and the rest. `weight=0` computes cross-entropy alone.
        bias: (V,) bias of the head.
        embeddings: (V, d′) rows of the token geometry, detached; by default the head's weight.
            Required with `config.embeddings == "input"`.
        num_items: Divide the sums by this number instead of the mean over unmasked labels (gradient accumulation,
            data parallelism: the count over the window and all ranks). The batch kinds are then weighted by their
            share of tokens, n_local · MCE / num_items.
        token_mask: (V,) bool, False for vocabulary rows that are no tokens; they stay out of the geometry, and no label
            may be one of them.
        logit_scale: Factor on the logits.
        softcap: c in c·tanh(z/c), applied after the scale.
        ignore_index: Label that is skipped.
        process_group: Ranks whose statistics the batch kinds share; every rank has to call. None: this one alone.
        details: Report `tail_mass` and `quadrature_gap` (kind `token`).
        chunk_size: Positions a chunk; chosen from V by default.

    Under `torch.compile` the graph breaks here (so not with `fullgraph=True`), and autocast, activation checkpointing
    and `retain_graph=True` work as with any other loss.

    Returns:
        The loss and its parts. Where every label is ignored all are zero, and the loss is still
        attached to the graph.

    Raises:
        LossInputError: Shapes, dtypes or label values that do not fit, a label that the mask leaves out included.
        GeometryError: An embedding table without usable directions, or with non-finite rows.
    """
    check_inputs(hidden, weight, labels, bias, embeddings, config, softcap, chunk_size)
    hidden_TD, labels_T = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    kept_N = (labels_T != ignore_index).nonzero().squeeze(-1)
    hidden_ND, labels_N = hidden_TD, labels_T
    if kept_N.numel() < labels_T.numel():
        hidden_ND, labels_N = hidden_TD.index_select(0, kept_N), labels_T.index_select(0, kept_N)
    if token_mask is not None:
        token_mask = token_mask.to(hidden.device)
    # With weight 0 nothing is left out of the loss; the geometry is there for what is measured on demand.
    check_labels(labels_N, weight.shape[0], token_mask if config.weight else None, ignore_index)
    # Nothing is divided where there is no label: a count over all ranks may be 0 then, too.
    denominator = num_items if num_items is not None and labels_N.numel() else labels_N.numel() or 1
    job = _Job(
        config=config,
        table_VD=None if config.weight == 0 else (weight if embeddings is None else embeddings).detach(),
        token_mask=token_mask,
        labels_N=labels_N,
        denominator=denominator,
        logit_scale=logit_scale,
        softcap=softcap,
        process_group=process_group,
        details=details,
        chunk_size=chunk_size or default_chunk_size(weight, config, labels_N.numel()),
        needs_gradient=torch.is_grad_enabled(),
    )
    loss, cross_entropy, matrix = _FusedLoss.apply(hidden_ND, weight, bias, job)
    output = LossOutput(loss, cross_entropy, labels_N.numel(), dict(job.report))
    if config.weight != 0:
        output._matrix = matrix
        return output

    # Weight 0: measured on demand with the same inputs, without gradients and without touching the loss.
    measured = replace(
        job,
        config=replace(config, weight=1.0),
        table_VD=(weight if embeddings is None else embeddings).detach(),
        needs_gradient=False,
    )
    frozen = [None if t is None else t.detach() for t in (hidden_ND, weight, bias)]

    def measure() -> Tensor:
        check_labels(labels_N, weight.shape[0], token_mask, ignore_index)
        return _FusedLoss.apply(*frozen, measured)[2]

    output._measure = measure
    return output


@dataclass
class _Job:
    """Everything of one call that is not a differentiable tensor."""

    config: MatrixLossConfig
    table_VD: Tensor | None
    token_mask: Tensor | None
    labels_N: Tensor
    denominator: Tensor | int | float
    logit_scale: float
    softcap: float | None
    process_group: ProcessGroup | None
    details: bool
    chunk_size: int
    needs_gradient: bool
    report: dict[str, Tensor] = field(default_factory=dict)


class _FusedLoss(torch.autograd.Function):
    """Forward forms the gradients; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job
    ) -> tuple[Tensor, Tensor, Tensor]:
        device_type = hidden_ND.device.type
        product_dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(device_type):
            product_dtype = torch.get_autocast_dtype(device_type)
        with autocast_off(device_type):
            head = LinearHead(
                weight_VD.to(product_dtype),
                None if bias_V is None else bias_V.to(product_dtype),
                job.logit_scale,
                job.softcap,
            )
            hidden, weight, bias = (
                job.needs_gradient and t is not None and t.requires_grad
                for t in (hidden_ND, weight_VD, bias_V)
            )
            gradients = HeadGradients(hidden_ND, weight_VD, (hidden, weight, bias))
            parts = _forward(hidden_ND.to(product_dtype), head, job, gradients)
        # Not saved_tensors: the backward pass scales them in place where nobody needs them again.
        ctx.gradients = gradients.collected
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_ND, weight_VD, bias_V)]
        ctx.denominator = job.denominator
        ctx.mark_non_differentiable(parts[1], parts[2])
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward through linear_matrix_cross_entropy a second time: its gradients were given away by the "
                "first; pass retain_graph=True to every backward but the last"
            )
        gradients = ctx.gradients
        keep_graph = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep_graph:
            ctx.gradients = None
        # The sums are divided here, together with a loss scale: in float16 a gradient over a large
        # batch would vanish if it were divided first and scaled afterwards.
        factor = grad_loss / ctx.denominator
        scaled = [
            None
            if gradient is None
            else (gradient * factor if keep_graph else gradient.mul_(factor)).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None)


def _forward(
    hidden_ND: Tensor, head: LinearHead, job: _Job, gradients: HeadGradients
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, CE, MCE) of all the chunks, with `gradients` filled on the way."""
    config, wanted = job.config, bool(gradients)
    buffer_CV = head.buffer(min(job.chunk_size, len(hidden_ND)))
    geometry = None
    if job.table_VD is not None:
        geometry = TokenGeometry.from_table(job.table_VD, config, job.token_mask)
    batch: BatchStatistics | None = None
    matrix_value = None
    if geometry is not None and config.kind != "token":
        batch = batch_statistics(geometry, config)
        for _, hidden_CD, labels_C in _chunks(hidden_ND, job):
            q_CV = head.logits(hidden_CD, buffer_CV)
            _softmax_(q_CV, labels_C)
            batch.add(q_CV, labels_C)
        matrix_value = batch.finish(job.process_group)

    exact = buffer_CV.dtype
    sums_2 = torch.zeros(2, dtype=exact, device=hidden_ND.device)  # Σ CE, Σ MCE
    report_2 = torch.zeros(2, dtype=exact, device=hidden_ND.device)  # Σ δ, Σ gap
    for start, hidden_CD, labels_C in _chunks(hidden_ND, job):
        q_CV = head.logits(hidden_CD, buffer_CV)
        capped_CV = q_CV.clone() if head.softcap is not None and wanted else None
        sums_2[0] += _softmax_(q_CV, labels_C).sum()
        if geometry is not None and batch is None:
            chunk = token_chunk(q_CV, labels_C, geometry, config, gradient=wanted, gap=job.details)
            sums_2[1] += chunk.value_C.sum()
            if chunk.gap_C is not None:
                report_2 += torch.stack([chunk.tail_mass_C.sum(), chunk.gap_C.sum()])
        elif batch is not None and wanted:
            into_logit_gradient(q_CV, batch.token_gradient(q_CV, start), config.weight)
        if wanted:
            q_CV.scatter_add_(-1, labels_C.unsqueeze(-1), q_CV.new_full((len(labels_C), 1), -1.0))
            gradients.add(start, hidden_CD, head.through_cap(q_CV, capped_CV), head)

    count = job.labels_N.numel()
    if matrix_value is not None:
        # One value for the micro-batch; this process answers for its share of the tokens.
        sums_2[1] = matrix_value * count
    if job.details and config.kind == "token" and geometry is not None:
        means = report_2 / max(count, 1)
        job.report.update(tail_mass=means[0], quadrature_gap=means[1])
    cross_entropy, matrix = sums_2 / job.denominator
    return cross_entropy + config.weight * matrix, cross_entropy, matrix


def _softmax_(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Turn logits into probabilities in place, and return the cross-entropy of each row, (C,)."""
    # By hand, since softmax and logsumexp would each hold another chunk.
    target_C1 = logits_CV.gather(-1, labels_C.unsqueeze(-1))
    largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
    norm_C1 = logits_CV.sub_(largest_C1).exp_().sum(dim=-1, keepdim=True)
    logits_CV.div_(norm_C1)
    return (norm_C1.log() + (largest_C1 - target_C1)).squeeze(-1)


def _chunks(hidden_ND: Tensor, job: _Job) -> Iterator[tuple[int, Tensor, Tensor]]:
    for start in range(0, len(hidden_ND), job.chunk_size):
        stop = start + job.chunk_size
        yield start, hidden_ND[start:stop], job.labels_N[start:stop]


def default_chunk_size(weight_VD: Tensor, config: MatrixLossConfig, positions: int) -> int:
    """Positions a chunk: as many as the buffers may have, spread evenly over the chunks."""
    elements = elements_on(weight_VD.device, _CHUNK_ELEMENTS)
    vocabulary = max(weight_VD.shape[0], 1)
    if config.weight != 0 and config.kind == "token" and is_full_vocabulary(config, vocabulary):
        # Beside the probabilities there are weights and the products with each Krylov vector.
        elements = int(_FULL_VOCABULARY_BUFFERS * elements) // (config.order + 2)
    elif config.weight != 0 and config.kind == "expected":
        elements //= 2  # the gradient in q is a chunk of its own
    most = max(1, elements // vocabulary)
    chunks = max(1, -(-positions // most))
    # Whole tiles: a product over 105 rows took as long as one over 120.
    return max(1, -(-positions // (chunks * _TILE))) * _TILE if most >= _TILE else most
