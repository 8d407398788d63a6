"""What is looked at before anything starts: recipes, data, the folder, and what has changed since the study began."""

import json
import re

import pytest
import yaml

from helpers.recipes import save_tiny_model
from helpers.studies import answers_outcome, result_line, write_study
from mce_llm.data import generate_problems, write_jsonl
from mce_llm.studies.checking import checked, mark_prepared, write_definition
from mce_llm.studies.declared import declared
from mce_llm.studies.errors import StudyError
from mce_llm.studies.parts import Part
from mce_llm.studies.planning import check_weights, planned_runs
from mce_llm.studies.provenance import content_of
from mce_llm.studies.reading import reading_of
from mce_llm.studies.results import Results
from mce_llm.studies.slots import Slot

SLOT = Slot(None, 0, 2, False)


@pytest.fixture
def place(tmp_path):
    """A folder with model/, data.jsonl and test.jsonl."""
    rows = generate_problems(20, max_number=10)
    write_jsonl(rows, tmp_path / "data.jsonl")
    write_jsonl(generate_problems(6, split="test", max_number=10), tmp_path / "test.jsonl")
    save_tiny_model(tmp_path, rows)
    return tmp_path


def check(place, *, changed=None, **options):
    content_of.cache_clear()
    return checked(reading_of(write_study(place, **(changed or {}))), SLOT, **options)


def problems(place, *, changed=None, **options):
    with pytest.raises(StudyError) as raised:
        check(place, changed=changed, **options)
    return str(raised.value)


def arms(**settings):
    return {"arms": {"ce": {"settings": {"matrix_weight": 0}}, "x": {"settings": settings}}}


def test_what_shapes_a_training_is_known_in_full(place):
    found = check(place)
    assert list(found.shaping) == ["ce", "mce"]
    settings = found.shaping["ce"]
    assert settings["dataset"].startswith("content ")
    assert settings["model_name_or_path"].startswith("content ")
    assert settings["rows an optimizer step"] == 4
    assert settings["lr_scheduler_type"] == "linear"
    assert not {"seed", "output_dir", "logging_steps", "use_cpu"} & set(settings)
    assert found.options["answers"]["data"].startswith("content ")
    assert "model" not in found.options["answers"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (arms(learning_rat=1), "arm x .*unknown setting 'learning_rat' .did you mean 'learning_rate'"),
        (arms(learning_rate="fast"), "arm x .*learning.rate: invalid float value: 'fast'"),
        (arms(dataset="none.jsonl"), "dataset: none.jsonl: no such file"),
        (arms(model_name_or_path="./none"), "model_name_or_path: ./none: there is no such directory"),
        (arms(matrix_weight=0), "arms ce and x are the same: no setting that shapes what is trained differs"),
        (arms(logging_steps=3, matrix_weight=0), "arms ce and x are the same"),
        (arms(total_batch_size=6), r"total_batch_size must be a multiple of 4 .1 processes"),
        (
            {"evaluations": {"answers": {"script": "gsm8k", "settings": {"limits": 1}}}},
            "unknown setting 'limits'",
        ),
        (
            {"evaluations": {"answers": {"script": "gsm8k", "settings": {"data": "none.jsonl"}}}},
            "evaluation answers: none.jsonl: no such file",
        ),
        (
            {"launch": {"training": {"num_proceses": 2}}},
            "accelerate launch has no option 'num_proceses'.*num_processes",
        ),
        (
            {"launch": {"training": {"config_file": "zeero3"}}},
            "no launch file 'zeero3'.*did you mean 'zero3'",
        ),
    ],
)
def test_mistakes(changed, message, place, monkeypatch):
    monkeypatch.chdir(place)
    found = problems(place, changed=changed)
    assert re.search(message, found), found
    assert not (place / "out").exists()


def test_data_that_an_evaluation_cannot_judge_by(place):
    write_jsonl([{"question": "What?", "answer": "Nobody knows."}], place / "test.jsonl")
    assert "evaluation answers: " in (found := problems(place))
    assert "no reference answer that GSM8K can judge by" in found


