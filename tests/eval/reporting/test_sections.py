"""Which run is A and which is B, and when nothing is compared."""

import pytest

from helpers.evaluations import outcomes, write_run
from helpers.trainings import write_training
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.sections import arrange, trainings

A, B = outcomes(4, 1, 2, 3)
TWO_PAIRS = ([0, 2], [("mce", [1, 3])])


@pytest.fixture
def runs(tmp_path):
    """Write runs of these names; A and B by turns."""

    def write(*names, **settings):
        return [
            write_run(tmp_path / name, B if place % 2 else A, model=name, **settings)
            for place, name in enumerate(names)
        ]

    return write


def tags(section):
    return [(member.look.tag, member.look.name) for member in section.members]


def test_one_run_is_compared_with_nothing(runs):
    (section,) = arrange(read_sources(runs("ce")))
    assert section.comparison is None
    assert "one run on GSM8K only" in section.not_compared
    assert tags(section) == [("run 1", "ce")]
    assert section.pairs == []


def test_two_runs_are_a_and_b(runs):
    (section,) = arrange(read_sources(runs("ce", "mce")))
    assert tags(section) == [("A", "ce"), ("B", "mce")]
    assert [member.look.colour for member in section.members] == ["arm-a", "arm-b"]
    assert section.comparison.pairs[0].counts.only_b == 2
    assert section.not_compared is None


def test_four_runs_are_two_pairs(runs):
    (section,) = arrange(read_sources(runs("ce1", "mce1", "ce2", "mce2")), groups=TWO_PAIRS)
    assert tags(section) == [("A1", "ce1"), ("B1", "mce1"), ("A2", "ce2"), ("B2", "mce2")]
    assert [[member.look.name for member in pair] for pair in section.pairs] == [
        ["ce1", "mce1"],
        ["ce2", "mce2"],
    ]
    assert section.members[0].look.line != section.members[2].look.line


def test_runs_that_nothing_is_known_of_are_shown_and_not_compared(runs):
    (section,) = arrange(read_sources(runs("ce", "mce", "other")))
    assert section.comparison is None
    assert "not clear which of 3 runs are held against which" in section.not_compared
    looks = [member.look for member in section.members]
    assert len({look.colour for look in looks}) == 3
    assert not {look.colour for look in looks} & {"arm-a", "arm-b"}


def test_no_comparison_where_none_is_wanted(runs):
    (section,) = arrange(read_sources(runs("ce", "mce")), pair=False)
    assert section.comparison is None
    assert "--no-pair" in section.not_compared


def test_tasks_have_sections_of_their_own(tmp_path):
    for name, right in (("ce", A), ("mce", B)):
        write_training(tmp_path / name)
        write_run(tmp_path / name / "eval" / "gsm8k", right, model=name)
        write_run(tmp_path / name / "eval" / "math", right, model=name, task="math")
    sources = read_sources([tmp_path / "ce", tmp_path / "mce"])
    sections = arrange(sources)
    assert [section.title for section in sections] == ["GSM8K", "MATH"]
    assert all(tags(section) == [("A", "ce"), ("B", "mce")] for section in sections)
    assert [look.label for look, _ in trainings(sources, sections)] == ["A · ce", "B · mce"]


def test_evaluations_of_two_tasks_given_one_by_one(runs, tmp_path):
    math = [write_run(tmp_path / "math" / name, A, model=name, task="math") for name in ("ce", "mce")]
    gsm8k = runs("ce", "mce")
    sections = arrange(read_sources([gsm8k[0], math[0], gsm8k[1], math[1]]))
    assert [section.task for section in sections] == ["gsm8k", "math"]
    assert all(tags(section) == [("A", "ce"), ("B", "mce")] for section in sections)


def test_a_training_without_an_evaluation_leaves_the_order_open(tmp_path):
    """The two that are there would be B of one pair and A of the next."""
    for place, name in enumerate(("ce1", "mce1", "ce2", "mce2")):
        write_training(tmp_path / name)
        write_run(tmp_path / name / "eval", B if place % 2 else A, model=name)
        if name in ("mce1", "ce2"):
            write_run(tmp_path / name / "math", A, task="math", model=name)
    sources = read_sources([tmp_path / name for name in ("ce1", "mce1", "ce2", "mce2")])
    gsm8k, math = arrange(sources, groups=TWO_PAIRS)
    assert gsm8k.comparison is not None
    assert math.comparison is None
    assert "ce1 has no evaluation on MATH" in math.not_compared


def test_runs_of_other_settings_are_not_compared_unless_asked_for(tmp_path):
    folders = [
        write_run(tmp_path / "a", A, model="a"),
        write_run(tmp_path / "b", B, model="b", max_new_tokens=64),
    ]
    sources = read_sources(folders)
    (section,) = arrange(sources)
    assert section.comparison is None
    assert "max_new_tokens" in section.not_compared
    (section,) = arrange(sources, allow_differences=True)
    assert [mismatch.key for mismatch in section.comparison.mismatches] == ["decoding"]


def test_other_questions_are_never_compared(tmp_path):
    folders = [write_run(tmp_path / "a", A), write_run(tmp_path / "b", B[:-1], model="b")]
    (section,) = arrange(read_sources(folders), allow_differences=True)
    assert "same questions" in section.not_compared


@pytest.mark.parametrize(
    ("names", "settings", "pattern"),
    [
        (["ce"], {}, "one run on GSM8K only"),
        (["ce", "mce", "other"], {}, "not clear which of 3 runs"),
    ],
)
def test_pair_insists(runs, names, settings, pattern):
    with pytest.raises(EvaluationError, match=pattern):
        arrange(read_sources(runs(*names, **settings)), pair=True)


def test_pair_insists_on_evaluations(tmp_path):
    with pytest.raises(EvaluationError, match="none of these folders holds one"):
        arrange(read_sources([write_training(tmp_path / "ce")]), pair=True)


def test_a_training_behind_two_evaluations_is_there_once(tmp_path):
    write_training(tmp_path / "ce")
    folders = [
        write_run(tmp_path / "ce" / "gsm8k", A),
        write_run(tmp_path / "ce" / "math", A, task="math"),
    ]
    sources = read_sources(folders)
    assert len(trainings(sources, arrange(sources))) == 1


def test_an_unknown_training_is_not_left_out(runs):
    sources = read_sources(runs("ce", "mce"))
    assert [training for _, training in trainings(sources, arrange(sources))] == [None, None]
