"""results.jsonl: lines are whole, come back as they were, and are refused where they contradict each other."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.studies import answers_outcome, likelihood_outcome, result_line
from mce_llm.studies.errors import StudyError
from mce_llm.studies.results import Results


def write(folder, *lines):
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Results(folder, "small")


def line(arm="ce", seed=1, name="answers", **changed):
    return {**result_line(arm, seed, {name: answers_outcome([1, 0, 0.5], model=f"{arm}{seed}")}), **changed}


names = st.text("abcdefgh", min_size=1, max_size=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.dictionaries(
        st.tuples(names, st.integers(0, 10**9)),
        st.lists(st.floats(0, 1).map(lambda x: float(f"{x:.6g}")), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_added_comes_back(tmp_path, runs):
    (tmp_path / "results.jsonl").unlink(missing_ok=True)
    results = Results(tmp_path, "small")
    for (arm, seed), scores in runs.items():
        results.add(result_line(arm, seed, {"answers": answers_outcome(scores, model=f"{arm}-{seed}")}))
    found = results.read()
    assert {key: result.evaluations["answers"]["values"]["score"] for key, result in found.items()} == runs
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") == len(runs)


def test_no_file_is_no_result(tmp_path):
    assert Results(tmp_path, "small").read() == {}


def test_an_evaluation_that_was_added_later_has_a_line_of_its_own(tmp_path):
    later = result_line("ce", 1, {"likely": likelihood_outcome([1.0, 2.0], model="ce1")})
    (result,) = write(tmp_path, line(), later).read().values()
    assert set(result.evaluations) == {"answers", "likely"}


def other_data(found):
    found["evaluations"]["answers"]["hashes"]["data"] = "other"
    return found


def other_dtype(found):
    found["evaluations"]["answers"]["hashes"]["dtype"] = "bfloat16"
    return found


def other_questions(found):
    found["evaluations"]["answers"]["questions"]["hash"] = "other"
    return found


def same_model(found):
    found["evaluations"]["answers"]["hashes"]["model"] = "ce1"
    return found


def score(value):
    found = line()
    found["evaluations"]["answers"]["values"]["score"] = value
    return found


BAD = [
    ([line(), line()], "lines 1 and 2 are both of ce, seed 1 .evaluations answers.; take one of them out"),
    (
        [line(), line(name="more", training={"seconds": 1.0})],
        "lines 1 and 2 are both of ce, seed 1 .another training.",
    ),
    (
        [line(), other_data(line("mce"))],
        "answers of ce, seed 1 and of mce, seed 1 were not measured alike .data.",
    ),
    (
        [line(seed=2), line(), other_dtype(line("mce"))],
        "answers of ce, seed 1 and of mce, seed 1 were not measured alike .dtype.",
    ),
    ([line(), other_questions(line("mce"))], "were not measured alike .questions."),
    (
        [line(), same_model(line("mce"))],
        "ce, seed 1 and mce, seed 1 are one and the same model by its weights",
    ),
    ([line(study="large")], "line 1: is of the study 'large', not of 'small'"),
    ([line(format=2)], "line 1: has the format 2; this version of mce-llm reads format 1"),
    ([line(seed="1")], "line 1: seed cannot be '1'"),
    ([line(seed=True)], "line 1: seed cannot be True"),
    ([line(evaluations={"answers": 3})], "evaluation answers cannot be 3"),
    ([line(evaluations={"answers": {}})], "evaluation answers: script cannot be None"),
    ([score([1, 0])], "score must have a value for each of 3 questions"),
    ([score([1, 0, 2])], "score has 2"),
    ([score([1, 0, None])], "score has None"),
    ([score([1, 0, float("nan")])], "score has nan"),
    ([[1]], r"must be a JSON object, got \[1\]"),
]


@pytest.mark.parametrize(("lines", "message"), BAD, ids=[message[:45] for _, message in BAD])
def test_lines_that_cannot_be_right_are_refused_by_name(lines, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        write(tmp_path, *lines).read()


def test_a_line_that_could_not_be_read_again_is_not_added(tmp_path):
    """It would have every later start refused, and the runs that are finished with it."""
    results = write(tmp_path, line())
    before = results.path.read_bytes()
    for lines, message in BAD:
        if lines[0] == line() and len(lines) == 2:
            with pytest.raises(StudyError, match=message):
                results.add(lines[1])
    with pytest.raises(
        StudyError, match=r"the results of mce, seed 1 cannot be kept as line 2 of (.|\n)*score has nan"
    ):
        results.add({**score([1, 0, float("nan")]), "arm": "mce"})
    assert results.path.read_bytes() == before


def test_seeds_may_be_measured_in_different_precisions(tmp_path):
    """A study goes on where the hardware is another; arms are held against each other within a seed."""
    lines = [line(), line("mce"), other_dtype(line(seed=2)), other_dtype(line("mce", 2))]
    assert len(write(tmp_path, *lines).read()) == 4


def test_lines_have_the_numbers_that_an_editor_shows(tmp_path):
    results = write(tmp_path, line())
    results.path.write_text("\n" + results.path.read_text() + "\n{\n")
    with pytest.raises(StudyError, match="line 4 is no JSON"):
        results.read()


def test_a_torn_line_and_a_foreign_one_are_said_together(tmp_path):
    results = write(tmp_path, line(), line("mce", study="large"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"format": 1')
    with pytest.raises(StudyError) as raised:
        results.read()
    assert "line 2: is of the study 'large'" in str(raised.value)
    assert "line 3 is no JSON" in str(raised.value)