def test_arms_that_differ_in_more_than_is_said(place):
    recipe = yaml.safe_load((write_study(place).parent / "recipe.yaml").read_text())
    (place / "other.yaml").write_text(
        yaml.safe_dump({**recipe, "matrix_weight": 2, "learning_rate": 1, "max_length": 99})
    )
    other = {"recipe": "other.yaml", "differs_in": ["matrix_weight"]}
    changed = {"arms": {"ce": {"settings": {"matrix_weight": 0}}, "x": other}}
    found = problems(place, changed=changed)
    assert (
        "arms ce and x differ in more than the study says: max_length 512 and 99; learning_rate 0.01 and 1.0"
        in found
    )
    other["differs_in"] += ["learning_rate", "max_length"]
    check(place, changed=changed)
    other["differs_in"] += ["limit"]
    assert "differs_in names limit, which is the same in the baseline" in problems(place, changed=changed)


def test_all_problems_of_file_recipes_and_command_line_come_together(place):
    changed = {
        **arms(limits=1),
        "seeds": [1],
        "evaluations": {"answers": {"script": "gsm8k", "settings": {"top_k": -1}}},
    }
    found = problems(place, changed=changed, part=Part(("y",), (9,), ("answer",)))
    for part in (
        "one training seed",
        "'limits'",
        "top_k",
        "--only: there is no arm 'y'",
        "--seeds: 9 is none",
        "--evaluate: there is no evaluation 'answer' (did you mean 'answers'?)",
    ):
        assert part in found
    assert not (place / "out").exists()


def test_a_folder_of_another_study_is_refused(place):
    write_definition(check(place))
    assert "is the folder of another study, 'small'; choose another --output for 'large'" in problems(
        place, changed={"name": "large"}
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"settings": {"learning_rate": 0.1}}, "arm ce: learning_rate 0.01 → 0.1"),
        (
            {"primary": {"evaluation": "answers", "measure": "accuracy"}},
            "primary: .*'smallest_difference': 0.01.* → .*None",
        ),
        (
            {
                "evaluations": {
                    "answers": {"script": "gsm8k", "settings": {"data": "test.jsonl", "prompt": "plain"}}
                }
            },
            "evaluation answers: max_new_tokens 4 → 512",
        ),
        ({"baseline": "mce"}, "baseline: 'ce' → 'mce'"),
        ({"confidence": 0.5}, "confidence: 0.95 → 0.5"),
    ],
)
def test_what_has_changed_since_the_study_began_is_refused_or_recorded(changed, told, place, monkeypatch):
    monkeypatch.chdir(place)
    write_definition(check(place))
    found = problems(place, changed=changed)
    assert "was begun with other settings or data" in found
    assert re.search(told, found), found
    assert check(place).changed == ()
    allowed = check(place, changed=changed, allow_changes=True)
    write_definition(allowed)
    (entry,) = json.loads((place / "out" / "definition.json").read_text())["changes"]
    assert re.search(told, entry["what"][0])
    assert check(place, changed=changed).changed == ()


def test_changed_data_and_models_are_noticed_by_their_content(place):
    write_definition(check(place))
    write_jsonl(generate_problems(21, max_number=10), place / "data.jsonl")
    (place / "model" / "generation_config.json").write_text("{}")  # not what is trained
    found = problems(place)
    assert found.count("→") == 2  # once an arm
    assert "arm ce: dataset 'content " in found


def test_what_has_no_effect_may_change(place):
    write_definition(check(place))
    assert check(place, changed={"settings": {"logging_steps": 2, "save_strategy": "epoch"}}).changed == ()


def as_math(place):
    """The evaluation of the same name and options by another script."""
    settings = {"data": str(place / "test.jsonl"), "prompt": "plain", "max_new_tokens": 4}
    return {"evaluations": {"answers": {"script": "hendrycks_math", "settings": settings}}}


def test_results_of_one_script_are_not_those_of_another(place):
    """Both scripts have the same options, so nothing but the script itself tells them apart."""
    write_definition(found := check(place))
    assert "evaluation answers: script 'gsm8k' → 'hendrycks_math'" in problems(place, changed=as_math(place))
    outcome = {**answers_outcome([1, 0], model="ce1"), "options": dict(found.options["answers"])}
    line = result_line("ce", 1, {"answers": outcome}, settings=dict(found.shaping["ce"]))
    Results(place / "out", "small").add(line)
    told = "evaluation answers: that of ce, seed 1 in .* was made by the script gsm8k, not by hendrycks_math"
    assert re.search(told, problems(place, changed=as_math(place), allow_changes=True))
    (place / "out" / "definition.json").unlink()
    assert re.search(told, problems(place, changed=as_math(place)))


