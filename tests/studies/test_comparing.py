"""A study's comparison is that of its values by the statistics of `mce-llm compare`; what was not alike is noted."""

import copy
import json
import re

import numpy as np
import pytest

from helpers.studies import answers_outcome, likelihood_outcome, result_line, write_study
from mce_llm.eval.comparing.measure_comparison import compare_measure
from mce_llm.eval.comparing.measures import ACCURACY, MEASURES
from mce_llm.eval.errors import EvaluationError
from mce_llm.studies.comparing import compare_study
from mce_llm.studies.notes import notes_of
from mce_llm.studies.page import study_page
from mce_llm.studies.pictures import study_charts
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RunResult
from mce_llm.studies.tables import markdown, study_tables

ARMS = {
    "mce": {"settings": {"matrix_weight": 1}},
    "ce": {"settings": {"matrix_weight": 0}},
    "half": {"settings": {"matrix_weight": 0.5}, "seeds": [1, 2]},
}
EVALUATIONS = {"answers": {"script": "gsm8k"}, "likely": {"script": "likelihood"}}


@pytest.fixture
def study(tmp_path):
    return read_study(
        write_study(
            tmp_path,
            arms=ARMS,
            evaluations=EVALUATIONS,
            seeds=[1, 2, 3],
            primary={"evaluation": "likely", "measure": "numbers.nats", "smallest_difference": 0.05},
        )
    )


@pytest.fixture
def values():
    """(arm, seed) → scores of 30 questions, nats of 30 questions; the arms differ by something."""
    random = np.random.default_rng(0)
    questions = random.gamma(2, 5, 30)
    found = {}
    for arm, better in (("ce", 0.0), ("mce", 1.0), ("half", 0.5)):
        for seed in (1, 2, 3):
            if arm == "half" and seed == 3:
                continue
            nats = questions - better + random.normal(0, 0.3, 30)
            found[arm, seed] = (random.integers(0, 2, 30), np.abs(nats).round(4))
    return found


@pytest.fixture
def results(values):
    return {
        key: RunResult(
            line := result_line(
                *key,
                {
                    "answers": answers_outcome(scores.tolist(), model=str(key)),
                    "likely": likelihood_outcome(nats.tolist(), model=str(key)),
                },
            ),
            line["evaluations"],
            number,
        )
        for number, (key, (scores, nats)) in enumerate(values.items(), start=1)
    }


def test_every_measure_is_compared_as_by_hand(study, results, values):
    compared = compare_study(study, results)
    likely, answers = compared.evaluations
    assert (likely.evaluation.name, answers.evaluation.name) == ("likely", "answers")
    assert compared.primary is likely.comparisons[0]
    assert (compared.finished, compared.planned) == (8, 8)

    def of(arm, part):
        return {
            seed: pair[part] / (10 if part else 1) for (name, seed), pair in values.items() if name == arm
        }

    for found, measure, part in (
        (compared.primary, MEASURES["numbers.nats"], 1),
        (answers.comparisons[0], ACCURACY, 0),
    ):
        arms = {name: of(name, part) for name in ("mce", "half")}
        smallest = 0.05 if part else None
        expected = compare_measure(
            measure, of("ce", part), arms, 0.95, smallest, baseline_name="ce", primary=bool(part)
        )
        assert found == expected
        assert answers.values["accuracy"]["ce"][2] == values["ce", 2][0].mean()
    assert {found.measure.name for found in likely.comparisons} == set(MEASURES) - {"accuracy"}
    assert compared.primary.arms[0].finding == "better"
    assert compared.primary.arms[0].weight == "matters"


def test_tables_page_pictures_and_json_say_the_same(study, results):
    compared = compare_study(study, results, ["a note with <b> & |"])
    tables = study_tables(compared, results, every=True)
    text = markdown(compared, tables)
    charts = study_charts(compared)
    page = study_page(compared, tables, charts)
    primary = compared.primary
    assert primary.verdict in text
    difference = f"{primary.arms[0].difference:.4f}".replace("-", "−")
    assert difference in text
    assert difference in page
    assert "a note with &lt;b&gt; &amp; |" in page
    assert page.count("<svg ") == len(charts) == 5
    assert all(chart.png.startswith(b"\x89PNG") for chart in charts)
    shown = json.loads(json.dumps(compared.to_dict()))
    assert (
        shown["evaluations"]["likely"]["measures"][0]["arms"][0]["difference"] == primary.arms[0].difference
    )
    assert shown["evaluations"]["answers"]["values"]["accuracy"]["half"].keys() == {"1", "2"}
    widths = {table.title: {len(row) for row in table.rows} for table in tables}
    assert all(found == {len(table.header)} for table, found in zip(tables, widths.values(), strict=True))


