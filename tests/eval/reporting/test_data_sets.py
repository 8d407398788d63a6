"""Sections by data set, not by task, and one rounding of a number on the whole page."""

import re

import pytest

from helpers.evaluations import outcomes, write_run
from helpers.trainings import write_training
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.sections import arrange

A, B = outcomes(4, 1, 2, 3)
SVAMP = {"data": "/data/svamp/test.jsonl", "questions": [f"Of SVAMP {k}?" for k in range(10)]}


def both(place, name, right):
    """A training with an evaluation on GSM8K and one on SVAMP below it."""
    write_training(place / name)
    write_run(place / name / "gsm8k", right, model=name)
    write_run(place / name / "svamp", right[::-1], model=name, **SVAMP)
    return place / name


def test_two_data_sets_of_one_task_are_two_sections(tmp_path, make, read):
    page, sections = make([both(tmp_path, "ce", A), both(tmp_path, "mce", B)])
    assert [(section.key, section.title, section.task) for section in sections] == [
        ("gsm8k", "GSM8K", "gsm8k"),
        ("svamp", "SVAMP", "gsm8k"),
    ]
    assert all(section.comparison is not None for section in sections)
    assert [member.look.label for member in sections[1].members] == ["A · ce", "B · mce"]
    tags = read(page.html)
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {chart.name for chart in page.charts} >= {"gsm8k-accuracy", "svamp-accuracy"}
    assert [section["title"] for section in tags.answers["sections"]] == ["GSM8K", "SVAMP"]
    assert "GSM8K and SVAMP: A against B" in tags.words


def test_the_same_questions_in_another_file_are_one_section(tmp_path):
    same = {"questions": SVAMP["questions"], "hashes": {"data": "d" * 16}}
    folders = [
        write_run(tmp_path / "ce", A, model="a", data="/one/svamp/test.jsonl", **same),
        write_run(tmp_path / "mce", B, model="b", data="copy.json", **same),
    ]
    (section,) = arrange(read_sources(folders), allow_differences=True)
    assert (section.title, section.not_compared) == ("SVAMP", None)


def test_other_questions_of_one_name_are_told_apart(tmp_path):
    """In one folder as two sections; in two folders as one that says why nothing is compared."""
    first = {"data": "gsm8k", "questions": [f"First {k}?" for k in range(10)]}
    other = {"data": "gsm8k", "questions": [f"Other {k}?" for k in range(10)]}
    for name, right in (("ce", A), ("mce", B)):
        write_run(tmp_path / name / "one", right, model=name, **first)
        write_run(tmp_path / name / "two", right, model=name, **other)
    sections = arrange(read_sources([tmp_path / "ce", tmp_path / "mce"]))
    assert len(sections) == 2
    assert all(re.fullmatch(r"GSM8K \(data [0-9a-f]{6}\)", section.title) for section in sections)
    assert all(section.comparison is not None for section in sections)
    (mixed,) = arrange(read_sources([tmp_path / "ce" / "one", tmp_path / "mce" / "two"]))
    assert "they differ in data" in mixed.not_compared


def test_one_data_set_judged_in_two_ways(tmp_path):
    write_run(tmp_path / "ce" / "numbers", A, data="mine.jsonl")
    write_run(tmp_path / "ce" / "expressions", A, data="mine.jsonl", task="math")
    titles = [section.title for section in arrange(read_sources([tmp_path / "ce"]))]
    assert titles == ["mine (judged as MATH)", "mine (judged as GSM8K)"]


def test_the_same_data_twice_in_one_folder_is_refused(tmp_path):
    for name in ("greedy", "sampled"):
        write_run(tmp_path / "ce" / name, A, **SVAMP)
    with pytest.raises(EvaluationError, match=r"holds two evaluations on SVAMP, .*greedy and .*sampled"):
        read_sources([tmp_path / "ce"])


def test_one_number_reads_the_same_everywhere(tmp_path, make, read):
    """6.25 % in the table was 6.2 % above it."""
    a, b = outcomes(0, 1, 2, 13)
    page, _ = make([write_run(tmp_path / "a", a), write_run(tmp_path / "b", b, model="b")])
    words = read(page.html).words
    assert words.count("6.25") >= 4  # figure, chart, table, pair, form
    assert not re.search(r"(?<![\d.])6\.2(?!\d)", words)
    assert "difference B − A +6.3 points" in words


def test_kinds_of_data_are_named_once(tmp_path, make, read):
    write_training(tmp_path / "ce")
    write_training(tmp_path / "mce")
    for name in ("ce", "mce"):
        state = tmp_path / name / "trainer_state.json"
        state.write_text(state.read_text().replace("hidden_effective_rank", "other"))
    words = read(make([tmp_path / "ce", tmp_path / "mce"])[0].html).words
    assert "Effective rank, held out: not logged by" in words
    assert "Effective rank, training sample: not logged by" in words
    assert "Cross-entropy (CE), held out" not in words


def test_the_differences_of_the_trainings_stand_before_the_verdict(tmp_path, make, read):
    for name, right, recipe in (
        ("ce", A, {"matrix_weight": 0, "seed": 1, "learning_rate": 2e-5}),
        ("mce", B, {"matrix_weight": 1.0, "seed": 1, "learning_rate": 1e-5}),
    ):
        write_training(tmp_path / name, recipe=recipe)
        write_run(tmp_path / name / "gsm8k", right, model=str(tmp_path / name))
    words = read(make([tmp_path / "ce", tmp_path / "mce"])[0].html).words
    warning = words.index(
        "the trainings differ in more than the method and the seed (learning_rate: 2e-05 in ce"
    )
    table = words.index("In what the trainings differ")
    assert warning < table < words.index("These runs do not tell A and B apart")
    assert "learning_rate beside the method 2e-05 1e-05" in words


def test_what_was_judged_otherwise_is_on_the_page(tmp_path, make, read):
    folder = write_run(tmp_path / "a", A)
    items = (folder / "items.jsonl").read_text().replace('"correct": false', '"correct": true', 1)
    (folder / "items.jsonl").write_text(items)
    for folders in ([folder], [folder, write_run(tmp_path / "b", B, model="b")]):
        words = read(make(folders)[0].html).words
        assert "1 of 10 verdicts in items.jsonl is not what this version judges" in words
        assert "50.00 %" in words
        assert "60.00 %" not in words if len(folders) == 1 else True
