"""The quickstart: a short real run, its report, and what it does with stages that are finished."""

import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from helpers.recipes import RECIPES
from mce_llm.commands.quickstart import (
    BASE,
    FINE_TUNES,
    QuickstartError,
    as_flags,
    chance,
    configured_steps,
    is_finished,
    launch,
)
from mce_llm.commands.quickstart_report import RunResult, draw, print_table
from mce_llm.running.launch_options import given_options


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mce_llm", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A quickstart of a few steps, by the real command."""
    folder = tmp_path_factory.mktemp("quickstart")
    result = run("quickstart", "--output", folder, "--steps-scale", "0.005", COLUMNS="80")
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


def test_table_and_picture(folder):
    text = (folder / "stdout.txt").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("│ base", "│ CE  ", "│ CE + MCE"))]
    assert len(rows) == 3
    assert all(row.count("│") == 8 and len(row) <= 80 for row in rows)
    assert "most common answer" in text
    assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_table_shows_what_the_runs_wrote(folder):
    for stage in (BASE, *FINE_TUNES):
        result = RunResult.read(stage.title, folder / stage.name)
        summary = json.loads((folder / stage.name / "eval" / "summary.json").read_text())
        evaluation = json.loads((folder / stage.name / "eval_results.json").read_text())
        assert (result.correct, result.n) == (summary["correct"], 300)
        assert result.cross_entropy == evaluation["eval_ce_loss"]
        assert result.matrix_cross_entropy == evaluation["eval_mce_loss"]
        assert result.step_seconds > 0
        assert result.history
        assert all(entry["ce_loss"] > 0 for entry in result.training)


def test_fine_tunes_start_from_the_base_model_and_see_the_same_data(folder):
    given = {
        stage.name: (folder / stage.name / "recipe.yaml").read_text().splitlines() for stage in FINE_TUNES
    }
    different = set(given["ce"]) ^ set(given["mce"])
    assert {line.split(":")[0] for line in different} <= {
        "output_dir",
        "matrix_kind",
        "matrix_weight",
        "matrix_shrinkage",
        "matrix_support",
        "matrix_order",
    }
    assert f"model_name_or_path: {folder / 'base'}" in given["ce"]


def test_train_and_test_problems_are_apart(folder):
    questions = {
        name: {
            json.loads(line)["question"]
            for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
        }
        for name in ("pretrain", "train", "validation", "test")
    }
    assert not questions["test"] & (questions["pretrain"] | questions["train"] | questions["validation"])


def test_finished_stages_are_kept(folder):
    steps = json.loads((folder / "mce" / "trainer_state.json").read_text())["global_step"]
    assert is_finished(FINE_TUNES[1], folder, steps)
    assert not is_finished(FINE_TUNES[1], folder, steps + 1)  # other settings
    results = folder / "mce" / "train_results.json"
    before = results.stat()
    os.utime(results, (0, 0))  # older than its base model
    assert not is_finished(FINE_TUNES[1], folder, steps)
    os.utime(results, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_finished(BASE, folder / "nowhere", steps)
    started = (folder / "base" / "model.safetensors").stat().st_mtime_ns
    again = run("quickstart", "--output", folder, "--steps-scale", "0.005")
    assert again.stdout.count("finished before, kept") == 3
    assert again.stdout.count("evaluated before, kept") == 3
    assert (folder / "base" / "model.safetensors").stat().st_mtime_ns == started


def test_chance(tmp_path):
    for name, answers in {"train": [7, 3, 7], "test": [7, 1, 2, 7]}.items():
        lines = [json.dumps({"question": "?", "answer": f"So.\n#### {answer}"}) for answer in answers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    assert chance(tmp_path) == ("7", 0.5)


def test_report_of_given_numbers(tmp_path, capsys):
    history = [
        {"step": step, "eval_ce_loss": 1 / step, "eval_mce_loss": 2.0, "eval_hidden_effective_rank": 3.0}
        for step in (5, 10)
    ]
    training = [{"step": step, "ce_loss": 2 / step} for step in range(1, 11)]
    runs = [
        RunResult(title, 30, 100, (0.2189, 0.3958), 0.1, 1.1, 9.5, 0.25, history, training)
        for title in ("base", "CE", "CE + MCE")
    ]
    print_table(runs, Console(width=80), ("12", 0.05))
    text = capsys.readouterr().out
    assert "30.00 %" in text
    assert "21.9 to 39.6 %" in text
    assert "answering 12" in text
    assert "does not tell which loss is better" in text
    assert draw(runs, tmp_path / "picture.png").stat().st_size > 1000


def test_a_stage_that_fails(tmp_path, capfd):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    with pytest.raises(QuickstartError, match=r"exit code \d+; to run it by hand:\n.*fails\.py --a b"):
        launch([str(script), *as_flags({"a": "b"})])


@pytest.mark.parametrize(("asked", "threads"), [(None, "3"), ("2", None)])
def test_a_stage_has_the_cores_of_this_process_unless_threads_are_said(asked, threads, monkeypatch):
    commands = []

    def take(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("mce_llm.commands.quickstart.subprocess.run", take)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    launch(["stage.py"])
    given = given_options(commands[0])
    assert given.get("num_cpu_threads_per_process") == threads
    assert given["num_processes"] == "1"
    assert "cpu" in given


def test_configured_steps():
    config = RECIPES / BASE.config
    assert configured_steps(config) > 100


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["quickstart", "--steps-scale", "0"], 2, "steps-scale"),
        (["quickstart", "--stepscale", "2"], 2, "No such option"),
        (["quikstart"], 2, "No such command"),
        (["--version"], 0, "mce-llm 0."),
        (["--help"], 0, "doctor"),
        (["quickstart", "--help"], 0, "no network"),
    ],
)
def test_command_line(words, code, message):
    result = run(*words)
    assert result.returncode == code
    assert message in result.stdout + result.stderr


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("quickstart", "--output", tmp_path / "file" / "runs")
    assert result.returncode == 2
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
