"""Cross-entropy, and what stands beside it in a loss, straight from hidden states and the head's weight.

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
from torch.distributed import ProcessGroup

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.emo_term import emo_directions, emo_term
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.geometry_cache import GeometryCache
from mce_llm.lm.kernel_loss import KernelLoss, kernel_loss
from mce_llm.lm.linear_head import HeadGradients, LinearHead
from mce_llm.lm.loss_chunks import default_chunk_size
from mce_llm.lm.loss_inputs import check_inputs, checked_positions
from mce_llm.lm.loss_terms import Chunk, LossTerm
from mce_llm.lm.matrix_terms import MATRIX, matrix_term
from mce_llm.lm.smoothing_term import smoothing_term
from mce_llm.lm.whole_weights import whole
from mce_llm.matrix.precision import autocast_off

# The name of its sum, and the settings that leave it alone in the loss.
CROSS_ENTROPY = "ce_loss"
_ALONE: dict[str, Any] = {"loss": "ce", "weight": None} | dict.fromkeys(
    ("smoothing", "emo_weight", "emo_max_ratio", "emo_center")
)


@dataclass
class LossOutput:
    """What `linear_matrix_cross_entropy` returns; every part is a scalar in nats.

    Attributes:
        loss: What `config.loss` says, attached to the graph; by default `cross_entropy + weight · matrix_cross_entropy`.
        cross_entropy: L_CE, detached.
        num_tokens: How many labels were not ignored.
        details: With `details=True`: `tail_mass` (mean δ) and `quadrature_gap` (mean value at order m minus that at
            order m−1) of the `token` kind. Empty otherwise.
        terms: What other losses have beside L_CE, detached: `smoothing_loss` (S in (1−s)·L_CE + s·S) or `emo_loss`
            (r·D in (1−w)·L_CE + w·r·D) and `emo_distance` (D, which has no unit). Empty otherwise.
    """

    loss: Tensor
    cross_entropy: Tensor
    num_tokens: int
    details: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)
    _matrix: Tensor | None = None
    _measure: Callable[[], Tensor] | None = None

    @cached_property
    def matrix_cross_entropy(self) -> Tensor:
        """MCE, detached. Where the loss does not need it (weight 0), it is computed when first asked for."""
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
    measure: bool = False,
    chunk_size: int | None = None,
    geometries: GeometryCache | None = None,
) -> LossOutput:
    """L = L_CE + λ·MCE of logits = softcap(scale · (H Wᵀ + b)), without ever holding all the logits.

    Or another loss, which `config.loss` names: see `MatrixLossConfig`.

    Args:
        hidden: (..., d) hidden states, any floating dtype; under autocast products run in its dtype.
        weight: (V, d) weight of the head.
        labels: (...) int64 targets, already shifted, each in [0, V) or `ignore_index`.
        config: Loss, kind, λ, ε and the rest. `weight=0` computes cross-entropy alone.
        bias: (V,) bias of the head.
        embeddings: (V, d′) rows of the token geometry, detached; by default the head's weight.
            Required with `config.embeddings == "input"`.
        num_items: Divide the sums by this number instead of the mean over unmasked labels (gradient accumulation,
            data parallelism: the count over the window and all ranks). The batch kinds are then weighted by their
            share of tokens, n_local · MCE / num_items.
        token_mask: (V,) bool, False for vocabulary rows that are no tokens; they stay out of the geometry and of the
            uniform distribution of label smoothing, and where the loss has a geometry, no label may be one of them.
        logit_scale: Factor on the logits.
        softcap: c in c·tanh(z/c), applied after the scale.
        ignore_index: Label that is skipped.
        process_group: Ranks whose statistics the batch kinds share; every rank has to call. None: this one alone.
        details: Report `tail_mass` and `quadrature_gap` (kind `token`), where MCE is computed.
        measure: Compute `matrix_cross_entropy` on the way where the loss has no part of it, and not when it is asked for.
        chunk_size: Positions a chunk; by default as many as fit the device, see `default_chunk_size`.
        geometries: Remembers the token geometry over calls between which the weights stand still.

    Under `torch.compile` the graph breaks here (so not with `fullgraph=True`), and autocast, activation checkpointing
    and `retain_graph=True` work as with any other loss. It can be differentiated once: backward with `create_graph=True`
    is a RuntimeError.

    Returns:
        The loss and its parts. Where every label is ignored all are zero, and the loss is still
        attached to the graph.

    Raises:
        LossInputError: Shapes, dtypes or label values that do not fit, a label that the mask leaves out included.
        ShardedWeightError: A tensor of which each rank has a part (tensor parallelism).
        KernelChoiceError: The environment asks for kernels that are not there; see `MCE_LLM_KERNELS`.
        GeometryError: An embedding table without usable directions, or with non-finite rows.
    """
    hidden, weight = whole(hidden, "hidden"), whole(weight, "weight")
    bias = None if bias is None else whole(bias, "bias")
    embeddings = None if embeddings is None else whole(embeddings, "embeddings")
    check_inputs(hidden, weight, labels, bias, embeddings, config, softcap, chunk_size)
    hidden_TD, labels_T = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if token_mask is not None:
        token_mask = token_mask.to(hidden.device)
    matrix = bool(config.weight)
    # Where the loss has no geometry, a label may be any row; the geometry is there for what is measured on demand.
    has_geometry = matrix or measure or config.loss == "emo"
    kept_N = checked_positions(labels_T, weight.shape[0], token_mask if has_geometry else None, ignore_index)
    hidden_ND, labels_N = hidden_TD, labels_T
    if kept_N is not None:
        hidden_ND, labels_N = hidden_TD.index_select(0, kept_N), labels_T.index_select(0, kept_N)
    # Nothing is divided where there is no label: a count over all ranks may be 0 then, too.
    denominator = num_items if num_items is not None and labels_N.numel() else labels_N.numel() or 1
    job = _Job(
        config=config,
        table_VD=(weight if embeddings is None else embeddings).detach(),
        token_mask=token_mask,
        labels_N=labels_N,
        denominator=denominator,
        logit_scale=logit_scale,
        softcap=softcap,
        process_group=process_group,
        details=details,
        chunk_size=chunk_size
        or default_chunk_size(weight, config, labels_N.numel(), matrix=matrix or measure),
        needs_gradient=torch.is_grad_enabled(),
        measured=measure and not matrix,
        geometries=geometries,
    )
    loss = _FusedLoss.apply(hidden_ND, weight, bias, job)
    terms = {name: value for name, value in job.parts.items() if name not in (CROSS_ENTROPY, MATRIX)}
    output = LossOutput(loss, job.parts[CROSS_ENTROPY], labels_N.numel(), dict(job.report), terms)
    if matrix or measure:
        output._matrix = job.parts[MATRIX]
        return output

    # Measured on demand with the same inputs, without gradients and without touching the loss.
    later = replace(
        job,
        config=replace(config, **_ALONE),
        chunk_size=chunk_size or default_chunk_size(weight, config, labels_N.numel(), matrix=True),
        needs_gradient=False,
        measured=True,
        details=False,
        geometries=None,  # weights may have changed until it is asked for
        parts={},
        report={},
    )
    frozen = [None if t is None else t.detach() for t in (hidden_ND, weight, bias)]

    def measured() -> Tensor:
        checked_positions(labels_N, weight.shape[0], token_mask, ignore_index)
        _FusedLoss.apply(*frozen, later)
        return later.parts[MATRIX]

    output._measure = measured
    return output


@dataclass
class _Job:
    """Everything of one call that is not a differentiable tensor."""

    config: MatrixLossConfig
    table_VD: Tensor
    token_mask: Tensor | None
    labels_N: Tensor
    denominator: Tensor | int | float
    logit_scale: float
    softcap: float | None
    process_group: ProcessGroup | None
    details: bool
    chunk_size: int
    needs_gradient: bool
    measured: bool  # MCE is computed, without being a part of the loss
    geometries: GeometryCache | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    report: dict[str, Tensor] = field(default_factory=dict)

    def geometry(self, config: MatrixLossConfig) -> TokenGeometry:
        """The token rows as settings want them."""
        read = self.geometries.geometry if self.geometries is not None else TokenGeometry.from_table
        return read(self.table_VD, config, self.token_mask)


class _FusedLoss(torch.autograd.Function):
    """Forward forms the gradients; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job) -> Tensor:
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
            gradients = HeadGradients(
                hidden_ND, weight_VD, (hidden, weight, bias), single=len(hidden_ND) <= job.chunk_size
            )
            loss = _forward(hidden_ND.to(product_dtype), head, job, gradients)
        # Not saved_tensors: the backward pass scales them in place where nobody needs them again.
        ctx.gradients = gradients.collected()
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_ND, weight_VD, bias_V)]
        ctx.denominator = job.denominator
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # Not `once_differentiable`, which lets a second derivative pass as zero; nor a node that fails where one is used,
        # which would need hidden states and weights to be kept until here.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "linear_matrix_cross_entropy can be differentiated once: its second derivative is not implemented, so "
                "backward with create_graph=True is refused. Leave this loss out of what is differentiated twice (a "
                "gradient penalty, say)"
            )
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


