"""Fixtures of the tests that run the fine-tuning recipe: a tiny model, tokenizer and data on disk, and a short run."""

import pytest

from helpers.recipes import save_tiny_model
from mce_llm.data import generate_problems, write_jsonl


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """data.jsonl (GSM8K's form), metamath.jsonl, held_out.jsonl, tokenizer/ and model/."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = generate_problems(60, max_number=10)
    write_jsonl(rows, folder / "data.jsonl")
    write_jsonl(generate_problems(10, split="test", max_number=10), folder / "held_out.jsonl")
    write_jsonl(
        [
            {
                "query": row["question"],
                "response": row["answer"].replace("####", "The answer is:"),
                "type": "GSM_Rephrased",
            }
            for row in rows
        ],
        folder / "metamath.jsonl",
    )
    save_tiny_model(folder, rows)
    return folder


@pytest.fixture
def settings(folder, tmp_path):
    """The settings of a short run, by name; `helpers.recipes.words` turns them into a command line."""
    return {
        "model_name_or_path": folder / "model",
        "dataset": folder / "data.jsonl",
        "prompt": "plain",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "dataloader_pin_memory": "false",
    }
