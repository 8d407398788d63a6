"""Runs that cannot be compared, and what a reader must know of those that can."""

from dataclasses import replace

import pytest

from helpers.evaluations import outcomes
from mce_llm.eval.comparing.comparability import run_labels
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.errors import EvaluationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prompt": "plain"},
            r"mce cannot be compared with ce: they differ in prompt \(name: 'metamath' in ce, 'plain' in mce\)",
        ),
        ({"max_new_tokens": 256}, r"decoding \(max_new_tokens: 512 in ce, 256 in mce\)"),
        (
            {"temperature": 0.7, "dtype": "float16"},
            r"decoding \(temperature: 0.0 in ce, 0.7 in mce\), dtype \(dtype: 'bfloat16' in ce, 'float16' in mce\)",
        ),
        ({"task": "math"}, r"task \(task: 'gsm8k' in ce, 'math' in mce\)"),
        ({"split": "train"}, r"data \(split: 'test' in ce, 'train' in mce\)"),
        (
            {"hashes": {"decoding": "ffff000011112222"}},
            r"decoding \(hash [0-9a-f]{12} in ce, ffff00001111 in mce\)",
        ),
        (
            {"prompt_text": "x" * 200 + "{question}"},
            r"prompt: 'Question: \{question\}\\nAnswer:' in ce, 'x{60}'… in mce",
        ),
    ],
)
def test_other_settings_are_refused_and_named(make, settings, message):
    a, b = outcomes(5, 1, 3, 1)
    runs = make("ce", a), make("mce", b, **settings)
    with pytest.raises(EvaluationError, match=message) as caught:
        compare_runs([runs])
    assert "--allow-differences" in str(caught.value)
    found = compare_runs([runs], allow_differences=True)
    assert found.mismatches
    assert found.notes[0].level == "warning"
    assert "the difference may be one of the settings" in found.notes[0].text
    assert found.to_dict()["mismatches"][0]["key"] == found.mismatches[0].key


def test_long_texts_are_cut_where_they_begin_to_differ(make):
    a, b = outcomes(5, 1, 3, 1)
    long = "Below is an instruction. " * 10
    runs = make("ce", a, prompt_text=f"{long}Think."), make("mce", b, prompt_text=f"{long}Answer.")
    with pytest.raises(EvaluationError, match=r"prompt: '?…'.*Think\.' in ce, …'.*Answer\.' in mce"):
        compare_runs([runs])


def test_settings_are_compared_across_pairs(make):
    a, b = outcomes(5, 1, 3, 1)
    first = make("s0/ce", a), make("s0/mce", b)
    second = make("s1/ce", a, dtype="float32"), make("s1/mce", b, dtype="float32")
    with pytest.raises(
        EvaluationError, match=r"s1/ce cannot be compared with s0/ce.*s1/mce cannot be compared with s0/ce"
    ):
        compare_runs([first, second])


def test_other_questions_are_never_paired(make):
    a, b = outcomes(5, 1, 3, 1)
    ce = make("ce", a)
    other = make("mce", b, questions=[*(f"How many are {k} and {k}?" for k in range(9)), "Who is it?"])
    same_hash = {"data": ce.identity["data"]}
    silent = make("silent", b, questions=[f"What are {k}?" for k in range(10)], hashes=same_hash)
    shorter = make("shorter", b[:6])
    with pytest.raises(
        EvaluationError, match=r"data \(question no. 10 is 'How many are 9 and 9\?' and 'Who is it\?'\)"
    ):
        compare_runs([(ce, other)])
    with pytest.raises(EvaluationError, match=r"did not answer the same questions \(question no. 10 is"):
        compare_runs([(ce, other)], allow_differences=True)
    with pytest.raises(
        EvaluationError, match=r"ce and silent did not answer the same questions \(question no. 1 is"
    ):
        compare_runs([(ce, silent)])
    with pytest.raises(
        EvaluationError, match=r"ce and shorter did not answer .* \(10 and 6 questions\), so they cannot"
    ):
        compare_runs([(ce, shorter)], allow_differences=True)


def test_nothing_twice_and_nothing_to_compare(pair):
    a, b = pair
    with pytest.raises(EvaluationError, match=r"ce/gsm8k is given 2 times"):
        compare_runs([(a, a)])
    with pytest.raises(EvaluationError, match=r"mce/gsm8k is given 2 times"):
        compare_runs([(a, b), (replace(a, path=a.path.parent), b)])
    with pytest.raises(EvaluationError, match="there is nothing to compare"):
        compare_runs([])


def notes_of(*pairs):
    return [(note.level, note.text) for note in compare_runs(list(pairs)).notes]


def test_the_same_model_twice(make):
    a, b = outcomes(5, 1, 3, 1)
    (note,) = notes_of((make("x/ce", a, model="m"), make("x/mce", b, model="m")))
    assert note == ("warning", "pair 1: A and B are the same model, evaluated twice")
    pairs = [(make(f"s{s}/ce", a, model="base"), make(f"s{s}/mce", b)) for s in range(3)]
    (note,) = notes_of(*pairs)
    assert note[0] == "warning"
    assert note[1].startswith("3 runs of A are of 1 model: the same model twice is not another training seed")


def test_answers_cut_off_or_found_without_a_marker(make):
    a, b = outcomes(60, 5, 20, 15)
    cut, fallback = ["length"] * 3 + ["eos"] * 97, ["last_number"] * 8 + ["answer_is"] * 92
    found = notes_of((make("ce", a), make("mce", b, finished=cut, found_by=fallback)))
    assert [text for _, text in found] == [
        "0.0 % of A's answers and 3.0 % of B's were cut off, which can hide or feign a difference in skill; raise max_new_tokens",
        "0.0 % of A's answers and 8.0 % of B's were found without a marker, which can hide or feign a difference in skill; "
        "read them in items.jsonl",
    ]
    few = ["last_number"] * 4 + ["answer_is"] * 96
    assert not notes_of((make("c", a, found_by=few), make("d", b, found_by=few)))  # few, and as many in both
    assert len(notes_of((make("e", a), make("f", b, found_by=few)))) == 1  # few, and in B alone


def test_other_versions_and_batch_sizes(make):
    a, b = outcomes(5, 1, 3, 1)
    assert notes_of((make("ce", a), make("mce", b, versions={"torch": "2.10.0"}, batch_size=4))) == [
        ("note", "the runs were made with different versions of torch: 2.9.0, 2.10.0"),
        ("note", "the runs used different batch_size (16, 4), which can change single answers by rounding"),
    ]


def test_labels_are_short_and_unlike(make):
    a, _ = outcomes(3, 1, 1, 1)
    runs = [make(name, a) for name in ("x/ce", "x/mce", "y/ce")]
    assert run_labels(runs) == ["x/ce", "mce", "y/ce"]
    inside = [replace(runs[0], path=runs[0].path.parent / name) for name in ("gsm8k", "math")]
    assert run_labels(inside) == [str(run.path) for run in inside]
