"""`mce-llm finetune`: which words go where, and what is refused before anything starts."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
import torch
import yaml

from helpers.recipes import save_tiny_model
from helpers.scripts import ROOT
from helpers.waiting import HANG, wait_until
from mce_llm.commands.launch import launch_words, recipe_file, split_words
from mce_llm.data import generate_problems, write_jsonl
from mce_llm.running.settings import ConfigurationError


def test_words_go_to_the_launcher_or_to_the_recipe():
    told = split_words(
        [
            *("--num_processes", "4", "--learning_rate", "1e-5", "--main-process-port=0"),
            *("--lora_target_modules", "a,b", "--multi_gpu", "--packing=true"),
        ]
    )
    assert told.launcher == ("--num_processes", "4", "--main-process-port", "0", "--multi_gpu")
    assert told.settings == ("--learning_rate", "1e-5", "--lora_target_modules", "a,b", "--packing=true")


def test_what_both_know_is_the_recipes():
    words = ("--gradient_accumulation_steps", "4", "--debug", "underflow_overflow")
    assert split_words(words).settings == words


def test_a_launch_file_is_found_by_name_or_by_path(tmp_path, monkeypatch):
    shipped = str(ROOT / "recipes" / "accelerate" / "zero3.yaml")
    monkeypatch.chdir(tmp_path)
    for given in ("zero3", "zero3.yaml", "recipes/accelerate/zero3.yaml"):
        assert split_words(["--config_file", given]).launcher == ("--config_file", shipped)
    assert split_words([f"--config-file={given}"]).launcher == ("--config-file", shipped)
    (tmp_path / "zero3.yaml").write_text("num_processes: 1\n")
    assert split_words(["--config_file", "zero3.yaml"]).launcher == ("--config_file", "zero3.yaml")


def test_a_file_in_the_home_folder_is_given_on_by_its_whole_path(tmp_path, monkeypatch):
    """accelerate takes ~ for a folder of that name, and no shell sees that of `--config_file=~/own.yaml`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("num_processes: 1\n")
    for words in (["--config_file=~/own.yaml"], ["--config_file", "~/own.yaml"]):
        assert split_words(words).launcher == ("--config_file", str(tmp_path / "own.yaml"))
    assert recipe_file("~/own.yaml") == str(tmp_path / "own.yaml")
    with pytest.raises(ConfigurationError, match=r"no launch file '~nobody-of-this-name/own.yaml'"):
        split_words(["--config_file", "~nobody-of-this-name/own.yaml"])


def test_a_recipe_is_found_by_name_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("quickstart_ce", "quickstart_ce.yaml", "recipes/quickstart_ce.yaml"):
        assert recipe_file(given) == str(ROOT / "recipes" / "quickstart_ce.yaml")
    (tmp_path / "own.yaml").write_text("seed: 1\n")
    assert recipe_file("own.yaml") == "own.yaml"


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("quickstart_cee", [], r"no configuration file 'quickstart_cee'.*did you mean 'quickstart_ce'"),
        ("quickstart_ce", ["--num_proceses", "2"], "option 'num_proceses' .did you mean 'num_processes'"),
        ("quickstart_ce", ["--learning_rat", "2"], "option 'learning_rat' .did you mean 'learning_rate'"),
        ("quickstart_ce", ["--config_file", "zeero3"], "no launch file 'zeero3'.*did you mean 'zero3'"),
        ("quickstart_ce", ["word"], "unexpected word 'word'"),
        ("quickstart_ce", ["--module"], "unknown setting or launcher option 'module'"),
    ],
)
def test_refused_before_anything_starts(config, words, message):
    with pytest.raises(ConfigurationError, match=message):
        launch_words(config, words)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about a machine without an accelerator")
def test_processes_that_accelerate_would_not_start():
    """It starts one and says nothing, unless something asks for several on the CPU."""
    with pytest.raises(
        ConfigurationError, match="would start one process and say nothing; --config_file cpu"
    ):
        launch_words("quickstart_ce", ["--num_processes", "2"])
    assert "--num_machines" not in launch_words(
        "quickstart_ce", ["--num_processes", "2", "--config_file", "cpu"]
    )
    added = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert launch_words("quickstart_ce", ["--num_processes", "1"])[:6] == added


@pytest.fixture
def tiny_recipe(tmp_path):
    """A run of very many steps, that says each of them."""
    rows = generate_problems(40, max_number=10)
    write_jsonl(rows, tmp_path / "data.jsonl")
    save_tiny_model(tmp_path, rows)
    settings = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset": str(tmp_path / "data.jsonl"),
        "prompt": "plain",
        "max_steps": 100_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "tiny.yaml"


@contextmanager
def stepping(recipe, *words):
    """`mce-llm finetune` in a session of its own, once the recipe has made its second step; gone afterwards."""
    folder = recipe.parent
    command = [sys.executable, "-m", "mce_llm", "finetune", str(recipe), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True, env=environment)
        try:
            wait_until(lambda: "step 2/" in (folder / "out.txt").read_text() or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "launch_file",
    [
        pytest.param((), id="one"),
        pytest.param(("--config_file", "cpu"), id="two", marks=(pytest.mark.slow, pytest.mark.ci)),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_as_cleanly_with_two_processes_as_with_one(launch_file, number, code, tiny_recipe):
    """Sent to all processes of the terminal, as Ctrl-C is: one line, no traceback, the recipe's exit code."""
    with stepping(tiny_recipe, *launch_file, "--main_process_port", "0") as process:
        os.killpg(process.pid, number)
        assert process.wait(HANG) == code
    said = (tiny_recipe.parent / "err.txt").read_text()
    assert "Traceback" not in said, said
    assert said.count("the same command goes on from") == 1, said


def test_sigterm_to_the_launcher_alone_reaches_the_recipe(tiny_recipe):
    """Nothing is left running behind."""
    with stepping(tiny_recipe) as process:
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 143
        assert children
        assert not any(child.is_running() for child in children)


@pytest.mark.slow
@pytest.mark.ci
def test_a_script_that_was_killed_is_said_to_be(tiny_recipe):
    with stepping(tiny_recipe) as process:
        psutil.Process(process.pid).children()[0].kill()
        assert process.wait(HANG) == 128 + signal.SIGKILL
    said = (tiny_recipe.parent / "err.txt").read_text()
    assert said.strip().endswith(
        "the script was ended by SIGKILL: usually the memory of the machine was not enough"
    )


def test_the_exit_code_is_the_recipes(tmp_path):
    """Settings reach the recipe, which refuses them in one line; the launcher adds no traceback to it."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mce_llm", "finetune", "quickstart_ce", "--cpu"),
            *("--num_processes", "1", "--output_dir", str(tmp_path), "--max_length", "0"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stdout.startswith("$ accelerate launch --num_machines 1 ")
    assert result.stderr.strip().splitlines()[-1] == "error: max_length must be at least 1, got 0"
    assert "Traceback" not in result.stderr
