"""Evaluations of both kinds, read by what they say they are; and refused beside each other."""

import pytest

from helpers.evaluations import write_run
from helpers.likelihoods import likelihood_items, write_likelihood
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.saved import SavedLikelihood
from mce_llm.eval.saved_evaluations import check_one_kind, read_evaluation
from mce_llm.eval.saved_runs import SavedRun


@pytest.fixture
def both(tmp_path):
    return [
        read_evaluation(write_run(tmp_path / "ce" / "gsm8k", [True, False])),
        read_evaluation(write_likelihood(tmp_path / "mce" / "likelihood", likelihood_items(2))),
    ]


def test_each_by_its_kind(both):
    assert [type(run) for run in both] == [SavedRun, SavedLikelihood]
    check_one_kind(both[:1] * 2)
    check_one_kind(both[1:] * 2)


def test_both_kinds_beside_each_other(both):
    with pytest.raises(
        EvaluationError, match="ce are evaluations of answers, mce of likelihoods; give those of one"
    ):
        check_one_kind(both)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no evaluation"), ("[1]", "must hold a JSON object"), ("{", "cannot be read"), ('{"task": "x"}', "hashes|prompt, data")],
)  # fmt: skip
def test_what_is_no_evaluation(tmp_path, content, message):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match=message):
        read_evaluation(tmp_path)
