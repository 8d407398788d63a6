"""What is kept of a finished evaluation: values of every different question, in six digits, and what they were made with."""

import pytest

from helpers.evaluations import write_run
from mce_llm.errors import MceLlmError
from mce_llm.eval.errors import EvaluationError
from mce_llm.studies.evaluators import EVALUATORS, option_words, read_answers, read_likelihoods


def test_scores_of_different_questions(tmp_path):
    """Three samples a question; the first and the last question are copies of each other."""
    correct = [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    questions = ["How many?", "What?", " How  many? "]
    outcome = read_answers(write_run(tmp_path / "run", correct, temperature=0.5, questions=questions))
    assert outcome.values == {"score": [0.5, 0]}
    assert outcome.questions["count"] == 2
    assert outcome.questions["asked"] == 3
    assert outcome.hashes["task"] == "gsm8k"
    assert set(outcome.hashes) == {"task", "dtype", "prompt", "data", "decoding", "model"}
    assert outcome.summary["n"] == 3
    assert outcome.summary["accuracy"] == pytest.approx(1 / 3)
    assert outcome.versions["torch"] == "2.9.0"


def test_six_digits(tmp_path):
    outcome = read_answers(write_run(tmp_path / "run", [[1, 0, 0]], temperature=0.5))
    assert outcome.values == {"score": [0.333333]}


def test_the_order_of_questions_is_part_of_the_hash(tmp_path):
    one, two = (
        read_answers(write_run(tmp_path / name, [1, 0], questions=questions)).questions["hash"]
        for name, questions in (("one", ["a", "b"]), ("two", ["b", "a"]))
    )
    assert one != two


def test_what_is_no_evaluation_of_that_kind_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="it is an evaluation of answers"):
        read_likelihoods(write_run(tmp_path / "run", [1, 0]))
    with pytest.raises(EvaluationError, match="there is no such directory"):
        read_answers(tmp_path / "none")


def test_every_script_is_there_with_options_of_its_own():
    from helpers.scripts import ROOT

    for evaluator in EVALUATORS.values():
        assert (ROOT / evaluator.script).is_file()
        assert evaluator.measures
        options = evaluator.parse({"data": "x.jsonl", "limit": 3})
        assert options.limit == 3
        assert options.recorded()["data"] == "x.jsonl"
        with pytest.raises(MceLlmError, match="limits"):
            evaluator.parse({"limits": 3})


def test_options_as_people_write_them():
    settings = {"data": "a b.jsonl", "overwrite": True, "seed": -1, "columns": {"question": "q"}}
    assert option_words(settings) == [
        *("--data", "a b.jsonl", "--overwrite", "true", "--seed=-1"),
        *("--columns", '{"question": "q"}'),
    ]