def _forward(hidden_ND: Tensor, head: LinearHead, job: _Job, gradients: HeadGradients) -> Tensor:
    """The loss of all the chunks, with `gradients`, `job.parts` and `job.report` filled on the way."""
    geometry = job.geometry(job.config) if job.config.objective == "mce" or job.measured else None
    if not job.measured:
        kernels = kernel_loss(job.config, geometry, head, details=job.details)
        if kernels is not None:
            return _forward_by_kernels(kernels, hidden_ND, head, job, gradients)
    wanted = bool(gradients)
    buffer_CV = head.buffer(min(job.chunk_size, len(hidden_ND)))
    own = _own_term(job, geometry, buffer_CV)
    measured = None
    if job.measured:
        assert geometry is not None
        measured = matrix_term(geometry, job.config, buffer_CV, details=job.details)
    # The loss's own term comes last, because it overwrites the probabilities.
    terms = [term for term in (measured, own) if term is not None]
    for term in terms:
        if term.two_passes:
            for _, hidden_CD, labels_C in _chunks(hidden_ND, job):
                q_CV = head.logits(hidden_CD, buffer_CV)
                _softmax_(q_CV, labels_C, None)
                term.gather(q_CV, labels_C)
            term.finish(job.process_group)

    target_V = None if own is None else own.target_V
    cross_entropy = buffer_CV.new_zeros(())
    for start, hidden_CD, labels_C in _chunks(hidden_ND, job):
        q_CV = head.logits(hidden_CD, buffer_CV)
        capped_CV = q_CV.clone() if head.softcap is not None and wanted else None
        cross_entropy_C, against_C = _softmax_(q_CV, labels_C, target_V)
        cross_entropy += cross_entropy_C.sum()
        chunk = Chunk(start, q_CV, labels_C, cross_entropy_C, against_C)
        for term in terms:
            term.add(chunk, gradient=wanted and term is own)
        if wanted:
            q_CV.scatter_add_(-1, labels_C.unsqueeze(-1), q_CV.new_full((len(labels_C), 1), -1.0))
            gradients.add(start, hidden_CD, head.through_cap(q_CV, capped_CV), head)

    count = job.labels_N.numel()
    job.parts[CROSS_ENTROPY] = cross_entropy / job.denominator
    loss = job.parts[CROSS_ENTROPY].clone()  # autograd attaches what is returned; the parts are not
    for term in terms:
        found = {name: value / job.denominator for name, value in term.sums(count).items()}
        job.parts.update(found)
        job.report.update(term.means(count))
        if term is own:
            plain, weight = term.shares
            loss = plain * loss + weight * next(iter(found.values()))
    return loss


