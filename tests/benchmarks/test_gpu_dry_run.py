"""The losses on fake CUDA tensors: how often they launch and make the host wait, whatever the size."""

import ast
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mce_llm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# Host waits of a micro-step, however many chunks it has. Lower them with the code.
HOST_WAITS = {
    "stock": 0,
    "weight 0": 1,  # are the labels in range?
    "token": 2,  # and is the geometry in order?
    "marginal": 5,
    "expected": 3,
    "label smoothing": 1,
    "EMO": 2,
}
# The most launches of a call, and of each chunk in it (both passes together), with a table that fits one block.
LAUNCHES = {
    "stock": (10, 0),
    "weight 0": (13, 18),
    "token": (57, 628),
    "marginal": (173, 39),
    "expected": (116, 57),
    "label smoothing": (21, 25),
    "EMO": (53, 52),
}
IN_KERNELS = {"weight 0": (14, 7), "token": (57, 13)}
BOUNDS = [
    *((case, "torch", bounds) for case, bounds in LAUNCHES.items()),
    *((case, "triton", bounds) for case, bounds in IN_KERNELS.items()),
]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
# Whose work of a chunk is not cut into blocks at the sizes below.
WHOLE = ("stock", "weight 0", "token", "label smoothing")
CHUNK, VOCABULARY, WIDTH = 128, 16384, 64


@pytest.fixture(scope="module")
def dry():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        before = set(sys.modules)
        yield importlib.import_module("gpu_dry_run")
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


def run(dry, case, chunks, rows=CHUNK, vocabulary=VOCABULARY, width=WIDTH, choice="torch"):
    return dry.dry_run(
        dry.loss_of(case), rows * chunks, vocabulary, width, torch.bfloat16, chunk_size=rows, choice=choice
    )


def where(trace):
    return "\n".join(f"{wait.reason} at {wait.place}" for wait in trace.waits)


def test_every_loss_has_its_bounds(dry):
    assert set(HOST_WAITS) == set(LAUNCHES) == set(dry.CASES)


@pytest.mark.parametrize(
    ("case", "choice", "bounds"),
    [pytest.param(*given, marks=needs_triton if given[1] == "triton" else ()) for given in BOUNDS],
)
def test_host_waits_and_launches_of_one_and_of_many_chunks(dry, case, choice, bounds):
    once, each = bounds
    for chunks in (1, 6):
        trace = run(dry, case, chunks, choice=choice)
        assert len(trace.waits) == HOST_WAITS[case], where(trace)
        assert len(trace.launches) <= once + each * chunks
        assert chunks == 1 or case == "stock" or len(trace.launches) > each * chunks


@pytest.mark.parametrize("case", WHOLE)
def test_launches_do_not_depend_on_the_size(dry, case):
    small, large = run(dry, case, 3), run(dry, case, 3, rows=64 * CHUNK, vocabulary=8 * VOCABULARY)
    assert [launch.name for launch in large.launches] == [launch.name for launch in small.launches]
    assert len(large.waits) == len(small.waits)
    assert large.peak > 300 * small.peak


def test_an_added_wait_is_seen(dry, monkeypatch):
    kernel = sys.modules["mce_llm.lm.matrix_terms"]
    before = kernel.token_chunk

    def waiting(probabilities, *arguments, **settings):
        assert float(probabilities.sum()) >= 0
        return before(probabilities, *arguments, **settings)

    trace = run(dry, "token", 3)
    monkeypatch.setattr(kernel, "token_chunk", waiting)
    assert len(run(dry, "token", 3).waits) == len(trace.waits) + 3


def test_stages_name_functions_that_are_there_and_none_is_empty(dry):
    defined = set()
    for file in Path(mce_llm.__file__).parent.rglob("*.py"):
        defined.add(file.stem)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(f"{file.stem}.{node.name}")
                if isinstance(node, ast.ClassDef):
                    functions = (part for part in node.body if isinstance(part, ast.FunctionDef))
                    defined |= {f"{file.stem}.{node.name}.{part.name}" for part in functions}
    assert set(dry.STAGE_OF) <= defined
    assert set(dry._ANSWERS) <= defined
    for case in ("token", "marginal", "expected"):
        launches = run(dry, case, 1).launches
        stages = {dry.stage_of(launch.place, dry.STAGE_OF, dry.REST) for launch in launches}
        assert stages == set(dry.STAGES), case


def test_batch_losses_take_the_way_of_a_large_width(dry):
    names = [launch.name for launch in run(dry, "marginal", 1, width=2048).launches]
    assert "cholesky_inverse" in names
    assert "_linalg_eigh" not in names


def test_three_products_in_bfloat16(dry):
    for case in ("stock", "weight 0", "token"):
        flops = dry.flops_by_dtype(run(dry, case, 2).launches)
        assert flops["bfloat16"] >= 3 * 2 * (2 * CHUNK) * VOCABULARY * WIDTH, case
        assert case == "token" or list(flops) == ["bfloat16"]


def test_tables_and_figures(dry, capsys, tmp_path):
    words = [
        "--tokens",
        "512",
        "--vocabulary",
        "16384",
        "--width",
        "64",
        "--cases",
        "weight 0",
        "stock",
        "token",
    ]
    dry.main([*words, "--peak-tokens", "64", "--json", str(tmp_path / "d.json")])
    printed = capsys.readouterr().out
    assert "Estimates, nothing measured" in printed
    for title in ("Estimated time, ms", "Counted, and estimated peak", "Host waits of a micro-step"):
        assert title in printed
    found = json.loads((tmp_path / "d.json").read_text())
    rows = {row["case"]: row for row in found["rows"]}
    assert found["estimates"] is True
    token, stock = rows["token"], rows["stock"]
    assert sum(wait["count"] for wait in token["waits"]) == HOST_WAITS["token"]
    assert (token["chunks"], token["chunk_size"]) == (1, 512)
    assert sum(token["stages"].values()) == pytest.approx(token["seconds"])
    assert token["against_stock"] == pytest.approx(token["seconds"] / stock["seconds"])
    added = token["seconds"] - rows["weight 0"]["seconds"]
    assert token["step_against_weight_0"] - 1 == pytest.approx(added / (0.66 / 16))
    assert token["peak_by_tokens"].keys() == {"64"}
    assert stock["peak_bytes"] == pytest.approx(12 * 512 * 16384, rel=0.01)
    assert set(token["stages"]) <= set(dry.STAGES)


def test_what_one_chunk_more_adds(dry, monkeypatch):
    chunks = importlib.import_module("mce_llm.lm.loss_chunks")
    monkeypatch.setattr(chunks, "logit_elements", lambda *_: CHUNK * VOCABULARY)
    words = ["--tokens", "256", "--vocabulary", f"{VOCABULARY}", "--width", f"{WIDTH}", "--peak-tokens"]
    options = dry.parse(words)
    found = dry.measure("token", VOCABULARY, options, dry.Machine())
    assert (found["chunks"], found["chunk_size"]) == (2, CHUNK)
    assert found["waits_per_chunk"] == 0
    assert found["launches_per_chunk"] <= LAUNCHES["token"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "0"], "expected a positive integer, got '0'"),
        (["--bandwidth", "-1"], "expected a positive number, got '-1'"),
        (["--launch", "fast"], "expected a positive number, got 'fast'"),
        (["--cases", "tokens"], "invalid choice: 'tokens'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_arguments(dry, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        dry.parse(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
