"""The GPU report at sizes for a CPU: all its parts, its clock, and what it does with faults."""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_report.py"


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        before = set(sys.modules)
        yield importlib.import_module("gpu_report")
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCRIPT.parent)):
                del sys.modules[name]


@pytest.fixture
def setting(report):
    return report.Setting(torch.device("cpu"), quick=True, tokens=32)


@pytest.fixture
def run(report, tmp_path):
    def main(*words):
        file = tmp_path / "g.json"
        code = report.main(["--device", "cpu", "--quick", "--json", str(file), *words])
        return code, json.loads(file.read_text())

    return main


@pytest.mark.slow
@pytest.mark.ci
def test_all_parts_on_a_cpu(tmp_path):
    words = ["--device", "cpu", "--quick", "--json", str(tmp_path / "g.json")]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    parts = json.loads((tmp_path / "g.json").read_text())["parts"]
    assert list(parts) == ["rates", "correctness", "host waits", "losses", "kernels", "step"]
    assert all(not part["faults"] for part in parts.values())
    assert set(parts["host waits"]["skipped"]) == {"host waits"}
    assert set(parts["kernels"]["skipped"]) == {"kernels"}
    steps = {row["case"]: row for row in parts["step"]["rows"]}
    assert steps["stock CE"]["against_stock"] == 1
    assert "ours, token, support 64, order 8" in steps


def test_rates_have_the_names_of_the_assumptions(run):
    code, record = run("--parts", "rates")
    assert code == 0
    part = record["parts"]["rates"]
    values = {row["what"]: row["value"] for row in part["rows"]}
    assert all(value > 0 for value in values.values())
    dry = importlib.import_module("gpu_dry_run")
    command = part["notes"]["for the dry run"].split()
    assert command[:2] == ["python", "benchmarks/gpu_dry_run.py"]
    assert dry.parse(command[2:]).bandwidth == pytest.approx(values["bandwidth"], rel=0.01)


def test_every_loss_is_right_in_both_dtypes(run, capsys):
    code, record = run("--parts", "correctness")
    assert code == 0
    rows = record["parts"]["correctness"]["rows"]
    assert len(rows) == 2 * 7
    assert all(row["repeatable"] and row["deterministic_mode"] == "runs" for row in rows)
    assert max(row["dW"] for row in rows if row["dtype"] == "float32") < 1e-5
    assert "full vocabulary" in capsys.readouterr().out


def test_a_wrong_loss_is_a_fault(report, run, monkeypatch, capsys):
    checks = importlib.import_module("gpu_checks")
    before = checks._results

    def wrong(settings, inputs, device, dtype):
        loss, hidden, weight = before(settings, inputs, device, dtype)
        return loss, hidden, weight * (1.1 if settings.get("loss") == "emo" and dtype != torch.float64 else 1)

    monkeypatch.setattr(checks, "_results", wrong)
    code, record = run("--parts", "correctness")
    assert code == 1
    assert set(record["parts"]["correctness"]["faults"]) == {"EMO, float32", "EMO, bfloat16"}
    assert "was expected" in capsys.readouterr().out


def test_losses_side_by_side(run):
    code, record = run("--parts", "losses", "--tokens", "16")
    assert code == 0
    part = record["parts"]["losses"]
    assert part["notes"]["positions"] == 16
    for vocabulary in ("300", "900"):
        rows = {row["case"]: row for row in part["rows"] if row["V"] == vocabulary}
        assert {"stock", "weight 0", "token", "marginal", "expected", "label smoothing", "EMO"} <= set(rows)
        assert rows["stock"]["against_stock"] == rows["weight 0"]["against_weight_0"] == 1
        assert rows["weight 0"]["loss"] == pytest.approx(rows["stock"]["loss"], rel=1e-3)
        assert rows["token"]["loss"] > rows["stock"]["loss"]
    assert set(part["skipped"]) >= {"Liger, V=300", "cut cross-entropy, V=900"}


def test_a_fault_ends_its_part_alone(report, run, monkeypatch, capsys):
    def broken(setting, clock):
        raise ValueError("no such thing")

    def one_case_fails(setting, clock):
        rows = []
        for case in clock.within(["first", "second"]):
            with clock.case(case):
                if case == "first":
                    raise RuntimeError("first is broken")
                rows.append({"case": case})
        return {"rows": rows}

    monkeypatch.setitem(report.PARTS, "rates", (10.0, broken))
    monkeypatch.setitem(report.PARTS, "losses", (10.0, one_case_fails))
    code, record = run("--parts", "rates", "losses")
    assert code == 1
    assert "no such thing" in record["parts"]["rates"]["faults"]["rates"]
    assert record["parts"]["losses"]["rows"] == [{"case": "second"}]
    printed = capsys.readouterr().out
    assert "FAULT in rates" in printed
    assert "first is broken" in printed


def test_what_is_beyond_its_time_is_skipped_by_name(report, run, monkeypatch):
    clock_class = report.Clock
    now = [0.0]
    monkeypatch.setattr(sys.modules["report_parts"].time, "monotonic", lambda: now[0])

    def slow(setting, clock):
        rows = []
        for case in clock.within(["first", "second", "third"]):
            rows.append({"case": case})
            now[0] += 6.0
        return {"rows": rows}

    for name in ("rates", "losses", "step"):
        monkeypatch.setitem(report.PARTS, name, (10.0, slow))
    code, record = run("--parts", "rates", "losses", "step", "--seconds", "17")
    assert code == 0
    rates, losses, step = (record["parts"][name] for name in ("rates", "losses", "step"))
    assert [row["case"] for row in rates["rows"]] == ["first", "second"]
    assert rates["skipped"] == {"third": "the 10 s of the part were over"}
    assert set(losses["skipped"]) == {"second", "third"}
    assert step["skipped"] == {"step": "no time was left"}
    assert clock_class(1.0).left == 1.0


