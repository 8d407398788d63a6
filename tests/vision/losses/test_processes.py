"""Two processes over gloo with 7 and 4 rows are one process with 11, in value and in the gradient that DDP makes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mce_llm.vision.losses import LOSSES, build_loss

WORKER = Path(__file__).with_name("ranks_worker.py")
# Started where nothing but torch can be imported.
START = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torchvision", "timm", "transformers", "accelerate"]))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(scope="module")
def worker():
    """The worker's functions, to compute what one process gives."""
    specification = importlib.util.spec_from_file_location("ranks_worker", WORKER)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found: ({case: (value, gradient)}, {case: error}, modules)."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error::FutureWarning:mce_llm",
                "-c",
                START,
                str(WORKER),
                str(rank),
                "2",
                str(folder),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def one_process(worker, case):
    return worker.step(build_loss(**worker.CASES[case]), worker.Student(), worker.batch())


@pytest.mark.parametrize("case", [*LOSSES, "matrix_ssl, dim", "matrix_ssl, exact", "matrix_ssl, official"])
def test_two_processes_with_unequal_rows_are_one(worker, ranks, case):
    value, gradient = one_process(worker, case)
    assert gradient.norm() > 1e-3
    for found, *_ in ranks:
        assert found[case][0] == pytest.approx(value, rel=1e-12)
        assert float((found[case][1] - gradient).norm() / gradient.norm()) < 1e-10


def test_statistics_that_are_not_shared_would_be_caught(worker, ranks):
    """Negative control: each rank with its own covariance."""
    value, gradient = one_process(worker, "matrix_ssl, official")
    for found, *_ in ranks:
        assert abs(found["not gathered"][0] / value - 1) > 0.01
        assert float((found["not gathered"][1] - gradient).norm() / gradient.norm()) > 0.01


def test_a_gather_without_gradients_would_be_caught(worker, ranks):
    """Negative control: the value is right, and the gradient after DDP's mean is half of it."""
    value, gradient = one_process(worker, "matrix_ssl")
    for found, *_ in ranks:
        assert found["plain all_gather"][0] == pytest.approx(value, rel=1e-12)
        assert torch.allclose(found["plain all_gather"][1], gradient / 2, rtol=1e-9)


def test_a_second_derivative_over_processes_is_refused(worker, ranks):
    """It would lack what other ranks' gradients depend on."""
    assert worker.second_derivative(worker.batch()).norm() > 0
    for found, *_ in ranks:
        assert "can be differentiated once" in found["twice"]


def test_a_group_of_one_has_its_own_rows(worker, ranks):
    rows = [tensor[7:] for tensor in worker.batch()]
    value, gradient = worker.step(build_loss("matrix_ssl"), worker.Student(), rows)
    assert ranks[1][0]["own group"][0] == pytest.approx(value, rel=1e-12)
    assert torch.allclose(ranks[1][0]["own group"][1], gradient, rtol=1e-10)


@pytest.mark.parametrize(
    ("case", "own", "other"),
    [
        ("dim", ("RankMismatchError", "one dimension d, but ranks 0 … 1 bring 4, 5"), None),
        (
            "dtype",
            ("RankMismatchError", "one dtype, but ranks 0 … 1 bring torch.float32, torch.bfloat16"),
            None,
        ),
        ("losses", ("RankMismatchError", "one number of tensors, but ranks 0 … 1 bring 2, 4"), None),
        (
            "nan",
            ("NonFiniteLossError", "z1 has 8 of 20 entries that are not finite, the first in row 3"),
            None,
        ),
        ("rows", ("LossInputError", "all processes together need at least 2 rows, got 1"), None),
        (
            "shape",
            ("LossInputError", "z1 must be (m, d) rows, one for each image, got shape (3, 4, 1)"),
            (
                "RankMismatchError",
                "the rows of rank 1 are unusable; the message there says why. This is rank 0",
            ),
        ),
        (
            "type",
            ("LossInputError", "z1 is missing"),
            ("RankMismatchError", "the rows of rank 1 are unusable"),
        ),
    ],
)
def test_all_ranks_stop_with_an_error(ranks, case, own, other):
    """Rank 1 brings something else; nobody is left waiting."""
    for rank, (error, message) in enumerate([other or own, own]):
        assert ranks[rank][1][case][0] == error
        assert message in ranks[rank][1][case][1]


def test_torch_alone_is_enough(ranks):
    """Neither torchvision nor other packages of the toolkit are imported for the losses."""
    modules = {
        ".".join(name.split(".")[:3]) for name in ranks[0][2] if not name.startswith("mce_llm.matrix.")
    }
    assert modules == {
        "mce_llm.errors",
        "mce_llm.matrix",
        "mce_llm.running",
        "mce_llm.running.hub",
        "mce_llm.running.messages",
        "mce_llm.running.visible_text",
        "mce_llm.vision",
        "mce_llm.vision.losses",
    }


def test_a_rank_may_be_without_rows(ranks):
    assert ranks[0][1]["none"] is None
    assert ranks[1][1]["none"] is None