def _forward_by_kernels(
    kernels: KernelLoss, hidden_ND: Tensor, head: LinearHead, job: _Job, gradients: HeadGradients
) -> Tensor:
    """The same where the losses have kernels."""
    logits_CV = head.buffer(min(job.chunk_size, len(hidden_ND)))
    gradient_CV = None
    if (
        gradients
    ):  # in the dtype of the products that it goes into, so in place if that is the dtype of the logits
        same = hidden_ND.dtype == logits_CV.dtype
        gradient_CV = logits_CV if same else torch.empty_like(logits_CV, dtype=hidden_ND.dtype)
    for start, hidden_CD, labels_C in _chunks(hidden_ND, job):
        here_CV = None if gradient_CV is None else gradient_CV[: len(labels_C)]
        kernels.add(head.logits(hidden_CD, logits_CV), labels_C, here_CV)
        if here_CV is not None:
            gradients.add(start, hidden_CD, here_CV, head)

    count, config = job.labels_N.numel(), job.config
    job.parts[CROSS_ENTROPY] = kernels.cross_entropy() / job.denominator
    if not config.weight:
        return job.parts[CROSS_ENTROPY].clone()
    job.parts[MATRIX] = kernels.matrix() / job.denominator
    if job.details:
        job.report.update({name: total / max(count, 1) for name, total in kernels.approximations().items()})
    return job.parts[CROSS_ENTROPY] + config.weight * job.parts[MATRIX]


def _own_term(job: _Job, geometry: TokenGeometry | None, like: Tensor) -> LossTerm | None:
    """What the loss has beside cross-entropy."""
    config = job.config
    if config.objective == "mce":
        assert geometry is not None
        return matrix_term(geometry, config, like, details=job.details)
    if config.objective == "label_smoothing":
        return smoothing_term(config, like.shape[-1], job.token_mask, like)
    if config.objective == "emo":
        return emo_term(job.geometry(emo_directions(config)), config, like)
    return None


def _softmax_(logits_CV: Tensor, labels_C: Tensor, target_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Turn logits into probabilities in place.

    Returns:
        −log q_y of each row, (C,), and −Σ_v u_v log q_v for the distribution u = `target_V`.
    """
    # By hand, since softmax and logsumexp would each hold another chunk.
    target_C1 = logits_CV.gather(-1, labels_C.unsqueeze(-1))
    largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
    logits_CV.sub_(largest_C1)
    mean_C = None if target_V is None else logits_CV @ target_V
    norm_C1 = logits_CV.exp_().sum(dim=-1, keepdim=True)
    logits_CV.div_(norm_C1)
    log_norm_C1 = norm_C1.log()
    against_C = None if mean_C is None else log_norm_C1.squeeze(-1) - mean_C
    return (log_norm_C1 + (largest_C1 - target_C1)).squeeze(-1), against_C


def _chunks(hidden_ND: Tensor, job: _Job) -> Iterator[tuple[int, Tensor, Tensor]]:
    for start in range(0, len(hidden_ND), job.chunk_size):
        stop = start + job.chunk_size
        yield start, hidden_ND[start:stop], job.labels_N[start:stop]
