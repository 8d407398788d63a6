"""A sample of the head's inputs over one optimizer step, pooled over the ranks, and the spectra measured on it.

Each rank takes evenly spaced unmasked positions, up to its share of the sample, from the first micro-batches that have
any; no random numbers are drawn. Ranks do not communicate inside the forward, so they may hold different numbers of
labels. Legend: S positions of the sample, C of a chunk, V vocabulary, D width, R leading eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mce_llm.lm.batch_kernel import marginal_density
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import GeometryError, TokenGeometry
from mce_llm.lm.observation import HeadObservation
from mce_llm.lm.token_kernel import is_full_vocabulary, token_chunk
from mce_llm.lm.training.monitoring.spectrum import (
    Spectrum,
    matrix_spectrum,
    rows_spectrum,
    spread,
    token_spectrum,
)
from mce_llm.matrix.precision import exact_dtype

# Elements of a chunk of logits.
_CHUNK_ELEMENTS = 2**22
# k of the spectra where the loss keeps the full vocabulary.
FULL_VOCABULARY_SUPPORT = 64


@dataclass(frozen=True)
class DensityMeasurement:
    """The predicted density matrices of the sample.

    Attributes:
        spectrum: Of the one matrix (kinds marginal and expected), or the mean over positions of each eigenvalue
            (token).
        effective_rank: Of that matrix, or the mean over positions.
        top_share: The same for λ_1/Σλ.
        positions: How many positions it is made of.
        support: k, for the kind token.
        tail_mass: Mean δ, as the loss counts it (token).
        quadrature_gap: Mean value of the loss at order m minus that at m − 1 (token).
    """

    spectrum: Spectrum
    effective_rank: float
    top_share: float
    positions: int
    support: int | None = None
    tail_mass: float | None = None
    quadrature_gap: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The measurements on one sample.

    Attributes:
        config: The loss settings that were in force.
        positions: Hidden states in the sample.
        hidden: Spectrum of their covariance, or None for fewer than two.
        density: The predicted density matrices, or None without a position or a usable token geometry.
        problem: Why something is missing, or None.
    """

    config: MatrixLossConfig
    positions: int
    hidden: Spectrum | None
    density: DensityMeasurement | None
    problem: str | None


