"""Study files: what they say, in which order runs come, and everything that is wrong with one said at once."""

from pathlib import Path

import pytest
import yaml

from helpers.scripts import ROOT
from helpers.studies import write_study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.reading import Overrides, read_study, reading_of, study_file


def test_all_arms_of_a_seed_come_before_the_next_seed_and_the_baseline_first(tmp_path):
    arms = {
        "b": {"settings": {"matrix_weight": 2}, "seeds": [2, 1]},
        "a": {"settings": {"matrix_weight": 1}},
        "ce": {"settings": {"matrix_weight": 0}},
    }
    study = read_study(write_study(tmp_path, arms=arms, seeds=[3, 1, 2]))
    runs = [(arm.name, seed) for arm, seed in study.runs()]
    assert runs == [
        *(("ce", 3), ("a", 3)),
        *(("ce", 1), ("b", 1), ("a", 1)),
        *(("ce", 2), ("b", 2), ("a", 2)),
    ]
    assert study.arm("b").seeds == (1, 2)
    assert study.folder("b", 2) == tmp_path / "out" / "seed2" / "b"


def test_an_arm_goes_before_the_study_and_the_command_line_before_the_study(tmp_path):
    path = write_study(tmp_path, settings={"max_steps": 7, "learning_rate": 1e-4})
    study = read_study(path, Overrides(settings={"learning_rate": "1e-5"}))
    assert study.settings_of(study.baseline) == {"max_steps": 7, "learning_rate": "1e-5", "matrix_weight": 0}


def test_options_of_one_evaluation_go_before_those_of_all(tmp_path):
    settings = {"data": "x.jsonl", "limit": 9}
    evaluations = {name: {"script": "gsm8k", "settings": settings} for name in ("one", "two")}
    overrides = Overrides(evaluations={"evaluations": {"limit": "3"}, "two": {"limit": "4"}})
    path = write_study(tmp_path, evaluations=evaluations, primary={"evaluation": "one"})
    study = read_study(path, overrides)
    assert [item.settings["limit"] for item in study.evaluations] == ["3", "4"]
    assert study.primary.measure == "accuracy"
    assert study.primary.smallest_difference is None


def test_folders_are_filled_in(tmp_path):
    path = write_study(
        tmp_path,
        settings={"dataset": "${output}/data/x.jsonl", "columns": {"question": "${study}"}},
        prepare=[{"command": ["python", "${study}/make.py", 3], "makes": "${output}/data/x.jsonl"}],
    )
    study = read_study(path, Overrides(output=tmp_path / "other"))
    assert study.settings == {
        "dataset": f"{tmp_path}/other/data/x.jsonl",
        "columns": {"question": str(tmp_path)},
    }
    (step,) = study.prepare
    assert step.command == ("python", f"{tmp_path}/make.py", "3")
    assert step.makes == tmp_path / "other" / "data" / "x.jsonl"


def test_the_folder_of_the_study_file_is_the_same_from_everywhere(tmp_path, monkeypatch):
    """A run that was begun from one working directory goes on from another with the same options."""
    write_study(tmp_path, output="${study}/out", settings={"dataset": "${study}/x.jsonl"})
    found = []
    for where, given in ((tmp_path, "study.yaml"), (tmp_path.parent, f"{tmp_path.name}/study.yaml")):
        monkeypatch.chdir(where)
        study = read_study(Path(given))
        found.append((study.output, study.settings["dataset"]))
    assert found == [(tmp_path / "out", str(tmp_path / "x.jsonl"))] * 2


def test_a_recipe_is_beside_the_study_or_comes_along(tmp_path):
    shipped = read_study(write_study(tmp_path, recipe="quickstart_ce"))
    assert shipped.baseline.recipe == ROOT / "recipes" / "quickstart_ce.yaml"
    assert read_study(write_study(tmp_path)).baseline.recipe == tmp_path / "recipe.yaml"


def test_launcher_options_as_a_mapping_or_as_words(tmp_path):
    (tmp_path / "own.yaml").write_text("num_processes: 2\n")
    launch = {"training": {"cpu": True, "config_file": "own.yaml"}, "evaluation": ["--num_processes", 3]}
    study = read_study(write_study(tmp_path, launch=launch), Overrides(launch=("--mixed_precision", "no")))
    own = ("--cpu", "--config_file", str(tmp_path / "own.yaml"))
    assert study.launch["training"] == (*own, "--mixed_precision", "no")
    assert study.launch["evaluation"] == ("--num_processes", "3", "--mixed_precision", "no")


