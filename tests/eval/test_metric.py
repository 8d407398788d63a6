"""The `evaluate` metric."""

import pytest

from mce_llm.eval import load_metric, wilson_interval
from mce_llm.eval.answers import GoldAnswerError
from mce_llm.eval.metric import METRIC_PATH


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_CACHE", str(tmp_path))
    return load_metric()


def test_counts(metric):
    result = metric.compute(
        predictions=["#### 18", "so 18 dollars", "The answer is: 1,234.00", "none", "\\boxed{5}"],
        references=["18", "3*6=<<3*6=18>>18\n#### 18", "1234", "0", "6"],
    )
    low, high = wilson_interval(3, 5)
    assert result == {
        "accuracy": 0.6,
        "correct": 3,
        "n": 5,
        "interval_low": low,
        "interval_high": high,
        "fallback": 1,
        "no_answer": 1,
    }


def test_added_in_batches(metric):
    metric.add_batch(predictions=["#### 1", "#### 2"], references=["1", "3"])
    metric.add(prediction="#### 4", reference="4")
    assert metric.compute()["correct"] == 2


def test_bad_reference(metric):
    with pytest.raises(GoldAnswerError, match="is not one number"):
        metric.compute(predictions=["#### 1"], references=["one"])


def test_lies_where_evaluate_looks_for_it():
    assert (METRIC_PATH / f"{METRIC_PATH.name}.py").is_file()
