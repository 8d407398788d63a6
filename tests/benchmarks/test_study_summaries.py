"""What the summaries of runs say beside the tables: means over seeds, differences over those that both have."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.scripts import load_script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
VALUES = {("ce", 1): 0.5, ("ce", 2): 0.7, ("a", 1): 0.6, ("a", 2): 0.65, ("b", 2): 0.4, ("b", 3): 9.0}


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script("benchmarks/study_summaries.py").beside


def study():
    arms = [SimpleNamespace(name=name) for name in ("ce", "a", "b", "c")]
    return SimpleNamespace(arms=arms, baseline=arms[0], evaluations=[SimpleNamespace(name="likely")])


def run(value, **groups):
    summary = {"groups": {name: {"nats_per_token": of} for name, of in groups.items()}}
    summary["calibration_error"] = {"numbers": value, "all": value}
    return SimpleNamespace(evaluations={"likely": {"summary": summary}})


def test_differences_are_over_the_seeds_that_both_have(beside):
    lines = beside(study(), {key: run(value, words=value) for key, value in VALUES.items()})
    assert lines[0] == "**Likely: described beside it**"
    table = "\n".join(lines)
    assert "| measure | ce | a | b | c |" in table
    cells = "0.6000 | +0.0250 (1 of 2) | −0.3000 (0 of 1) | – |"
    assert f"| nats per token of words | {cells}" in table
    assert f"| expected calibration error, numbers | {cells}" in table
    assert "final answers" not in table  # which these solutions do not mark


def test_nothing_is_said_without_the_baseline_or_of_answers(beside):
    assert beside(study(), {("a", 1): run(0.5)}) == []
    judged = SimpleNamespace(evaluations={"likely": {"summary": {"accuracy": 0.5}}})
    assert beside(study(), {("ce", 1): judged, ("a", 1): judged}) == []
