"""Token geometry: the centred, normalised embedding rows ê_v, used without a second V×d table.

Legend of the shape suffixes: V vocabulary, D embedding width, T positions, K kept tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.errors import MceLlmError
from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.float32_products import has_float32_products

# A centred row shorter than this share of the table's root mean square length has no direction that
# rounding left intact: a duplicate of the mean, or an all-zero row in a table that is not centred.
_NEGLIGIBLE_LENGTH = 1e-6

# Elements of the table that are upcast or centred at a time. On a CPU a block should stay in a cache.
_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


class GeometryError(MceLlmError, ValueError):
    """The embedding table cannot serve as a token geometry; the message says why."""


@dataclass(frozen=True)
class TokenGeometry:
    """The map from tokens to rows ê_v = (e_v − μ)·r_v, constant with respect to the parameters (detached).

    Rows without a direction (excluded tokens, rows equal to the mean) have r_v = 0; the probability that falls on
    them counts as isotropic background I/d, so density matrices keep trace one.

    Attributes:
        table_VD: The raw embedding rows, float32 or float64 (or a low-precision table, upcast where it is used).
        mean_D: μ over the tokens that take part, zero when the rows are not centred.
        scale_V: r_v; 1/‖e_v − μ‖ with normalised rows, one shared 1/rms otherwise; 0 without direction.
        squared_length_V: ‖ê_v‖²; one for every normalised row, 0 without direction.
        all_directed: Whether every row has a direction.
        largest_squared_length: max_v ‖ê_v‖², which bounds the spectrum of every density matrix of these rows.
        mean_ratio: ‖μ‖ over the length of the shortest centred row: how much larger than the row's own part the mean's is
            in a product of raw rows.
        along_mean_V: ⟨e_v, μ⟩ of the raw rows, where products of raw rows can be had in float32; None elsewhere.
    """

    table_VD: Tensor
    mean_D: Tensor
    scale_V: Tensor
    squared_length_V: Tensor
    all_directed: bool
    largest_squared_length: float
    mean_ratio: float
    along_mean_V: Tensor | None

    @classmethod
    @torch.no_grad()
    def from_table(
        cls, table_VD: Tensor, config: MatrixLossConfig, token_mask: Tensor | None = None
    ) -> TokenGeometry:
        """Read mean and lengths off an embedding table; the host waits for the device once.

        Args:
            table_VD: (V, d) embedding rows; detached here.
            config: `center` and `normalize` are read.
            token_mask: (V,) bool, False for rows that are no tokens (padding of the vocabulary); None for all True.

        Returns:
            The geometry; statistics in float32, or float64 for a float64 table.

        Raises:
            GeometryError: If the table is not a (V, d) matrix, is empty (a sharded parameter read outside its
                engine's forward), has non-finite rows, or if no row has a direction.
        """
        table_VD = table_VD.detach()
        if table_VD.ndim != 2 or table_VD.numel() == 0:
            raise GeometryError(
                f"the embedding table must be a (vocabulary, width) matrix, got shape {tuple(table_VD.shape)}; "
                "an empty one usually is a sharded parameter read outside the engine's forward"
            )
        size = table_VD.shape[0]
        if token_mask is not None and token_mask.shape != (size,):
            raise GeometryError(
                f"token_mask must have one entry per embedding row, got {tuple(token_mask.shape)} for {size} rows"
            )
        dtype = torch.float64 if table_VD.dtype == torch.float64 else torch.float32
        mask_V = torch.ones(size, dtype=dtype, device=table_VD.device)
        if token_mask is not None:
            mask_V = token_mask.to(device=table_VD.device, dtype=dtype)
        count = mask_V.sum().clamp_min(1)
        mean_D = torch.zeros(table_VD.shape[1], dtype=dtype, device=table_VD.device)
        if config.center:
            for rows_BD, mask_B in zip(_blocks(table_VD), _blocks(mask_V, table_VD.shape[1]), strict=True):
                mean_D += mask_B @ rows_BD.to(dtype)
            mean_D /= count
        # Centre before squaring: ‖e‖² − 2e·μ + ‖μ‖² would cancel badly for rows near the mean.
        # One buffer for all blocks: fresh memory for each cost several times what the arithmetic does.
        buffer_BD = torch.empty_like(_blocks(table_VD)[0], dtype=dtype)
        length_V = torch.empty(size, dtype=dtype, device=table_VD.device)
        along_mean_V = torch.empty_like(length_V) if has_float32_products(table_VD) else None
        start = 0
        for rows_BD, length_B in zip(_blocks(table_VD), _blocks(length_V, table_VD.shape[1]), strict=True):
            centred_BD = torch.sub(rows_BD, mean_D, out=buffer_BD[: len(rows_BD)])
            torch.linalg.vector_norm(centred_BD, dim=1, out=length_B)
            stop = start + len(rows_BD)
            if along_mean_V is not None:
                along_mean_V[start:stop] = centred_BD @ mean_D
            start = stop
        if along_mean_V is not None:
            along_mean_V += mean_D.square().sum()
        length_V *= mask_V
        typical = (length_V.square().sum() / count).sqrt()
        present_V = length_V > _NEGLIGIBLE_LENGTH * typical
        reciprocal_V = 1 / (length_V.where(present_V, 1) if config.normalize else typical)
        scale_V = torch.where(present_V, reciprocal_V, torch.zeros_like(length_V))
        squared_length_V = present_V.to(dtype) if config.normalize else (length_V * scale_V).square()
        shortest = length_V.where(present_V, torch.inf).min()
        facts = [typical, mean_D.norm() / shortest, squared_length_V.max(), present_V.all().to(dtype)]
        size_of_rows, mean_ratio, largest_squared_length, all_directed = torch.stack(facts).tolist()
        if not math.isfinite(size_of_rows):
            bad_V = ~torch.isfinite(table_VD).all(dim=1)
            if not bool(bad_V.any()):
                raise GeometryError(
                    f"the squared lengths of the {size} embedding rows overflow {dtype}; the weights have diverged or were not "
                    "loaded"
                )
            rows = bad_V.nonzero().flatten()[:5].tolist()
            raise GeometryError(
                f"{int(bad_V.sum())} of {size} embedding rows are not finite (first rows: {rows}); "
                "the weights have diverged or were not loaded"
            )
        if size_of_rows <= 0:
            raise GeometryError(
                f"no row of the {size} by {table_VD.shape[1]} embedding table has a direction: all rows are equal"
                if config.center
                else "all embedding rows are zero"
            )
        return cls(
            table_VD,
            mean_D,
            scale_V,
            squared_length_V,
            all_directed=bool(all_directed),
            largest_squared_length=largest_squared_length,
            mean_ratio=mean_ratio,
            along_mean_V=along_mean_V,
        )

    @property
    def width(self) -> int:
        """d, the number of columns of the table."""
        return self.table_VD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which products with the rows are formed: float32, or float64 for a float64 table."""
        return self.mean_D.dtype

    def rows(self, ids: Tensor) -> Tensor:
        """ê at the given token ids: (...) int64 → (..., d)."""
        scale = self.scale_V[ids].unsqueeze(-1)
        return self.centred_rows(ids.flatten()).view(*ids.shape, self.width).mul_(scale)

    def centred_rows(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        """e_v − μ, not yet normalised, at the given token ids: (N,) int64 → (N, d), fresh or in `out`."""
        # index_select copies whole rows; indexing with a tensor was 40 times slower on a CPU.
        if out is not None and out.dtype == self.table_VD.dtype:
            torch.index_select(self.table_VD, 0, ids, out=out)
        else:
            raw = self.table_VD.index_select(0, ids)
            out = raw.to(self.dtype) if out is None else out.copy_(raw)
        return out.sub_(self.mean_D)

    def all_rows(self) -> Tensor:
        """Ê as a dense (V, d) matrix; for the reference losses and for small vocabularies."""
        return (self.table_VD.to(self.dtype) - self.mean_D) * self.scale_V.unsqueeze(-1)

    def project(self, vectors_TD: Tensor) -> Tensor:
        """Inner products with every row, u = (x Eᵀ − x·μ)·r: (T, d) → (T, V); one matrix product."""
        return self.project_centred(vectors_TD).mul_(self.scale_V)

    def project_centred(self, vectors_TD: Tensor, out: Tensor | None = None) -> Tensor:
        """X Eᵀ − x·μ, inner products with the rows before they are normalised: (T, d) → (T, V).

        Args:
            vectors_TD: x, (T, d), of the geometry's dtype.
            out: (T, V) buffer for the result; it need not be contiguous.
        """
        if out is None:
            out = vectors_TD.new_empty(vectors_TD.shape[0], self.table_VD.shape[0])
        if self.table_VD.dtype == self.dtype:
            torch.mm(vectors_TD, self.table_VD.T, out=out)
        else:
            start = 0
            for rows_BD in _blocks(self.table_VD):
                stop = start + rows_BD.shape[0]
                out[:, start:stop] = vectors_TD @ rows_BD.to(self.dtype).T
                start = stop
        return out.sub_((vectors_TD @ self.mean_D).unsqueeze(-1))

    def combine_centred(self, weights_TV: Tensor) -> Tensor:
        """Σ_v w_v (e_v − μ) = w E − (Σ_v w_v) μ, sums of the rows before they are normalised: (T, V) → (T, d).

        One matrix product.
        """
        if self.table_VD.dtype == self.dtype:
            sums_TD = weights_TV @ self.table_VD
        else:
            sums_TD = weights_TV.new_zeros(weights_TV.shape[0], self.width)
            start = 0
            for rows_BD in _blocks(self.table_VD):
                stop = start + rows_BD.shape[0]
                sums_TD.addmm_(weights_TV[:, start:stop], rows_BD.to(self.dtype))
                start = stop
        return sums_TD.addcmul_(weights_TV.sum(dim=-1, keepdim=True), self.mean_D, value=-1)

    def combine_(self, weights_TV: Tensor) -> Tensor:
        """Σ_v w_v ê_v, sums of the rows: (T, V) → (T, d); weights of the geometry's dtype are overwritten."""
        return self.combine_centred(weights_TV.to(self.dtype).mul_(self.scale_V))

    @property
    def has_direction_V(self) -> Tensor:
        """(V,) bool: False where the row is background."""
        return self.scale_V > 0


def _blocks(table: Tensor, columns: int | None = None) -> tuple[Tensor, ...]:
    """Runs of rows, so that nothing as large as the table is formed: upcast or centred copies stay small."""
    columns = columns or table[0].numel()
    elements = elements_on(table.device, _BLOCK_ELEMENTS)
    return table.split(max(1, elements // columns))
