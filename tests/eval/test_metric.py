"""The `evaluate` metric."""

import pytest

from mce_llm.eval import EvaluationError, load_metric, wilson_interval
from mce_llm.eval.answers import GoldAnswerError
from mce_llm.eval.engines.decoding import Generation
from mce_llm.eval.metric import METRIC_NAMES, METRICS_FOLDER
from mce_llm.eval.tasks import GSM8K, MATH


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_CACHE", str(tmp_path))
    return load_metric


@pytest.fixture
def metric(load):
    return load()


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
        "still_thinking": 0,
    }


def test_added_in_batches(metric):
    metric.add_batch(predictions=["#### 1", "#### 2"], references=["1", "3"])
    metric.add(prediction="#### 4", reference="4")
    assert metric.compute()["correct"] == 2


def test_bad_reference(metric):
    with pytest.raises(GoldAnswerError, match="is not one number"):
        metric.compute(predictions=["#### 1"], references=["one"])


SOLUTIONS = {
    "gsm8k": [
        ("#### 18", "3*6=18\n#### 18"),
        ("The answer is: 1,080.00", "1080"),
        ("so 5", "5"),
        ("The answer is 32.5", "32"),
        ("?", "1"),
    ],
    "math": [
        (r"so $\boxed{\sqrt{3}/2}$", r"\frac{\sqrt{3}}{2}"),
        ("The answer is: (2,1)", "(1,2)"),
        (r"it is $\frac{1}{2}$", "0.5"),
        (r"\boxed{3.14159}", r"\pi"),
        ("?", "1"),
    ],
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_gives_the_numbers_of_the_runs(load, name):
    """Each generation is judged by the task of `eval/gsm8k.py` and `eval/hendrycks_math.py`, and all of them by the metric."""
    if name == "math":
        pytest.importorskip("math_verify")
    items = [
        {"gsm8k": GSM8K, "math": MATH}[name].judge(
            {"question": "?", "answer": gold},
            Generation(index=n, sample=0, text=text, finished="eos", n_tokens=1),
        )
        for n, (text, gold) in enumerate(SOLUTIONS[name])
    ]
    result = load(f"{name}_accuracy").compute(
        predictions=[text for text, _ in SOLUTIONS[name]], references=[gold for _, gold in SOLUTIONS[name]]
    )
    assert result["correct"] == sum(item["correct"] for item in items) == (3 if name == "gsm8k" else 2)
    assert result["fallback"] == sum(item["found_by"] == "last_number" for item in items) == 1
    assert result["no_answer"] == sum(item["found_by"] == "none" for item in items) == 1
    assert result["n"] == 5


def test_unknown_metric(load):
    with pytest.raises(
        EvaluationError, match=r"unknown metric 'math_accurcy' \(did you mean 'math_accuracy'\?\)"
    ):
        load("math_accurcy")


def test_lie_where_evaluate_looks_for_them():
    assert METRIC_NAMES == ("gsm8k_accuracy", "math_accuracy")
    assert all((METRICS_FOLDER / name / f"{name}.py").is_file() for name in METRIC_NAMES)
