"""`mce-llm study` as a user types it: its plan, what it refuses, and once from end to end with interruptions."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import yaml

from helpers.processes import programs_of
from helpers.studies import answers_outcome, result_line, write_study
from helpers.waiting import HANG, wait_until
from mce_llm.commands.study import names_given, overrides_of, part_given, seeds_given
from mce_llm.data import load_examples
from mce_llm.running.messages import ConfigurationError
from mce_llm.studies.errors import StudyError
from mce_llm.studies.parts import EVERYTHING, Part
from mce_llm.studies.results import Results


def test_words_go_to_recipes_evaluations_and_launcher():
    words = [
        "--learning_rate",
        "1e-5",
        "--a.limit",
        "3",
        "--num_processes",
        "2",
        "--all.columns=x",
        "--packing",
    ]
    found = overrides_of(words)
    assert found.settings == {"learning_rate": "1e-5", "packing": True}
    assert found.evaluations == {"a": {"limit": "3"}, "all": {"columns": "x"}}
    assert found.launch == ("--num_processes", "2")
    with pytest.raises(ConfigurationError, match=r"'learning_rat' .did you mean 'learning_rate'"):
        overrides_of(["--learning_rat", "3"])
    with pytest.raises(ConfigurationError, match=r"--a.limit needs a value"):
        overrides_of(["--a.limit"])
    with pytest.raises(StudyError, match=r"--seeds takes numbers .* got x"):
        seeds_given("1, x")
    assert seeds_given("1, 2") == [1, 2]
    assert seeds_given(None) == names_given(None) == []
    assert part_given("ce", "1", "answers, more") == Part(("ce",), (1,), ("answers", "more"))
    assert part_given(None, None, None) == EVERYTHING
    with pytest.raises(StudyError, match="--evaluate names nothing"):
        part_given(None, None, "")
    for given, option in ((names_given, "--only"), (seeds_given, "--seeds")):
        for nothing in ("", " , "):
            with pytest.raises(StudyError, match=rf"{option} names nothing.*leave it out to run everything"):
                given(nothing)


@pytest.fixture
def study(place, tmp_path):
    """A study of the tiny model, for a few steps."""
    path = write_study(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe |= {"model_name_or_path": str(place / "model"), "dataset": str(place / "data.jsonl")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    content = yaml.safe_load(path.read_text())
    content["evaluations"]["answers"]["settings"]["data"] = str(place / "held_out.jsonl")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_the_plan_is_every_command_in_its_order_and_writes_nothing(command, study):
    result = command("study", study, "--plan", "--answers.limit", 5, "--max_steps", 4, columns=4000)
    assert result.exit_code == 0, result.output
    commands = [line for line in result.stdout.splitlines() if " -m mce_llm.running.launcher " in line]
    told = [(("finetune.py" in line), "seed1" in line, "/ce" in line) for line in commands]
    assert told == [
        (kind, seed, arm) for seed in (True, False) for arm in (True, False) for kind in (True, False)
    ]
    out = study.parent / "out"
    assert f"--max_steps 4 --matrix_weight 0 --seed 1 --output_dir {out}/seed1/ce" in commands[0]
    assert f"--model {out}/seed1/ce --output {out}/seed1/ce/answers" in commands[1]
    assert commands[1].endswith("--limit 5")
    assert "small: 0 of 4 runs finished; time left unknown yet" in result.stdout
    assert not out.exists()


def test_the_plan_knows_what_is_done_and_estimates_the_rest(command, study):
    first = command("study", study, "--plan")
    assert first.exit_code == 0, first.output
    out = study.parent / "out"
    line = result_line("ce", 1, {"answers": answers_outcome([1, 0])})
    line["settings"] = line["evaluations"]["answers"]["options"] = {}
    Results(out, "small").add(line)
    refused = command("study", study, "--plan")
    assert refused.exit_code == 2
    result = command("study", study, "--plan", "--allow_changes", columns=300)
    assert "ce, seed 1: finished, its results are kept" in result.stdout
    assert "mce, seed 1: training (about 60 s)" in result.stdout
    assert "1 of 4 runs finished; time left 4 min (estimate" in result.stdout
    part = command("study", study, "--plan", "--allow_changes", "--only", "mce", "--seeds", "2", columns=300)
    assert "0 of 1 run finished" in part.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "one"], "--seeds takes numbers"),
        (["--only", "cd"], "--only: there is no arm 'cd' (did you mean 'ce'?)"),
        (["--seeds", "7"], "--seeds: 7 is none of the study's seeds"),
        (["--evaluate", "x"], "--evaluate: there is no evaluation 'x'"),
        (["--matrix_weight", "2"], "matrix_weight is given on the command line for every arm"),
        (["--answer.limit", "2"], "there is no evaluation 'answer' (did you mean 'answers'?)"),
        (["--max_stepps", "2"], "'max_stepps' (did you mean 'max_steps'?)"),
        (["word"], "unexpected word 'word'"),
        (["--cpu", "true"], "launch: training: 'true' is the value of no option: cpu is a switch"),
        (["--num_processes", "--cpu"], "launch: evaluation: num_processes needs a value"),
        (["--jobs", "9999"], "--jobs 9999 on a machine with"),
    ],
)
def test_mistakes(words, message, command, study):
    result = command("study", study, *words, columns=300)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (study.parent / "out").exists()


def test_results_that_an_earlier_start_adds_meanwhile_are_seen(command, study, monkeypatch):
    """It was ending while this one looked at recipes and data: what it has run is not run, or kept, a second time."""
    out = study.parent / "out"

    def held(folder, **options):
        line = result_line("ce", 1, {"answers": answers_outcome([1, 0])})
        line["settings"] = line["evaluations"]["answers"]["options"] = {}
        Results(folder, "small").add(line)
        return nullcontext()

    monkeypatch.setattr("mce_llm.commands.study.folder_held", held)
    result = command("study", study)
    assert result.exit_code == 2
    assert "was begun with other settings or data" in result.stderr
    assert not (out / "definition.json").exists()


def test_a_place_that_cannot_be_written_is_named(command, study, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", str(study.parent / "out" / "definition.json"))

    monkeypatch.setattr("mce_llm.commands.study.write_definition", full)
    result = command("study", study)
    assert result.exit_code == 2
    assert "definition.json: No space left on device" in result.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_a_failing_arm_leaves_the_others_finished_and_told_of(study, start, tmp_path):
    """Two runs at once, one of them cannot go on: the other comes to its end and into the tables; mended, the study does."""
    content = yaml.safe_load(study.read_text())
    content["arms"]["wild"] = {"settings": {"matrix_weight": 0, "learning_rate": 1e30}}
    content |= {"seeds": [1, 2], "settings": {"max_steps": 10}}
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    log, out = tmp_path / "log.txt", tmp_path / "out"
    process = start(study, log, "--jobs", 2)
    assert process.wait(WHOLE) == 2, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert "error: wild, seed 1: training ended with exit code 2" in said
    assert "the loss is nan" in said
    kept = Results(out, "small").read()
    assert {("ce", 1), ("mce", 1)} <= kept.keys()
    assert json.loads((out / "study.json").read_text())["finished"] == len(kept)
    assert f"{len(kept)} of 6 runs." in (out / "tables.md").read_text()

    process = start(study, log, "--jobs", 2, "--only", "ce,mce")
    assert process.wait(WHOLE) == 0, log.read_text()
    assert json.loads((out / "study.json").read_text())["finished"] == 4


def test_a_study_that_is_not_there(command):
    result = command("study", "quikstart")
    assert result.exit_code == 2
    assert "did you mean 'quickstart'?" in result.stderr


def test_the_help_says_how_to_set_things(command):
    printed = command("study", "--help", columns=200).stdout
    for word in (
        "--plan",
        "--only",
        "--evaluate",
        "--jobs",
        "--allow_changes",
        "--gsm8k.data FILE",
        "143 after SIGTERM",
    ):
        assert word in printed


def test_toy_data_are_judged_as_the_real_ones(tmp_path):
    from helpers.scripts import load_script
    from mce_llm.eval.answers import extract_answer, gold_expression, gold_value, is_correct

    toy_study = load_script("recipes/toy_study.py")
    toy_study.make_data(tmp_path)
    numbers, expressions = (load_examples(str(tmp_path / f"{name}.jsonl")) for name in ("gsm8k", "math"))
    assert len(numbers) == len(expressions) == toy_study.NUM_QUESTIONS
    assert not set(numbers["question"]) & set(expressions["question"])
    for row in expressions:
        assert extract_answer(row["response"], style="math").found_by in ("answer_is", "boxed")
        assert is_correct(row["response"], row["answer"], style="math")
        assert gold_expression(row["answer"]) == str(gold_value(row["answer"]))
    trained = {row["question"] for row in load_examples(str(tmp_path / "train.jsonl"))}
    assert not trained & {*numbers["question"], *expressions["question"]}


WHOLE = 4 * HANG  # seconds: a dozen programs, on a busy machine


@pytest.fixture
def start():
    """Start the command in a session of its own; what is still running in the end is killed."""
    started = []

    def run(study, log, *words):
        with log.open("ab") as file:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mce_llm", "study", str(study), *map(str, words)],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                )
            )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()  # its programs end with it
            process.wait()


@pytest.mark.slow
@pytest.mark.ci
def test_a_study_is_interrupted_everywhere_and_ends_with_the_same_results(study, start, tmp_path):
    """SIGTERM in a training, SIGKILL of the command alone in an evaluation, Ctrl-C between; against an undisturbed study."""
    content = yaml.safe_load(study.read_text())
    data = content["evaluations"]["answers"]["settings"]["data"]
    content["evaluations"]["likely"] = {"script": "likelihood", "settings": {"data": data, "prompt": "plain"}}
    content |= {"settings": {"max_steps": 40}, "keep_weights": False}
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    log, out = tmp_path / "log.txt", tmp_path / "out"
    whole = start(study, tmp_path / "whole.txt", "--output", tmp_path / "whole", "--jobs", 2)
    assert whole.wait(WHOLE) == 0, (tmp_path / "whole.txt").read_text()

    process = start(study, log)
    training = out / "logs" / "seed1" / "ce" / "training.log"
    wait_until(lambda: training.is_file() and "step 2/40" in training.read_text(), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 143, log.read_text()
    assert "stopped by SIGTERM; the same command goes on" in log.read_text()

    process = start(study, log)
    wait_until(lambda: programs_of(process, "gsm8k.py"), process, log, WHOLE)
    again = start(study, tmp_path / "second.txt")
    assert again.wait(HANG) == 2
    assert "another run is writing to" in (tmp_path / "second.txt").read_text()
    process.kill()
    process.wait()
    assert "resuming from" in training.read_text()

    process = start(study, log)
    wait_until(lambda: "results kept" in log.read_text(), process, log, WHOLE)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG) == 130, log.read_text()

    process = start(study, log)
    assert process.wait(WHOLE) == 0, log.read_text()
    ours, theirs = (
        {key: values_of(result) for key, result in Results(folder, "small").read().items()}
        for folder in (out, tmp_path / "whole")
    )
    assert ours == theirs
    assert len(ours) == 4
    ours, theirs = (
        json.loads((folder / "study.json").read_text())["evaluations"] for folder in (out, tmp_path / "whole")
    )
    assert ours == theirs
    assert not list(out.rglob("*.safetensors"))
    for name in ("index.html", "tables.md", "report/index.html", "answers-primary.png", "likely-nats.png"):
        assert (out / name).is_file(), name
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    process = start(study, log, "--output", moved)
    assert process.wait(WHOLE) == 0, log.read_text()
    assert json.loads((moved / "study.json").read_text())["evaluations"] == theirs
    assert not (moved / "seed1").exists()


def values_of(result):
    return {name: (found["values"], found["hashes"]) for name, found in result.evaluations.items()}
