"""`mce-llm finetune`: which words go where, and what is refused before anything starts."""

import os
import subprocess
import sys

import pytest

from helpers.scripts import ROOT
from mce_llm.commands.launch import launch_command, recipe_file, split_words
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
        launch_command(config, words)


def test_the_command_becomes_the_launcher(tmp_path):
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
    assert result.returncode == 1
    assert result.stdout.startswith("$ accelerate launch --quiet --cpu ")
    assert result.stderr.strip().splitlines()[-1] == "error: max_length must be at least 1, got 0"
    assert "Traceback" not in result.stderr
