"""Saved likelihoods compared: values as their summaries have them, arms by records, copies, refusals, notes."""

import json

import numpy as np
import pytest

from helpers.likelihoods import likelihood_items, write_likelihood
from helpers.trainings import write_training
from mce_llm.eval.comparing import measures
from mce_llm.eval.comparing.likelihoods import compare_likelihoods
from mce_llm.eval.comparing.measure_comparison import compare_measure
from mce_llm.eval.comparing.measures import measure_named
from mce_llm.eval.comparing.pairing import arrange_groups, arrange_runs
from mce_llm.eval.comparing.question_values import TokenSums
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.items import CALIBRATED, GROUPS, SUMS
from mce_llm.eval.likelihood.saved import SavedLikelihood


@pytest.fixture
def make(tmp_path):
    """Write likelihoods and read them back; `items` are options of `likelihood_items`."""

    def write(name, seed=0, items=None, **settings):
        made = items if isinstance(items, list) else likelihood_items(seed=seed, **(items or {}))
        folder = tmp_path / name / "likelihood"
        return SavedLikelihood.read(write_likelihood(folder, made, **{"model": name, **settings}))

    return write


def outcome(comparison, name):
    return next(each for each in comparison.measures if each.measure.name == name)


def test_the_format_is_that_of_the_evaluation():
    (item,) = likelihood_items(1)
    assert tuple(item["groups"]) == tuple(GROUPS)
    assert tuple(item["groups"]["all"]) == SUMS
    assert tuple(item["calibration"]) == CALIBRATED
    assert tuple(measures.GROUPS) == tuple(GROUPS)


def test_two_runs_by_every_measure(make):
    ce, mce = make("ce", 1), make("mce", 2, {"shift": -0.2, "sharpness": 0.1})
    found = compare_likelihoods(arrange_runs([ce, mce]), primary="answer.nats", smallest_difference=0.05)
    assert [run.tag for run in found.runs] == ["A", "B"]
    assert found.measures[0].measure.name == "answer.nats"
    assert found.measures[0].primary
    assert len(found.measures) == 19
    for run, told in zip((ce, mce), found.runs, strict=True):
        for group, pooled in run.summary["groups"].items():
            assert told.values[f"{group}.nats"] == pytest.approx(pooled["nats_per_token"])
            assert told.values[f"{group}.top1"] == pytest.approx(pooled["top1"])
            assert told.values[f"{group}.entropy"] == pytest.approx(pooled["entropy"])
        for group, error in run.summary["calibration_error"].items():
            assert told.values[f"{group}.ece"] == pytest.approx(error)
    measure = measure_named("numbers.nats")
    a, b = (TokenSums.of(run.items).contributions(measure) for run in (ce, mce))
    (alone,) = compare_measure(measure, {1: a}, {"B (mce)": {1: b}}, baseline_name="A (ce)").arms
    assert outcome(found, "numbers.nats").arms == (alone,)
    assert alone.finding == "better"
    assert "B (mce) is better than A (ce)" in found.verdict
    assert "final answer (the primary measure)" in found.verdict
    assert not any("named as primary" in note.text for note in found.notes)
    assert json.loads(json.dumps(found.to_dict()))["measures"][0]["arms"][0]["name"] == "B (mce)"


def test_questions_that_differ_most_stand_at_the_ends(make):
    ce, mce = make("ce", 1), make("mce", 2)
    (arm,) = compare_likelihoods(arrange_runs([ce, mce]), primary="answer.nats").arms
    assert len(arm.questions) == 40
    differences = [question.difference for question in arm.questions]
    assert differences == sorted(differences)
    first = arm.questions[0]
    a, b = (run.items[first.index]["groups"]["answer"]["nats"] for run in (ce, mce))
    assert (first.a, first.b, first.tokens) == (a, b, 2)
    assert first.question == f"How many are {first.index} and {first.index}?"


def test_arms_and_seeds_as_their_trainings_recorded_them(make, tmp_path):
    runs = []
    trained = (("x", 0.0, 1), ("y", 0.5, 2), ("z", 0.5, 1), ("w", 0.0, 2))
    for place, (name, weight, seed) in enumerate(trained):
        folder = write_training(
            tmp_path / "models" / name, weight=weight, recipe={"matrix_weight": weight, "seed": seed}
        )
        shift = -0.2 if weight else 0.0
        runs.append(make(name, place, {"shift": shift}, model=str(folder)))
    found = compare_likelihoods(arrange_runs(runs))
    assert [run.label for run in found.runs] == ["x", "z", "w", "y"]  # seed 1, seed 2
    assert [run.tag for run in found.runs] == ["A1", "B1", "A2", "B2"]
    assert outcome(found, "all.nats").arms[0].seeds == (1, 2)
    assert any("two training seeds hardly show" in note.text for note in found.notes)
    assert {setting.name for setting in found.trainings.settings} == {"loss", "seed"}


def test_several_arms_are_corrected(make):
    arms = [("mce", [make("mce", 3, {"shift": -0.2})]), ("emo", [make("emo", 5)])]
    found = compare_likelihoods(arrange_groups([make("ce", 1)], arms))
    assert [(arm.letter, arm.name) for arm in found.arms] == [("B", "B (mce)"), ("C", "C (emo)")]
    first, second = outcome(found, "all.nats").arms
    assert first.p_holm == pytest.approx(2 * first.p_value)
    assert (first.finding, second.finding) == ("better", "not told apart")
    assert "B (mce) is better than A (ce); C (emo) is not told apart" in found.verdict
    assert any("no measure was named as primary: 19 measures" in note.text for note in found.notes)