def test_a_launch_file_in_the_home_folder(tmp_path, monkeypatch):
    (home := tmp_path / "home").mkdir()
    (home / "own.yaml").write_text("num_processes: 1\n")
    monkeypatch.setenv("HOME", str(home))
    study = read_study(write_study(tmp_path, launch={"training": {"config_file": "~/own.yaml"}}))
    assert study.launch["training"] == ("--config_file", str(home / "own.yaml"))


CE, MCE = {"settings": {"matrix_weight": 0}}, {"settings": {"matrix_weight": 1}}
EVALUATION = {"script": "gsm8k"}
MISTAKES = [
    ({"seeds": [1]}, "seeds has one training seed: nothing could be said about other seeds"),
    ({"seeds": [1, 1, 2]}, "seeds names 1 twice"),
    ({"seeds": ["a"]}, r"seeds must be a list of whole numbers such as \[1, 2, 3\]"),
    ({"seeds": [True, 2]}, "seeds must be a list of whole numbers"),
    ({"seeds": []}, "seeds has no training seed"),
    ({"baseline": None}, r"there is no baseline; name the arm that the others are held against \(mce, ce\)"),
    ({"baseline": "cd"}, "baseline: there is no arm 'cd'.*did you mean 'ce'"),
    ({"baseline": ["ce"]}, r"baseline: there is no arm \['ce'\]"),
    ({"arms": {"ce": CE}}, "arms must name two arms at least, got ce"),
    ({"arms": None}, "arms must name two arms at least, got none"),
    ({"arms": {"ce": CE, "a/b": MCE}}, "arm a/b: a name is made of letters"),
    (
        {"arms": {"ce": CE, "x": {**MCE, "seeds": [1, 5]}}},
        "arm x: seeds has 5, which the study's seeds have not",
    ),
    ({"arms": {"ce": {**CE, "seeds": [1]}, "x": MCE}}, "arm ce is the baseline and must have all seeds"),
    ({"arms": {"ce": CE, "x": {"setings": {}}}}, "arm x has no 'setings'.*did you mean 'settings'"),
    (
        {"arms": {"ce": CE, "x": {"settings": {"seed": 3}}}},
        "arm x: settings cannot give seed: the seeds are those of",
    ),
    ({"arms": {"ce": CE, "x": {"settings": {"limit": None}}}}, "arm x: settings: limit cannot be null here"),
    ({"arms": {"ce": CE, "x": {"recipe": "none.yaml"}}}, "arm x: recipe: there is no .*none.yaml"),
    ({"arms": {"ce": CE, "x": {**MCE, "differs_in": "limit"}}}, "arm x: differs_in must be a list"),
    ({"recipe": None}, "arm mce has no recipe, and the study names none"),
    ({"evaluations": None}, "evaluations must name one at least"),
    (
        {"evaluations": {"e": {"script": "gsm8"}}},
        "evaluation e: script must be one of .*got 'gsm8'.*did you mean 'gsm8k'",
    ),
    ({"evaluations": {"logs": EVALUATION}}, "evaluation logs: choose another name"),
    (
        {"evaluations": {"e": {**EVALUATION, "settings": {"model": "x"}}}},
        "evaluation e: settings cannot give model",
    ),
    ({"primary": {"evaluation": "x"}}, "primary: evaluation must name the one .* one of answers; got 'x'"),
    ({"primary": {"evaluation": ["x"]}}, r"primary: evaluation must name the one .*got \['x'\]"),
    ({"primary": {"measure": "answer.nats"}}, "primary: answers has no measure 'answer.nats'.*accuracy"),
    ({"primary": {"smallest_difference": 0}}, "primary: smallest_difference must be positive, got 0"),
    ({"launch": {"test": {}}}, "launch has no 'test'"),
    ({"launch": {"training": {"cpu": False}}}, "launch: training: cpu must be a value, or true"),
    ({"keep_weights": "all"}, "keep_weights must be true, false or model, got 'all'"),
    ({"keep_weights": 1.0}, "keep_weights must be true, false or model, got 1.0"),
    ({"confidence": 95}, r"confidence must be in \[0.5, 1\), got 95"),
    ({"name": "a b"}, "name must be letters, digits"),
    ({"name": 5}, "name must be letters, digits.*got 5; in quotes it is a text: '5'"),
    ({"name": "x" * 101}, "name must be letters, digits"),
    ({"arms": {1: CE, "x": MCE}}, "arms has the name 1, which is no text; write names .* in quotes: '1'"),
    ({"arms": {"ce": CE, "CE": MCE}}, "arms ce and CE would be one folder on some file systems"),
    ({"seeds": [1, 2**32]}, r"seeds must be a list of whole numbers .* each below 2\^32"),
    (
        {"evaluations": {"training": EVALUATION}},
        "evaluation training: choose another name; that of every run",
    ),
    (
        {"evaluations": {"evaluations": EVALUATION}},
        "evaluation evaluations: choose another name; --evaluations",
    ),
    (
        {"evaluations": {"model.json": EVALUATION}},
        "evaluation model.json: the name of an evaluation has no '.'",
    ),
    ({"evaluations": {"a": EVALUATION, "A": EVALUATION}}, "evaluations a and A would be one folder"),
    (
        {"primary": {"smallest_difference": float("nan")}},
        "smallest_difference must be positive and finite, got nan",
    ),
    (
        {"primary": {"smallest_difference": float("inf")}},
        "smallest_difference must be positive and finite, got inf",
    ),
    ({"launch": {"training": ["--cpu", True]}}, "launch: training must be a mapping"),
    ({"output": ""}, "output must be a folder, got ''"),
    ({"output": "${output}/x"}, "output must be a folder, got '.{output}/x'"),
    ({"prepare": {}}, "prepare must be a list of commands"),
    ({"prepare": [{"command": ["true"], "makes": ""}]}, "prepare, step 1 needs command"),
    ({"output": 3}, "output must be a folder, got 3"),
    ({"prepare": [{"command": "x"}]}, "prepare, step 1 needs command, a list of words, and makes"),
    ({"seed": [1]}, "the study has no 'seed'.*did you mean 'seeds'"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes(changed, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        read_study(write_study(tmp_path, **changed))


def test_all_problems_are_said_at_once(tmp_path):
    path = write_study(tmp_path, seeds=[1], baseline="nobody", keep_weights=3, primary={"measure": "x"})
    with pytest.raises(StudyError) as raised:
        read_study(path)
    said = str(raised.value)
    assert said.count("\n- ") == 4
    for part in ("seeds has one", "no arm 'nobody'", "keep_weights", "no measure 'x'"):
        assert part in said


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text() + "seeds: [4, 5]\n")
    with pytest.raises(StudyError, match="seeds is given twice, in lines"):
        read_study(path)


@pytest.mark.parametrize(("text", "message"), [("- a\n", "must hold a mapping"), ("a: [", "is not YAML")])
def test_what_is_no_study_file(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_study(tmp_path / "x.yaml")


def test_a_setting_that_arms_differ_in_is_not_set_for_all(tmp_path):
    overrides = Overrides(
        settings={"matrix_weight": "2", "seed": "3"}, evaluations={"nothing": {"limit": "1"}}
    )
    problems = "\n".join(reading_of(write_study(tmp_path), overrides).problems)
    assert "matrix_weight is given on the command line for every arm, and is what arm mce changes" in problems
    assert "the command line cannot give seed" in problems
    assert "--nothing.limit: there is no evaluation 'nothing'" in problems


def test_studies_that_come_along_can_be_read():
    for path in sorted((ROOT / "recipes" / "studies").glob("*.yaml")):
        assert study_file(path.stem) == path
        study = read_study(path)
        assert any(arm.name.startswith("ce") for arm in study.arms)
        assert len(study.seeds) >= 2
        assert yaml.safe_load(path.read_text())["output"] == str(study.output)
    with pytest.raises(
        StudyError, match=r"no study of that name comes with mce-llm.*did you mean 'quickstart'"
    ):
        study_file("quikstart")