def test_what_was_found_is_on_disk_before_the_next_part(report, run, monkeypatch, tmp_path):
    seen = []

    def first(setting, clock):
        return {"rows": [{"case": "a"}]}

    def second(setting, clock):
        seen.append(json.loads((tmp_path / "g.json").read_text()))
        return {}

    monkeypatch.setitem(report.PARTS, "rates", (10.0, first))
    monkeypatch.setitem(report.PARTS, "losses", (10.0, second))
    run("--parts", "losses", "rates")  # in the order of importance, however they are named
    assert seen[0]["parts"]["rates"]["rows"] == [{"case": "a"}]


def test_memory_that_is_too_small_skips_a_case(report):
    clock = report.Clock(10.0)
    with clock.case("large"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert clock.skipped == {"large": "it does not fit the memory of the GPU"}
    assert clock.faults == {}


def test_losses_of_others_are_called_as_they_want(report, monkeypatch):
    comparisons = importlib.import_module("gpu_comparisons")

    def cut(e, c, targets):
        return "cut", e, c, targets

    packages = {
        "liger_kernel": SimpleNamespace(),
        "liger_kernel.transformers": SimpleNamespace(
            LigerFusedLinearCrossEntropyLoss=lambda: (
                lambda lin_weight, _input, target: (
                    "liger",
                    _input,
                    lin_weight,
                    target,
                )
            )
        ),
        "cut_cross_entropy": SimpleNamespace(linear_cross_entropy=cut),
    }
    monkeypatch.setattr(comparisons, "find_spec", lambda name: packages.get(name))
    monkeypatch.setattr(comparisons, "import_module", lambda name: packages[name])
    found = comparisons._others(torch.device("cuda"))
    assert found["Liger"]("hidden", "weight", "labels") == ("liger", "hidden", "weight", "labels")
    assert found["cut cross-entropy"]("hidden", "weight", "labels") == ("cut", "hidden", "weight", "labels")
    monkeypatch.setattr(comparisons, "find_spec", lambda name: None)
    found = comparisons._others(torch.device("cuda"))
    assert found["Liger"] == "liger_kernel is not installed"
    assert found["cut cross-entropy"] == "cut_cross_entropy is not installed"


def test_torch_without_its_own_loss(report, monkeypatch):
    comparisons = importlib.import_module("gpu_comparisons")
    monkeypatch.delattr(comparisons.F, "linear_cross_entropy", raising=False)
    found = comparisons._others(torch.device("cpu"))
    assert found["torch"] == found["torch, chunked"] == f"torch {torch.__version__} has none"


def test_kernels_against_pytorch(report, setting, monkeypatch):
    """Where there are none: that the same results are nothing apart, and what is chosen when."""
    comparisons = importlib.import_module("gpu_comparisons")
    launching = importlib.import_module("mce_llm.lm.kernels.launching")
    monkeypatch.delenv(launching.VARIABLE, raising=False)
    inputs = sys.modules["report_parts"].problem(8, 200, 16, torch.float32, torch.device("cpu"))
    found = comparisons._with_and_without("token", inputs, setting)
    assert found["dH_apart"] == found["dW_apart"] == 0
    assert found["against_pytorch"] > 0
    with comparisons._by_pytorch():
        assert launching.chosen() == "torch"
    assert launching.chosen() == "auto"
    with pytest.raises(sys.modules["report_parts"].Skipped, match="need a GPU"):
        comparisons.kernels(setting, report.Clock(1.0))


def test_waits_are_warnings_of_pytorch_by_place(report, monkeypatch):
    checks = importlib.import_module("gpu_checks")
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call():
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    seen = checks._seen_waits(call)
    assert dict(seen) == {f"{Path(__file__).name}:{call.__code__.co_firstlineno + 3}": 2}
    assert modes == ["warn", "default"]

    def failing():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        checks._seen_waits(failing)
    assert modes == ["warn", "default"] * 2


def test_a_step_that_fails_or_takes_too_long(report, setting, monkeypatch):
    comparisons = importlib.import_module("gpu_comparisons")
    monkeypatch.setattr(comparisons.sys, "executable", sys.executable)
    ended = subprocess.CompletedProcess([], 3, "", "no model fits")
    monkeypatch.setattr(comparisons.subprocess, "run", lambda *args, **kwargs: ended)
    with pytest.raises(RuntimeError, match="ended with 3:\nno model fits"):
        comparisons.step(setting, report.Clock(5.0))

    def late(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(comparisons.subprocess, "run", late)
    with pytest.raises(sys.modules["report_parts"].Skipped, match="did not end within 5 s"):
        comparisons.step(setting, report.Clock(5.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "on a CPU the full sizes take hours; add --quick"),
        (["--parts", "speed"], "invalid choice: 'speed'"),
        (["--device", "gpu"], "'gpu' is no device; cpu or cuda, say"),
        (["--seconds", "0"], "expected a positive integer, got '0'"),
    ],
)
def test_wrong_arguments(report, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        report.parse(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_what_to_do(report, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        report.parse([])
    assert "--device cpu --quick tries the script" in capsys.readouterr().err