def test_what_was_declared_goes_with_the_results(place):
    """results.jsonl alone, on another machine: its lines say what they were made to decide."""
    found = check(place)
    outcome = {**answers_outcome([1, 0], model="ce1"), "options": dict(found.options["answers"])}
    shaping = dict(found.shaping["ce"])
    line = result_line("ce", 1, {"answers": outcome}, settings=shaping, declared=declared(found.study))
    Results(place / "out", "small").add(line)
    assert check(place).changed == ()
    assert "baseline: 'ce' → 'mce'" in problems(place, changed={"baseline": "mce"})
    primary = {"primary": {"evaluation": "answers", "measure": "accuracy", "smallest_difference": 0.2}}
    assert "'smallest_difference': 0.2" in problems(place, changed=primary)


@pytest.mark.parametrize(
    "part",
    [
        {"changes": [{}]},
        {"changes": ["x"]},
        {"changes": {}},
        {"arms": []},
        {"arms": {"ce": 3}},
        {"evaluations": {"answers": {}}},
        {"evaluations": {"answers": {"script": "gsm8k", "options": []}}},
        {"evaluations": None},
    ],
)
def test_a_definition_of_another_form_is_refused(part, place):
    write_definition(check(place))
    file = place / "out" / "definition.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **part}))
    assert "is not what a study of this version has begun with" in problems(place)


def likely(place, measure):
    settings = {"data": str(place / "test.jsonl"), "prompt": "plain"}
    return {
        "evaluations": {"likely": {"script": "likelihood", "settings": settings}},
        "primary": {"evaluation": "likely", "measure": measure},
    }


@pytest.mark.parametrize(
    ("solution", "there", "lacking"),
    [
        ("blue", ("all.nats", "words.nats", "answer.top1"), ("numbers.ece", "results.nats")),
        ("so 5 is it\n#### 5", ("numbers.nats", "answer.nats"), ("results.nats",)),
        ("2 + 3 = 5", ("results.nats", "words.nats", "numbers.ece"), ()),
        ("5", ("numbers.nats",), ("words.nats",)),
    ],
)
def test_a_primary_measure_of_nothing_is_refused_before_it_is_trained_for(solution, there, lacking, place):
    rows = [{"question": f"What is it, {number}?", "answer": solution} for number in range(3)]
    write_jsonl(rows, place / "test.jsonl")
    for measure in there:
        check(place, changed=likely(place, measure))
    for measure in lacking:
        group = measure.split(".")[0]
        found = problems(place, changed=likely(place, measure))
        assert f"evaluation likely: no solution of its data has tokens of {group!r}" in found


def test_one_question_is_too_few(place):
    write_jsonl(generate_problems(1, split="test", max_number=10) * 2, place / "test.jsonl")
    assert "evaluation answers: 2 questions; an interval needs 2 different ones at least" in problems(place)
    settings = {"data": str(place / "test.jsonl"), "prompt": "plain", "limit": 1}
    changed = {"evaluations": {"answers": {"script": "gsm8k", "settings": settings}}}
    assert "evaluation answers: 1 question; an interval" in problems(place, changed=changed)


def test_results_alone_show_a_change(place):
    """The study was moved to another machine without its folders."""
    found = check(place)
    outcome = {**answers_outcome([1, 0], model="ce1"), "options": dict(found.options["answers"])}
    line = result_line("ce", 1, {"answers": outcome}, settings=dict(found.shaping["ce"]))
    Results(place / "out", "small").add(line)
    runs = planned_runs(found.study, check(place).results)
    assert [run.finished for run in runs] == [True, False, False, False]
    changed = {"settings": {"learning_rate": 0.1}}
    write_definition(check(place, changed=changed, allow_changes=True))
    assert check(place, changed=changed).changed == ()  # it was allowed once
    (place / "out" / "definition.json").unlink()
    assert "arm ce (ce, seed 1): learning_rate 0.01 → 0.1" in problems(place, changed=changed)


