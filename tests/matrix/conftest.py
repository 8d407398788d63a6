"""Matrices that the tests of this folder share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


def rotation(size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0].to(dtype)


@pytest.fixture(scope="session")
def orthogonal() -> Callable[[int, int], Tensor]:
    """A random orthogonal matrix: orthogonal(size, seed)."""
    return rotation


@pytest.fixture(scope="session")
def with_spectrum() -> Callable[[Sequence[float], int], Tensor]:
    """A symmetric float64 matrix with the given eigenvalues in a random basis: with_spectrum(values, seed)."""

    def build(values: Sequence[float], seed: int) -> Tensor:
        U = rotation(len(values), seed)
        A = (U * torch.tensor(values, dtype=torch.float64)) @ U.mT
        return (A + A.mT) / 2

    return build


@pytest.fixture(scope="session")
def random_psd() -> Callable[[int, int], Tensor]:
    """A well-conditioned random positive definite float64 matrix: random_psd(size, seed)."""

    def build(size: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(size + 3, size, generator=generator, dtype=torch.float64)
        return X.mT @ X / (size + 3) + 0.05 * torch.eye(size, dtype=torch.float64)

    return build
