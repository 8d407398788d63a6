"""The tests of the kernels where there is no GPU: in Triton's interpreter, with a process of their own."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers.kernels import needs_kernels
from helpers.scripts import ROOT
from mce_llm.lm import MatrixLossConfig, TokenGeometry
from mce_llm.lm.kernels.launching import interpreted
from mce_llm.lm.kernels.token_form import supports

FILES = ["test_token_form.py", "test_token_chunk.py", "test_row_softmax.py", "test_loss.py"]


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(not needs_kernels.args[0], reason="the kernels run in this process")
def test_all_pass():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        + [str(Path(__file__).with_name(name)) for name in FILES],
        cwd=ROOT,
        env=environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)
    assert "skipped" not in done.stdout


@pytest.mark.skipif(interpreted(), reason="triton interprets its programs here")
def test_a_cpu_has_no_kernels():
    config = MatrixLossConfig(support=4)
    table = torch.eye(20)
    assert not supports(config, TokenGeometry.from_table(table, config))