class HeadSample:
    """The observer of one optimizer step.

    Args:
        share: The most positions that this rank takes.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._hidden: list[Tensor] = []
        self._predicted: _Predicted | None = None
        self._config: MatrixLossConfig | None = None
        self._like = torch.empty(0)
        self._bad = 0
        self._problem: str | None = None

    @torch.no_grad()
    def __call__(self, seen: HeadObservation) -> None:
        """Add positions of one forward to the sample."""
        if self._predicted is None:
            self._config = seen.config
            dtype = torch.promote_types(seen.hidden_ND.dtype, torch.float32)
            self._like = seen.hidden_ND.new_empty(0, seen.hidden_ND.shape[1], dtype=dtype)
            self._predicted = _PREDICTED[seen.config.kind](seen, self._share)
        positions_S = spread(
            len(seen.labels_N), self._share - sum(map(len, self._hidden)), seen.hidden_ND.device
        )
        if not len(positions_S):
            return
        hidden_SD = seen.hidden_ND.index_select(0, positions_S).to(self._like)
        self._hidden.append(hidden_SD)
        if not bool(torch.isfinite(hidden_SD).all()):
            self._bad += 1  # the loss is not finite either, which the step guard reports
            return
        try:
            geometry = seen.geometry()
        except GeometryError as error:
            self._problem = str(error)
            return
        self._predicted.add(seen, geometry, positions_S)

    def pooled(self, accelerator: Accelerator) -> Measurement | None:
        """Pool the ranks' samples and measure; every rank has to call, and each gets the same.

        Returns:
            None where the step had no forward with labels, on any rank.
        """
        if self._predicted is None or self._config is None:
            return None
        hidden_SD = gather_rows(torch.cat([self._like, *self._hidden]), self._share, accelerator)
        bad = accelerator.reduce(torch.tensor(self._bad, device=self._like.device), reduction="sum")
        density = self._predicted.pooled(accelerator)
        problem = self._problem
        if int(bad):
            problem = "hidden states are not finite"
            return Measurement(self._config, len(hidden_SD), None, None, problem)
        hidden = rows_spectrum(hidden_SD) if len(hidden_SD) > 1 else None
        if hidden is not None and not bool(hidden.trace > 0):
            hidden, problem = None, "all hidden states are equal"
        if density is not None and not isfinite(density.effective_rank):
            density, problem = None, "predicted probabilities are not finite"
        return Measurement(self._config, len(hidden_SD), hidden, density, problem)


def gather_rows(rows_SD: Tensor, most: int, accelerator: Accelerator) -> Tensor:
    """The rows of all ranks, (S_0 + S_1 + …, d), in the order of the ranks; none has more than `most`."""
    if accelerator.num_processes == 1:
        return rows_SD
    # Gathering needs the same shape on every rank: an extra column tells rows from padding.
    marked = torch.nn.functional.pad(rows_SD, (0, 1), value=1.0)
    padded = torch.nn.functional.pad(marked, (0, 0, 0, most - len(rows_SD)))
    everyone: Any = accelerator.gather(padded)
    return everyone[everyone[:, -1] > 0, :-1]


class _Predicted:
    """The predicted density matrices of the positions of one rank, in a form that adds up over ranks."""

    def __init__(self, seen: HeadObservation, share: int) -> None:
        self._width = seen.table_VD.shape[1]
        self._device = seen.hidden_ND.device
        self._share = share

    def add(self, seen: HeadObservation, geometry: TokenGeometry, positions_S: Tensor) -> None:
        """Add some positions of one forward."""
        raise NotImplementedError

    def pooled(self, accelerator: Accelerator) -> DensityMeasurement | None:
        """The measurement over all ranks; None without a position."""
        raise NotImplementedError

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=exact_dtype(self._device), device=self._device)


class _TokenDensities(_Predicted):
    """One matrix a position: means over positions."""

    def __init__(self, seen: HeadObservation, share: int) -> None:
        super().__init__(seen, share)
        vocabulary = seen.weight_VD.shape[0]
        self._support = min(seen.config.support or FULL_VOCABULARY_SUPPORT, vocabulary)
        # k eigenvalues cost k³ operations: a larger support is measured at fewer positions.
        scale = max(1.0, self._support / FULL_VOCABULARY_SUPPORT) ** 3
        self._with_spectrum = max(1, int(share / scale))
        self._leading = min(self._support, self._width)
        # Sums over positions: δ, gap; effective rank, top share, background, and R eigenvalues. Two counts.
        self._report_3 = self._zeros(3)
        self._spectra = self._zeros(4 + self._leading)

    def add(self, seen: HeadObservation, geometry: TokenGeometry, positions_S: Tensor) -> None:
        config, vocabulary = seen.config, seen.weight_VD.shape[0]
        buffers = config.order + 2 if is_full_vocabulary(config, vocabulary) else 1
        chosen = torch.zeros_like(positions_S, dtype=torch.bool)
        left = max(0, self._with_spectrum - int(self._spectra[3].nan_to_num()))
        chosen[spread(len(positions_S), left, positions_S.device)] = True
        start = 0
        for positions_C, q_CV in seen.probabilities(
            positions_S, max(1, _CHUNK_ELEMENTS // (buffers * vocabulary))
        ):
            if not bool(torch.isfinite(q_CV).all()):
                self._spectra += torch.nan  # reaches `pooled` on every rank
                return
            chosen_C = chosen[start : start + len(positions_C)]
            start += len(positions_C)
            if bool(chosen_C.any()):
                spectrum = token_spectrum(q_CV[chosen_C], geometry, config.epsilon, self._support)
                parts = [spectrum.effective_rank, spectrum.top_share, spectrum.rest]
                parts.append(torch.ones_like(spectrum.rest))
                sums = torch.cat([torch.stack(parts, dim=1), spectrum.eigenvalues], dim=1).sum(dim=0)
                self._spectra += sums.to(self._spectra)
            labels_C = seen.labels_N.index_select(0, positions_C)
            chunk = token_chunk(q_CV, labels_C, geometry, config, gap=True)
            assert chunk.gap_C is not None
            self._report_3 += torch.stack(
                [chunk.tail_mass_C.sum(), chunk.gap_C.sum(), chunk.gap_C.new_tensor(len(labels_C))]
            )

    def pooled(self, accelerator: Accelerator) -> DensityMeasurement | None:
        sums: Any = accelerator.reduce(torch.cat([self._report_3, self._spectra]), reduction="sum")
        tail_mass, gap, count, rank, share, background, spectra, *eigenvalues = sums.tolist()
        if not spectra:
            return None
        if not isfinite(spectra):
            unknown = torch.full((self._leading,), torch.nan, dtype=torch.float64)
            return DensityMeasurement(Spectrum(unknown, unknown[0], self._width), torch.nan, torch.nan, 0)
        mean = Spectrum(
            torch.tensor(eigenvalues, dtype=torch.float64) / spectra,
            torch.tensor(background / spectra, dtype=torch.float64),
            self._width,
        )
        return DensityMeasurement(
            mean,
            rank / spectra,
            share / spectra,
            int(spectra),
            support=self._support,
            tail_mass=tail_mass / count,
            quadrature_gap=gap / count,
        )


class _MarginalDensity(_Predicted):
    """ρ of the mean predicted distribution: linear in it, so that the ranks' matrices are averaged."""

    def __init__(self, seen: HeadObservation, share: int) -> None:
        super().__init__(seen, share)
        self._sum_DD = self._zeros(self._width, self._width)
        self._count = 0

    def add(self, seen: HeadObservation, geometry: TokenGeometry, positions_S: Tensor) -> None:
        vocabulary = seen.weight_VD.shape[0]
        sums_V = self._zeros(vocabulary)
        for _, q_CV in seen.probabilities(positions_S, max(1, _CHUNK_ELEMENTS // vocabulary)):
            sums_V += q_CV.sum(dim=0)
        density_DD = marginal_density(sums_V / len(positions_S), geometry, seen.config.epsilon)
        self._sum_DD += len(positions_S) * density_DD
        self._count += len(positions_S)

    def pooled(self, accelerator: Accelerator) -> DensityMeasurement | None:
        count: Any = accelerator.reduce(torch.tensor(self._count, device=self._device), reduction="sum")
        sum_DD: Any = accelerator.reduce(self._sum_DD, reduction="sum")
        if not int(count):
            return None
        return _of_one(matrix_spectrum(sum_DD / int(count)), int(count))


class _ExpectedDensity(_Predicted):
    """(1−ε) C + ε I/d with C the covariance of the expected predicted directions."""

    def __init__(self, seen: HeadObservation, share: int) -> None:
        super().__init__(seen, share)
        self._epsilon = seen.config.epsilon
        dtype = torch.promote_types(seen.table_VD.dtype, torch.float32)
        self._vectors = [torch.empty(0, self._width, dtype=dtype, device=self._device)]

    def add(self, seen: HeadObservation, geometry: TokenGeometry, positions_S: Tensor) -> None:
        vocabulary = seen.weight_VD.shape[0]
        for _, q_CV in seen.probabilities(positions_S, max(1, _CHUNK_ELEMENTS // vocabulary)):
            self._vectors.append(geometry.combine_(q_CV))

    def pooled(self, accelerator: Accelerator) -> DensityMeasurement | None:
        vectors_SD = gather_rows(torch.cat(self._vectors), self._share, accelerator)
        if not len(vectors_SD):
            return None
        background = self._epsilon / self._width
        covariance = rows_spectrum(vectors_SD)
        spectrum = Spectrum(
            (1 - self._epsilon) * covariance.eigenvalues + background,
            covariance.rest + background,
            self._width,
        )
        return _of_one(spectrum, len(vectors_SD))


def _of_one(spectrum: Spectrum, positions: int) -> DensityMeasurement:
    return DensityMeasurement(spectrum, float(spectrum.effective_rank), float(spectrum.top_share), positions)


_PREDICTED: dict[str, type[_Predicted]] = {
    "token": _TokenDensities,
    "marginal": _MarginalDensity,
    "expected": _ExpectedDensity,
}
