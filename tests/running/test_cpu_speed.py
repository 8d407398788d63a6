"""The measured speed of bfloat16 on this machine's CPU."""

import platform
import statistics
from pathlib import Path

import pytest

from mce_llm.running.cpu_speed import bfloat16_speed


def test_it_agrees_with_the_instructions_of_the_processor():
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if platform.machine() not in ("x86_64", "AMD64") or not flags:
        pytest.skip("says nothing of its instructions")
    speed = statistics.median(bfloat16_speed() for _ in range(5))
    if "amx_bf16" in flags:
        assert speed > 1
    elif (
        "avx512_bf16" not in flags
    ):  # with these it is faster on some processors and slower on others, which is why one measures
        assert speed < 1
