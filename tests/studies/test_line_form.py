"""Lines of results.jsonl: whatever is edited in one, it is refused by name, or all tables can be made from it."""

import copy
import json

import pytest

from helpers.studies import answers_outcome, likelihood_outcome, result_line, write_study
from mce_llm.errors import MceLlmError
from mce_llm.studies.comparing import compare_study
from mce_llm.studies.estimating import Durations
from mce_llm.studies.line_form import wrong_fields
from mce_llm.studies.notes import notes_of
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import Results
from mce_llm.studies.tables import markdown, study_tables

LEFT_OUT = object()
OTHERS = (
    *(LEFT_OUT, None, "x", -1, 1e308, float("nan"), True, 10**400),
    *([], [[1, 2], [3]], {"a": None}),
)


def line(arm, seed):
    model = f"{arm}{seed}"
    nats = [3.0, 2.0 + len(arm) / 10 + seed / 100, 1.0]
    evaluations = {
        "answers": answers_outcome([1, 0, seed - 1], model),
        "likely": likelihood_outcome(nats, model, bins=2),
    }
    return result_line(arm, seed, evaluations)


def places(content, above=()):
    """Every place in JSON, of lists the first."""
    if above:
        yield above
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*above, key))
    elif isinstance(content, list) and content:
        yield from places(content[0], (*above, 0))


def edited(content, place, value):
    found = copy.deepcopy(content)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    if value is LEFT_OUT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return found


def test_whatever_is_edited_is_refused_or_makes_tables(tmp_path):
    evaluations = {
        name: {"script": script, "settings": {"data": "x"}}
        for name, script in (("answers", "gsm8k"), ("likely", "likelihood"))
    }
    study = read_study(
        write_study(
            tmp_path, evaluations=evaluations, primary={"evaluation": "likely", "measure": "all.nats"}
        )
    )
    study.output.mkdir()
    lines = [line(arm, seed) for seed in (1, 2) for arm in ("ce", "mce")]
    results = Results(study.output, "small")
    # Groups are checked alike, so one of each is enough; what is shown as it stands may hold anything.
    left_out = (
        {"numbers", "results", "answer", "words"},
        {"options", "summary", "versions", "settings", "logged"},
    )
    tried = [
        place
        for place in places(lines[1])
        if not left_out[0] & set(place) and not left_out[1] & set(place[:-1])
    ]
    counts = {True: 0, False: 0}
    for place in tried:
        for value in OTHERS:
            now = edited(lines[1], place, value)
            refused = bool(wrong_fields(now, "small"))
            counts[refused] += 1
            if refused:
                continue
            texts = [json.dumps(each) for each in (lines[0], now, *lines[2:])]
            results.path.write_text("\n".join(texts))
            try:
                found = results.read()
                compared = compare_study(study, found, notes_of(study, found))
            except MceLlmError:  # it contradicts the others
                continue
            markdown(compared, study_tables(compared, found, every=True))
            json.dumps(compared.to_dict(), allow_nan=False)
            Durations(found.values())
    assert min(counts.values()) > 50


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("training", "seconds"), LEFT_OUT, "training: seconds cannot be None"),
        (("training", "train_loss"), float("nan"), "training: train_loss cannot be nan"),
        (("launch", "training"), 3, "launch: training cannot be 3"),
        (("code", 0), "x", "code cannot be 'x'"),
        (
            ("evaluations", "likely", "script"),
            "x",
            "evaluation likely: script cannot be 'x'; it is one of gsm8k",
        ),
        (("evaluations", "likely", "seconds"), float("inf"), "evaluation likely: seconds cannot be inf"),
        (("evaluations", "likely", "remarks"), "x", "evaluation likely: remarks cannot be 'x'"),
        (
            ("evaluations", "likely", "hashes", "model"),
            LEFT_OUT,
            "evaluation likely: hashes: model cannot be None",
        ),
        (("evaluations", "likely", "questions", "asked"), 2, "evaluation likely: questions cannot be"),
        (
            ("evaluations", "likely", "values", "groups", "all", "nats", 0),
            float("inf"),
            "evaluation likely: groups all nats has inf",
        ),
        (
            ("evaluations", "likely", "values", "groups", "all", "nats"),
            LEFT_OUT,
            "evaluation likely: groups all must have tokens, nats, top1, entropy, got ",
        ),
        (
            ("evaluations", "likely", "values", "calibration", "all", "top1", 0),
            [1],
            "evaluation likely: calibration all has values of different lengths",
        ),
        (
            ("evaluations", "likely", "values", "groups", "all", "top1", 1),
            11,
            "evaluation likely: groups all top1 of question 2 is 11, of 10 tokens",
        ),
        (
            ("evaluations", "likely", "values", "calibration", "all", "confidence", 0),
            [0.1, 0.2],
            "evaluation likely: calibration all confidence of question 1 is [0.1, 0.2], of [10, 0] tokens",
        ),
        (("seed",), -1, "seed cannot be -1"),
        (("declared",), [], "declared cannot be []"),
        (
            ("evaluations", "answers", "values", "score"),
            LEFT_OUT,
            "score must have a value for each of 3 questions",
        ),
        (("evaluations", "answers", "values", "score", 0), [], "score has []"),
    ],
)
def test_what_is_wrong_is_said(place, value, message):
    (problem,) = wrong_fields(edited(line("ce", 1), place, value), "small")
    assert message in problem


def test_a_whole_line_has_no_problem():
    assert wrong_fields(line("ce", 1), "small") == []