@pytest.mark.parametrize(
    ("option", "value", "part", "refused"),
    [
        ("max_new_tokens", 5, Part(), True),
        ("dtype", "bfloat16", Part(), True),  # mce of seed 1 would stand beside ce in float32
        ("dtype", "bfloat16", Part(seeds=(2,)), False),
        ("dtype", "auto", Part(), False),  # it may be the same
        ("prompt", "auto", Part(), False),
        ("data", "other.jsonl", Part(), True),
        ("max_new_tokens", 5, Part(evaluations=("more",)), False),  # nothing is measured by it now
    ],
)
def test_what_could_not_be_kept_is_not_measured(place, option, value, part, refused):
    """Found out before the training, and not when its results are to be kept."""
    write_jsonl(generate_problems(7, split="test", max_number=10), place / "other.jsonl")

    def with_options(**options):
        settings = {
            "data": str(place / "test.jsonl"),
            "prompt": "plain",
            "max_new_tokens": 4,
            "dtype": "float32",
        }
        more = {"script": "likelihood", "settings": {"data": str(place / "test.jsonl"), "prompt": "plain"}}
        return {"evaluations": {"answers": {"script": "gsm8k", "settings": settings | options}, "more": more}}

    found = check(place, changed=with_options())
    outcome = {**answers_outcome([1, 0], model="ce1"), "options": dict(found.options["answers"])}
    line = result_line("ce", 1, {"answers": outcome}, settings=dict(found.shaping["ce"]))
    Results(place / "out", "small").add(line)
    changed = with_options(**{option: str(place / value) if option == "data" else value})
    told = rf"evaluation answers: {option} .* cannot be allowed: ce, seed 1 was measured with"
    if refused:
        assert re.search(told, problems(place, changed=changed, allow_changes=True, part=part))
    else:
        assert check(place, changed=changed, allow_changes=True, part=part).changed


def test_files_that_are_made_first_need_not_be_there_yet(place):
    changed = {
        "prepare": [{"command": ["true"], "makes": str(place / "later.jsonl")}],
        "settings": {"dataset": str(place / "later.jsonl")},
    }
    study = check(place, changed=changed).study
    write_jsonl(generate_problems(20, max_number=10), place / "later.jsonl")
    mark_prepared(study, study.prepare[0])
    assert check(place, changed=changed).shaping["ce"]["dataset"].startswith("content ")
    (place / "later.jsonl").unlink()
    assert check(place, changed=changed)  # it is made again


def test_an_evaluation_that_was_added_needs_the_weights(place):
    found = check(place)
    folder = found.study.folder("ce", 1)
    folder.mkdir(parents=True)
    (folder / "train_results.json").write_text("{}")
    with pytest.raises(
        StudyError, match="ce, seed 1 was trained, its weights are gone, and answers of it is lacking"
    ):
        check_weights(planned_runs(found.study, {}))
    (folder / "model.safetensors").write_text("")
    check_weights(planned_runs(found.study, {}))


def test_results_of_other_options_in_a_runs_folder_are_refused(place):
    folder = check(place).study.folder("ce", 1) / "answers"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": {"max_new_tokens": 9}}))
    assert "holds results of other options (max_new_tokens: 9 → 4" in problems(place)


def test_a_finished_evaluation_may_have_been_made_elsewhere(place):
    """The folder of a study that was moved names its data by their old place; its results are in the file."""
    found = check(place)
    line = result_line("ce", 1, {"answers": answers_outcome([1, 0])})
    line["settings"], line["evaluations"]["answers"]["options"] = (
        found.shaping["ce"],
        found.options["answers"],
    )
    Results(place / "out", "small").add(line)
    for seed in (1, 2):
        folder = found.study.folder("ce", seed) / "answers"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"settings": {"data": "old/test.jsonl"}}))
    told = problems(place)
    assert "seed2/ce/answers holds results of other options" in told
    assert "seed1/ce/answers" not in told


def test_what_follows_from_another_loss_need_not_be_said(place):
    """A strength that nobody gave is the default of its loss: it is no further difference."""
    arms = {"ce": {"settings": {"loss": "ce"}}, "emo": {"settings": {"loss": "emo"}}}
    base = write_study(place).parent / "recipe.yaml"
    recipe = {
        name: value
        for name, value in yaml.safe_load(base.read_text()).items()
        if not name.startswith("matrix_")
    }
    (place / "plain.yaml").write_text(yaml.safe_dump(recipe))
    found = problems(place, changed={"recipe": "plain.yaml", "arms": arms}, part=Part(("nobody",)))
    assert "there is no arm 'nobody'" in found
    assert "differ in more" not in found
    (place / "strong.yaml").write_text(yaml.safe_dump({**recipe, "loss": "emo", "emo_weight": 0.9}))
    arms["emo"] = {"recipe": "strong.yaml", "differs_in": ["loss"]}
    assert "differ in more than the study says: emo_weight None and 0.9" in problems(
        place, changed={"recipe": "plain.yaml", "arms": arms}
    )
