"""A tiny model, tokenizer, data and recipe on disk, and the command line in this process."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from helpers.recipes import save_tiny_model
from mce_llm.cli import app
from mce_llm.data import generate_problems, write_jsonl


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """data.jsonl, held_out.jsonl (two of its rows are in data.jsonl), model/, big/ (a config alone) and tokenizer/."""
    place = tmp_path_factory.mktemp("commands")
    rows = generate_problems(40, max_number=10)
    write_jsonl(rows, place / "data.jsonl")
    write_jsonl([*rows[:2], *generate_problems(6, split="test", max_number=10)], place / "held_out.jsonl")
    save_tiny_model(place, rows)
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32016,
    }
    (place / "big").mkdir()
    (place / "big" / "config.json").write_text(json.dumps(shape))
    return place


@pytest.fixture
def recipe(place, tmp_path):
    """Write a recipe with the given changes (None takes a setting out) and return its path."""

    def write(**changes):
        settings = {
            "model_name_or_path": str(place / "model"),
            "dataset": str(place / "data.jsonl"),
            "prompt": "plain",
            "max_length": 256,
            "total_batch_size": 8,
            "per_device_train_batch_size": 2,
            "num_train_epochs": 2,
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "use_cpu": True,
        }
        settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.fixture
def command(monkeypatch):
    """Run `mce-llm …` at a terminal of the given width and return its result."""

    def run(*words, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(app, [str(word) for word in words])

    return run
