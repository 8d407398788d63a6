"""The simulation behind the intervals of measures: what it draws is as it says, and it runs as a user runs it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "measure_coverage.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("measure_coverage_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_all_forms_have_mean_0_and_variance_1(benchmark):
    generator = np.random.default_rng(0)
    for name, draw in benchmark.FORMS.items():
        values = draw(generator, (2_000_000,))
        assert values.mean() == pytest.approx(0, abs=0.004), name
        # The fourth moment of the lognormal is 111: its variance is known to 0.7 % here.
        assert values.var() == pytest.approx(1, abs=0.04), name


def test_calibration_has_the_gap_that_it_says(benchmark):
    generator = np.random.default_rng(1)
    n = 60_000
    bins = benchmark.draw_calibration(generator, n, 0.03, generator.uniform(-0.1, 0.1, n))
    tokens = bins["tokens"].sum(axis=0)
    assert bins["tokens"].sum(axis=1) == pytest.approx(np.full(n, benchmark.TOKENS))
    gaps = (bins["confidence"] - bins["top1"]).sum(axis=0) / tokens
    assert gaps[5:] == pytest.approx(np.full(10, 0.03), abs=0.005)


def test_a_few_repeats(benchmark, capsys, tmp_path):
    words = ["--repeats", "60", "--holm-repeats", "5", "--ece-repeats", "25", "--resamples", "200"]
    words += ["--seeds", "1", "3", "--questions", "60", "--seed-sd", "0", "10"]
    benchmark.main([*words, "--json", str(tmp_path / "c.json")])
    printed = capsys.readouterr().out
    for title in ("difference: coverage in %", "holm: any false finding", "ece: coverage of the true"):
        assert title in printed
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    found = {
        (row["form"], row["seeds"], row["seed_sd"], row["method"]): row
        for row in rows
        if row["part"] == "difference"
    }
    # The standard error of 60 trials at 95 % is 2.8 points.
    assert found["normal", 3, 10, "ours"]["coverage"] >= 0.87
    assert found["normal", 3, 10, "pooled t"]["coverage"] < 0.6  # takes seeds for nothing
    assert found["normal", 1, 10, "μ"]["coverage"] < 0.5  # one seed knows nothing of others
    assert found["skewed", 1, 0, "ours"]["width"] > found["skewed", 1, 0, "Student"]["width"]
    errors = {(row["kind"], row["seeds"], row["method"]): row for row in rows if row["part"] == "ece"}
    assert errors["one calibrated", 1, "ece"]["bias_of_b"] > 0.015
    assert abs(errors["both calibrated", 1, "ece_debiased"]["bias_of_b"]) < 0.01
    assert all(0 <= row["corrected"] <= row["uncorrected"] <= 1 for row in rows if row["part"] == "holm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "must be at least 1"),
        (["--resamples", "10"], "--resamples must be at least 100, got 10"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--questions", "1"], "--questions at least 2"),
        (["--seed-sd", "-1"], "--seed-sd must be at least 0"),
        (["--part", "some"], "invalid choice: 'some'"),
    ],
)
def test_wrong_arguments(benchmark, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
