"""The simulation behind the choice of intervals: its made-up models are as it says, and it runs as a user runs it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("interval_coverage_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("suited", [0.0, 0.2])
def test_the_made_up_models_are_as_described(benchmark, suited):
    generator = np.random.default_rng(0)
    drawn = [benchmark.draw_answers(generator, 2, 1000, 0.01, suited) for _ in range(400)]
    a, b = (np.stack([row[side] for row in drawn]).astype(float) for side in (0, 1))
    # 400,000 questions, but 800 seeds of 1 point: means are known to 0.1 points.
    assert a.mean() == pytest.approx(benchmark.ACCURACY, abs=0.004)
    assert (b - a).mean() == pytest.approx(benchmark.EFFECT, abs=0.004)
    # Questions answered anew are discordant like two unrelated answers, 2 · 0.7 · 0.3; B's gain takes half a point off.
    expected = (1 - suited) * benchmark.DISCORDANCE + suited * 0.42
    assert (a != b).mean() == pytest.approx(expected, abs=0.008)
    # The seeds move the difference by what is said, beside what single answers do.
    per_seed = (b - a).mean(axis=2)
    between = (per_seed[:, 0] - per_seed[:, 1]).var() / 2
    # Within a question the two seeds share its chances: var(d) less what they have in common.
    shared = np.mean((b - a)[:, 0] * (b - a)[:, 1])
    assert between - (np.mean((b - a) ** 2) - shared) / 1000 == pytest.approx(1e-4, rel=0.25)
    assert np.mean([given for *_, given in drawn]) == pytest.approx(benchmark.EFFECT, abs=0.002)


def test_a_few_repeats(benchmark, capsys, tmp_path):
    """Three seeds that differ much: ours covers, one pair and the plain bootstrap promise too much."""
    words = [
        "--repeats",
        "150",
        "--resamples",
        "200",
        "--seeds",
        "3",
        "--questions",
        "300",
        "--seed-sd",
        "0",
        "3",
    ]
    benchmark.main([*words, "--json", str(tmp_path / "c.json")])
    printed = capsys.readouterr().out
    assert "noise: coverage in %" in printed
    assert "suited: coverage in %" in printed
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * len(benchmark.METHODS)
    found = {(row["kind"], row["seed_sd"], row["method"]): row for row in rows}
    for kind in ("noise", "suited"):
        # The standard error of 150 trials at 95 % is 1.8 points.
        assert found[kind, 3, "ours"]["coverage"] >= 0.91
        assert found[kind, 0, "ours"]["coverage"] >= 0.91
        assert found[kind, 0, "Wilson"]["coverage"] >= 0.88
        assert found[kind, 3, "its models"]["coverage"] >= 0.88
        assert found[kind, 3, "one pair"]["coverage"] < 0.88
        assert found[kind, 3, "ours"]["width"] > found[kind, 3, "bootstrap"]["width"]
        assert found[kind, 3, "Wilson"]["coverage"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--resamples", "10"], "--resamples must be at least 100, got 10"),
        (["--seeds", "1"], "must be at least 2: one has no spread"),
        (["--seed-sd", "5"], "--seed-sd must be between 0 and 3 points"),
        (["--kind", "some"], "invalid choice: 'some'"),
    ],
)
def test_wrong_arguments(benchmark, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