def test_copies_count_once(make):
    texts = [f"Question {k // 2}?" for k in range(40)]
    runs = [make(name, seed, {"questions": texts}) for name, seed in (("ce", 1), ("mce", 2))]
    found = compare_likelihoods(arrange_runs(runs))
    assert (found.n, found.asked) == (20, 40)
    assert outcome(found, "all.nats").n == 20
    assert any("40 questions were asked, and 20 of them are different" in note.text for note in found.notes)
    assert {question.copies for question in found.arms[0].questions} == {2}
    everything = likelihood_items(40, seed=1, questions=texts)
    nats = sum(item["groups"]["all"]["nats"] for item in everything)
    tokens = sum(item["groups"]["all"]["tokens"] for item in everything)
    assert found.runs[0].values["all.nats"] == pytest.approx(nats / tokens)  # all are asked as often


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float32"}, r"dtype \(dtype: 'bfloat16' in ce, 'float32' in mce\)"),
        ({"prompt": "alpaca"}, r"prompt \(name: 'metamath' in ce, 'alpaca' in mce"),
        ({"tokenizer": "other"}, r"scoring \(the tokens of the solutions: ce and mce have different tokenizers\)"),
        ({"items": {"n": 30}}, r"data \(questions: 40 in ce, 30 in mce"),
    ],
)  # fmt: skip
def test_runs_of_other_settings_are_refused_by_name(make, settings, message):
    with pytest.raises(EvaluationError, match=f"mce cannot be compared with ce: they differ in {message}"):
        compare_likelihoods(arrange_runs([make("ce", 1), make("mce", 2, **settings)]))


@pytest.mark.parametrize(
    ("settings", "helps"),
    [
        ({"dtype": "float32"}, True),
        ({"prompt": "alpaca"}, True),
        ({"data": "main"}, None),
        ({"tokenizer": "other"}, False),
        ({"items": {"n": 30}}, False),
    ],
)
def test_a_remedy_is_named_only_where_it_helps(make, settings, helps):
    """What is the same data by another name is no difference; other questions and tokens cannot be paired at all."""
    runs = arrange_runs([make("ce", 1), make("mce", 2, **settings)])
    if helps is None:
        assert compare_likelihoods(runs).n == 40
        return
    with pytest.raises(EvaluationError, match="Evaluate again with the same settings") as refused:
        compare_likelihoods(runs)
    assert ("--allow-differences compares them all the same" in str(refused.value)) == helps
    if helps:
        assert compare_likelihoods(runs, allow_differences=True).mismatches


def test_what_allowing_differences_allows(make):
    ce = make("ce", 1)
    found = compare_likelihoods(arrange_runs([ce, make("mce", 2, dtype="float32")]), allow_differences=True)
    assert [mismatch.key for mismatch in found.mismatches] == ["dtype"]
    assert any(note.level == "warning" and "differ in dtype" in note.text for note in found.notes)
    with pytest.raises(EvaluationError, match="did not answer the same questions"):
        compare_likelihoods(arrange_runs([ce, make("few", 2, {"n": 30})]), allow_differences=True)
    other = make("other", 2, {"data_seed": 5}, tokenizer="other")
    with pytest.raises(EvaluationError, match=r"ce and other have other tokens \(all: .*same tokenizer"):
        compare_likelihoods(arrange_runs([ce, other]), allow_differences=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest_difference": 0.1}, r"name that too \(--primary\)"),
        ({"primary": "all.nat"}, r"no measure 'all.nat' \(did you mean 'all.nats'"),
        ({"primary": "accuracy"}, "'accuracy' was not measured"),
        ({"primary": "all.nats", "smallest_difference": -1.0}, "must be above 0, got -1.0"),
        ({"primary": "all.top1", "smallest_difference": 1.0}, "below 1, got 1.0: it is a share"),
        (
            {"primary": "all.nat", "smallest_difference": float("nan")},
            "no measure 'all.nat'.*; the smallest difference that matters must be above 0, got nan",
        ),
        ({"smallest_difference": 0.0}, r"\(--primary\); the smallest difference .* got 0.0"),
    ],
)
def test_wrong_options(make, options, message):
    with pytest.raises(EvaluationError, match=message):
        compare_likelihoods(arrange_runs([make("ce", 1), make("mce", 2)]), **options)


def test_one_question_is_no_sample(make):
    texts = ["The same?"] * 6
    runs = [make(name, 1, {"n": 6, "questions": texts}) for name in ("ce", "mce")]
    with pytest.raises(EvaluationError, match=r"two different ones at least, and there is one \(6 copies\)"):
        compare_likelihoods(arrange_runs(runs))
    alone = [make(name, 1, {"n": 1}) for name in ("one", "other")]
    with pytest.raises(EvaluationError, match=r"two different ones at least, and there is one$"):
        compare_likelihoods(arrange_runs(alone))


def test_the_same_model_twice(make):
    same = likelihood_items(seed=1)
    found = compare_likelihoods(
        arrange_runs([make("ce", items=same, model="m"), make("again", items=same, model="m")])
    )
    assert any("are the same model, evaluated twice" in note.text for note in found.notes)
    assert np.all([each.arms[0].difference == 0 for each in found.measures])
    assert not any(each.arms[0].found for each in found.measures)
