"""Likelihoods in a report: their sections and arms, beside answers, and when nothing is compared."""

import pytest

from helpers.evaluations import write_run
from helpers.likelihoods import likelihood_items, write_likelihood
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.likelihood_sections import arrange_likelihoods
from mce_llm.eval.reporting.sections import arrange, trainings


@pytest.fixture
def runs(tmp_path):
    """Write likelihoods of these names."""

    def write(*names, below="", **settings):
        return [
            write_likelihood(
                tmp_path / name / below, likelihood_items(20, seed=place), model=name, **settings
            )
            for place, name in enumerate(names)
        ]

    return write


def test_two_runs_are_a_and_b(runs):
    (section,) = arrange_likelihoods(read_sources(runs("ce", "mce")))
    assert (section.key, section.title) == ("gsm8k-likelihood", "GSM8K: likelihood")
    assert [(member.look.tag, member.look.name) for member in section.members] == [("A", "ce"), ("B", "mce")]
    assert section.comparison.runs[1].values["all.nats"] == pytest.approx(
        section.members[1].run.summary["groups"]["all"]["nats_per_token"]
    )


def test_all_arms_stand_in_one_section(runs):
    sources = read_sources(runs("ce-1", "ce-2", "mce-1", "mce-2", "emo-1", "emo-2"))
    groups = ([0, 1], [("mce", [2, 3]), ("emo", [4, 5])])
    (section,) = arrange_likelihoods(sources, groups=groups)
    assert [member.look.label for member in section.members] == [
        "A1 · ce-1", "B1 · mce-1", "C1 · emo-1", "A2 · ce-2", "B2 · mce-2", "C2 · emo-2",
    ]  # fmt: skip
    assert [[member.look.name for member in side] for side in section.sides] == [
        ["ce-1", "ce-2"], ["mce-1", "mce-2"], ["emo-1", "emo-2"],
    ]  # fmt: skip
    looks = [look.label for look, _ in trainings(sources, [section])]
    assert sorted(looks) == sorted(member.look.label for member in section.members)


def test_answers_and_likelihoods_below_one_training(runs, tmp_path):
    runs("ce", "mce", below="likelihood")
    for name in ("ce", "mce"):
        write_run(tmp_path / name / "gsm8k", [True, name == "mce"] * 10, model=name)
    sources = read_sources([tmp_path / "ce", tmp_path / "mce"])
    (answers,) = arrange(sources)
    (likelihoods,) = arrange_likelihoods(sources)
    assert answers.comparison is not None
    assert likelihoods.comparison is not None
    assert answers.key != likelihoods.key


def test_one_run_and_runs_that_differ(runs):
    (section,) = arrange_likelihoods(read_sources(runs("one")))
    assert "one run on GSM8K: likelihood only" in section.not_compared
    assert [[member.look.tag for member in side] for side in section.sides] == [["run 1"]]
    pair = [*runs("ce"), *runs("mce", dtype="float32")]
    (section,) = arrange_likelihoods(read_sources(pair))
    assert "differ in dtype" in section.not_compared
    assert section.comparison is None
    for options in ({"pair": True}, {"groups": ([0], [(None, [1])])}):
        with pytest.raises(EvaluationError, match="GSM8K: likelihood: mce cannot be compared with ce"):
            arrange_likelihoods(read_sources(pair), **options)
    (section,) = arrange_likelihoods(read_sources(pair), allow_differences=True)
    assert [mismatch.key for mismatch in section.comparison.mismatches] == ["dtype"]
    (section,) = arrange_likelihoods(read_sources(pair), pair=False)
    assert "not wanted" in section.not_compared


def test_likelihoods_alone_may_be_compared_by_force(runs):
    sources = read_sources(runs("ce", "mce"))
    assert arrange(sources, pair=True) == []
    assert len(arrange_likelihoods(sources, pair=True)) == 1
