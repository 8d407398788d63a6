"""The monitoring benchmark runs as a user runs it, and its arithmetic is that of its docstring."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "monitoring.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("monitoring_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_due_is_spread_over_the_steps_in_between(benchmark):
    cases = {"throughput": [0.1, 1.1], "spectra": [0.0, 50.0], "lines in the terminal": [0.2, 2.2]}
    rows = [{"case": name, "inside": seen, "outside": seen} for name, seen in cases.items()]
    rows.append({"case": "all", "inside": [0.3, 53.3], "outside": [0.3, 53.3]})
    found = [benchmark.ratios(row, rows, step=10.0)["inside_ratio"] for row in rows]
    expected = [0.1 + 1 / 10, 50 / 100, 0.2 + 2 / 10, 0.3 + 3 / 10 + 50 / 100]
    assert found == pytest.approx([1 + added / 10 for added in expected])


@pytest.mark.slow
def test_whole_run(tmp_path):
    arguments = ["--batch", "1", "--length", "8", "--repeats", "1", "--json", str(tmp_path / "m.json")]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["throughput", "spectra", "lines in the terminal", "all"]
    spectra = rows[1]["inside"]
    assert spectra[1] > 5 * spectra[0] >= 0
