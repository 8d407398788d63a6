"""Where the kernels are tested: compiled on a CUDA device, else in Triton's interpreter, in a process of its own."""

import pytest
import torch

from mce_llm.lm.kernels.launching import runs_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# TRITON_INTERPRET is read when triton is imported, which anything in a process may have done before.
needs_kernels = pytest.mark.skipif(
    not runs_on(DEVICE), reason="without a GPU, test_in_the_interpreter runs it, where triton is installed"
)


def relative_error(found, exact):
    """Norm of the difference over the norm of what is exact."""
    return float((found.cpu().double() - exact).norm() / exact.norm().clamp_min(1e-30))
