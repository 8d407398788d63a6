"""The table of an outcome: every form of answer has a row of its own, also those that are new."""

import io
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from mce_llm.eval.results import Summary, print_summary, summarize
from mce_llm.eval.tasks import GSM8K

SETTINGS = {
    "model": "m",
    "data": "d",
    "split": "test",
    "prompt": "chat",
    "dtype": "float32",
    "max_new_tokens": 9,
    "backend": "hf",
    "batching": "static",
    "batch_size": 1,
    "processes": 1,
    "hashes": {},
    "continued": 0,
}


def items(*forms):
    return [
        {
            "index": n,
            "sample": 0,
            "question": f"How many are {n}?",
            "gold": "1",
            "response": "r",
            "found_by": form,
            "predicted": "1" if right else None,
            "correct": right,
            "finished": "length",
            "new_tokens": 9,
        }
        for n, (form, right) in enumerate(forms)
    ]


def printed(summary):
    text = io.StringIO()
    print_summary(summary, "GSM8K", Path("o"), Console(file=text, width=120))
    return [" ".join(line.replace("│", " ").split()) for line in text.getvalue().splitlines()]


def test_every_form_has_its_row():
    forms = [("boxed", True), ("thinking", False), ("thinking", False), ("none", False), ("new_form", True)]
    summary = summarize(GSM8K, items(*forms, ("last_number", False)), 1.0, 0, {**SETTINGS, "skipped": 3})
    assert (summary.still_thinking, summary.skipped, summary.n) == (2, 3, 6)
    assert summary.found_by["thinking"] == 2
    lines = printed(summary)
    for line in (
        "no answer, still thinking 2, 0 correct",
        "no answer 1, 0 correct",
        "found by boxed 1, 1 correct",
        "found by new_form 1, 1 correct",
        "found by last_number (fall-back) 1, 0 correct",
        "left out 3 questions, for references that cannot be judged by",
    ):
        assert line in lines


def test_nothing_is_said_of_what_is_not_there():
    lines = printed(summarize(GSM8K, items(("boxed", True)), 1.0, 0, SETTINGS))
    assert not any("left out" in line or "thinking" in line for line in lines)


@pytest.mark.parametrize("missing", [(), ("skipped", "still_thinking")])
def test_summaries_of_before_are_read(missing):
    summary = summarize(GSM8K, items(("boxed", True)), 1.0, 0, SETTINGS)
    content = {key: value for key, value in asdict(summary).items() if key not in missing}
    assert Summary.from_json(content) == summary


def test_copies_are_one_observation():
    """Twenty copies of a question, all right, say as much as one."""
    copied = [{**item, "question": "How  many?"} for item in items(*[("boxed", True)] * 20)]
    summary = summarize(GSM8K, copied, 1.0, 0, SETTINGS)
    assert (summary.n, summary.copies, summary.correct) == (20, 19, 20)
    assert summary.interval == summarize(GSM8K, copied[:1], 1.0, 0, SETTINGS).interval
    assert "copies 19 questions ask what another asks; the interval takes each once" in printed(summary)
    different = summarize(GSM8K, items(*[("boxed", True)] * 20), 1.0, 0, SETTINGS)
    assert (different.copies, different.interval != summary.interval) == (0, True)
    mixed = [*copied[:2], *items(("boxed", True), ("boxed", False), ("boxed", False))[1:]]
    mixed[1]["correct"] = False
    low, high = summarize(GSM8K, mixed, 1.0, 0, SETTINGS).interval  # means 1/2, 0 and 0
    assert 0 <= low < 0.2 < high