def test_an_interruption_leaves_what_is_finished(study, results):
    """Seed 3 of mce is lacking, and all of half: seeds 1 and 2 are compared, and it is said."""
    some = {key: result for key, result in results.items() if key != ("mce", 3) and key[0] != "half"}
    compared = compare_study(study, some)
    assert compared.finished == 5
    (arm,) = compared.primary.arms
    assert arm.seeds == (1, 2)
    (note,) = notes_of(study, some)
    assert note == "not finished: half seed 1, half seed 2, mce seed 3"
    assert compared.extent == "5 of 8 runs"


def test_evaluations_of_another_time_are_missed_by_name(study, results):
    some = {
        key: RunResult(
            result.line,
            {n: of for n, of in result.evaluations.items() if n == "likely" or key[1] == 1},
            result.number,
        )
        for key, result in results.items()
    }
    compared = compare_study(study, some)
    assert compared.extent == "8 of 8 runs, 3 of them with every evaluation"
    assert compared.primary.arms[0].seeds == (1, 2, 3)
    (note,) = notes_of(study, some)
    assert note.startswith("without answers as yet: ce seed 2, ce seed 3, ")


def test_a_primary_measure_of_another_time_is_named(study, results):
    """Every arm has its seeds: it is the evaluation that is lacking, and the other is compared."""
    some = {
        key: RunResult(result.line, {"answers": result.evaluations["answers"]}, result.number)
        for key, result in results.items()
    }
    compared = compare_study(study, some)
    assert [item.evaluation.name for item in compared.evaluations] == ["answers"]
    assert compared.undecided.startswith(
        "nothing is concluded yet: the primary measure, numbers.nats of likely,"
    )
    assert f"**{compared.undecided}**" in markdown(compared, study_tables(compared, some, every=False))


@pytest.mark.parametrize("smallest", [None, 0.05])
def test_a_primary_measure_that_no_question_has_is_said(tmp_path, smallest):
    primary = {"evaluation": "likely", "measure": "results.nats", "smallest_difference": smallest}
    path = write_study(
        tmp_path, arms={"ce": {"settings": {"matrix_weight": 0}}, "mce": {"settings": {"matrix_weight": 1}}},
        evaluations={"likely": {"script": "likelihood"}}, primary=primary,
    )  # fmt: skip
    found = {}
    for arm in ("ce", "mce"):
        for seed in (1, 2):
            outcome = likelihood_outcome([3.0, 2.0 + len(arm) / 10 + seed / 100, 1.0], f"{arm}{seed}")
            for columns in outcome["values"]["groups"]["results"].values():
                columns[:] = [0, 0, 0]
            found[arm, seed] = RunResult(
                line := result_line(arm, seed, {"likely": outcome}), line["evaluations"], seed
            )
    compared = compare_study(read_study(path), found)
    told = "nothing is concluded: the primary measure, results.nats of likely, was not measured in every run"
    assert compared.primary is None
    assert compared.undecided.startswith(told)
    assert told in markdown(compared, study_tables(compared, found, every=True))
    assert told in study_page(compared, [], [])
    assert compared.to_dict()["verdict"].startswith(told)


def test_without_a_common_seed_there_is_nothing_to_compare(study, results):
    compared = compare_study(study, {("ce", 1): results["ce", 1], ("mce", 2): results["mce", 2]})
    assert compared.primary is None
    assert compared.evaluations == ()
    assert "nothing can be compared yet" in study_page(compared, [], [])
    assert markdown(compared, study_tables(compared, {}, every=True)).startswith("# small")


def changed(results, key, **parts):
    line = {**results[key].line, **parts}
    return {**results, key: RunResult(line, line["evaluations"], results[key].number)}


