"""Shapes that many tests start from."""

import pytest

from mce_llm.planning import LossShape, TrainingShape


@pytest.fixture
def run_of():
    """A training shape: two rows of 64 tokens in float32, cross-entropy alone, with the given changes."""

    def make(**changes):
        settings = {
            "micro_batch": 2,
            "length": 64,
            "dtype": "float32",
            "mixed": None,
            "optim": "adamw_torch_fused",
            "checkpointing": False,
            "attention": "sdpa",
            "loss": LossShape("token", 0.0, 64, 8, chunk=32),
            "padded": False,
        }
        return TrainingShape(**{**settings, **changes})

    return make
