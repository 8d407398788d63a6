"""The kernels compile for GPUs that are not here, with the settings that they are started with, and spill nothing."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from helpers.scripts import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
PROGRAMS = [
    "gram_program",
    "form_program",
    "frame_program",
    "factor_program",
    "softmax_program",
    "gradient_program",
]


def rows_of(tmp_path, *arguments):
    """The figures of the benchmark; it compiles, so that nothing may be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/kernel_resources.py", "--json", tmp_path / "r.json", *arguments],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "r.json").read_text())["rows"]


def test_the_usual_sizes_on_a_hopper_gpu(tmp_path):
    rows = rows_of(tmp_path, "--target", "cuda:90")
    assert [row["program"] for row in rows] == PROGRAMS
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["registers"] <= 200, row
        assert row["programs"] >= 3, row


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_sizes_on_all_targets(tmp_path, dtype):
    targets = ["cuda:80", "cuda:89", "cuda:90", "cuda:100", "hip:gfx942"]
    arguments = ["--dtype", dtype, "--kept", "5", "64", "128", "--order", "1", "8", "16"]
    rows = rows_of(tmp_path, "--target", *targets, *arguments)
    assert len(rows) == len(targets) * 3 * 3 * len(PROGRAMS)
    hot = [row for row in rows if row["kept"] <= 64]
    assert not [row for row in hot if row["spilled"]]