@pytest.mark.parametrize(
    ("parts", "note"),
    [
        ({"versions": {"torch": "2.15"}}, "torch is not the same for all runs: 2.14 .*; 2.15 .mce, seed 2."),
        (
            {"code": [{"source": "t", "commit": "abc"}]},
            "different versions of this package: .*abc t .mce, seed 2.",
        ),
        (
            {"settings": {"learning_rate": 0.1}},
            "mce, seed 1 and mce, seed 2 were trained with different settings",
        ),
        ({"launch": {"training": ["--cpu"]}}, "launched in different ways"),
    ],
)
def test_what_was_not_alike_is_noted(parts, note, study, results):
    assert notes_of(study, results) == []
    (found,) = notes_of(study, changed(results, ("mce", 2), **parts))
    assert re.search(note, found)


@pytest.mark.parametrize(
    ("part", "value", "note"),
    [
        (
            "code",
            [{"source": "t"}],
            "answers was measured with different versions of this package: source s ",
        ),
        ("versions", {"torch": "2.15"}, "answers was not measured with the same torch in all runs: 2.14 "),
        ("versions", {}, "answers was not measured with the same torch in all runs: 2.14 "),
    ],
)
def test_evaluations_made_with_something_else_are_noted(part, value, note, study, results):
    evaluations = copy.deepcopy(dict(results["mce", 2].line["evaluations"]))
    evaluations["answers"][part] = value
    (found,) = notes_of(study, changed(results, ("mce", 2), evaluations=evaluations))
    assert found.startswith(note)
    assert re.search(r"; (source t|2.15|unknown) .mce, seed 2.$", found)


def test_evaluations_made_with_what_their_runs_were_trained_with_add_no_note(study, results):
    new = {"code": [{"source": "t"}], "versions": {"torch": "2.15"}}
    evaluations = {
        name: {**evaluation, **new} for name, evaluation in results["mce", 2].line["evaluations"].items()
    }
    notes = notes_of(study, changed(results, ("mce", 2), evaluations=evaluations, **new))
    assert [note.partition(":")[0] for note in notes] == [
        "were trained with different versions of this package",
        "torch is not the same for all runs",
    ]


def test_precisions_of_an_evaluation_are_noted(study, results):
    evaluations = copy.deepcopy(dict(results["mce", 2].line["evaluations"]))
    evaluations["answers"]["hashes"]["dtype"] = "bfloat16"
    (found,) = notes_of(study, changed(results, ("mce", 2), evaluations=evaluations))
    assert re.search(
        r"^answers was measured in different precisions: float32 .*; bfloat16 .mce, seed 2.$", found
    )


def without_groups(results, *names):
    """One run's line as it was kept small: without some groups of tokens, and without calibration."""
    evaluations = copy.deepcopy(dict(results["mce", 2].line["evaluations"]))
    values = evaluations["likely"]["values"]
    values["groups"] = {name: of for name, of in values["groups"].items() if name not in names}
    values["calibration"] = {}
    return changed(results, ("mce", 2), evaluations=evaluations)


def test_what_some_runs_lack_is_left_out_and_said(study, results):
    group = MEASURES[study.primary.measure].group
    names = [name for name in ("words", "answer") if name != group]
    some = without_groups(results, *names)
    compared = compare_study(study, some)
    assert compared.primary == compare_study(study, results).primary
    (likely, _) = compared.evaluations
    kept = {measure.partition(".")[0] for measure in likely.values}
    assert kept.isdisjoint(names)
    assert "all" in kept
    (note,) = notes_of(study, some)
    assert note.startswith(
        "likely has not the same groups of tokens in all runs, and the tables have those of all: "
    )
    assert re.search(r"without calibration .mce, seed 2.$", note)
    with pytest.raises(EvaluationError, match="measured different groups of tokens"):
        compare_study(study, without_groups(results, group))


def test_results_outside_of_the_study_and_allowed_changes_are_noted(study, results):
    other = {**results, ("old", 1): RunResult(result_line("old", 1, {}), {}, 9)}
    notes = notes_of(study, other, [{"when": "today", "what": ["arm ce: x 1 → 2"]}])
    assert notes == [
        "in the file of results, and not in the study: old, seed 1; they are left out",
        "changed on today, and allowed: arm ce: x 1 → 2",
    ]
    assert compare_study(study, other).primary == compare_study(study, results).primary
