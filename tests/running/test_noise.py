"""Known lines of other libraries are silent, and nothing else of the same libraries is."""

import logging
import subprocess
import sys
import warnings

import pytest

from mce_llm.running.noise import silence_known_noise


@pytest.mark.parametrize(
    ("name", "known", "other"),
    [
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU …", "Optimizer state is not finite"),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from …", "no such type"),
    ],
)
def test_one_line_of_a_logger(name, known, other):
    silence_known_noise()
    silence_known_noise()  # a second time adds nothing
    logger = logging.getLogger(name)

    def passes(message):
        return bool(logger.filter(logging.LogRecord(name, logging.WARNING, "", 0, message, (), None)))

    assert (passes(known), passes(other)) == (False, True)


def test_renamed_settings_of_transformers():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_known_noise()
        warnings.warn(
            "`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1
        )
        warnings.warn("`something` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
    assert [str(item.message)[:11] for item in seen] == ["`something`"]


def test_nothing_is_said_that_is_not_ours():
    """DeepSpeed's line is what its own import says; with the filter it says nothing."""
    pytest.importorskip("deepspeed")
    code = "import {}; import deepspeed; from deepspeed.accelerator import get_accelerator; get_accelerator()"
    loud, quiet = (
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, timeout=600
        )
        for text in (
            code.format("os"),
            code.format("mce_llm.running.noise as n; n.silence_known_noise()"),
        )
    )
    assert "Setting accelerator to CPU" in loud.stdout + loud.stderr
    assert "Setting accelerator to CPU" not in quiet.stdout + quiet.stderr
