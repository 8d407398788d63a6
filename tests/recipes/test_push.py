"""A fine-tuned model goes to the hub with its card, its recipe and its versions, and without the token."""

import pytest
import yaml
from huggingface_hub import ModelCard

from helpers.hub import running_hub
from helpers.recipes import words
from helpers.scripts import load_script

finetune = load_script("recipes/finetune.py")

TOKEN = "hf_right"


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch, TOKEN) as hub:
        yield hub


def test_everything_is_pushed_once_at_the_end(folder, settings, hub, capsys):
    hubbed = {
        "push_to_hub": "true",
        "hub_model_id": "somebody/sums",
        "hub_token": TOKEN,
        "hub_private_repo": "true",
    }
    evaluated = {"eval_dataset": folder / "held_out.jsonl", "matrix_kind": "marginal"}
    assert finetune.run(words(settings, **hubbed, **evaluated)) == 0
    assert "pushed to somebody/sums" in capsys.readouterr().out
    assert len(hub.commits) == 1
    assert hub.private == {"somebody/sums": True}
    expected = {
        "README.md",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "recipe.yaml",
        "versions.json",
    }
    assert expected <= set(hub.files)
    assert "_UNFINISHED" not in hub.files
    assert not [path for path, content in hub.files.items() if TOKEN.encode() in content]
    assert yaml.safe_load(hub.files["recipe.yaml"])["matrix_kind"] == "marginal"
    card = ModelCard(hub.files["README.md"].decode())
    assert "| train | `data.jsonl` | `train` | 60 |" in card.text
    assert "| eval | `held_out.jsonl` |" in card.text
    assert '| `kind` | `"marginal"` |' in card.text
    assert "Evaluation on `held_out.jsonl" in card.text
    assert "A fine-tuned version of `model`" in card.text
    assert str(folder) not in hub.files["README.md"].decode()
    assert card.data.datasets is None


def test_a_rejected_token(settings, hub, capsys):
    given = {"push_to_hub": "true", "hub_model_id": "somebody/sums", "hub_token": "hf_wrong"}
    assert finetune.run(words(settings, **given)) == 2
    message = capsys.readouterr().err
    assert "error: cannot make the repository 'somebody/sums' on the hub" in message
    assert "Log in with `hf auth login`" in message
    assert "hf_wrong" not in message


def test_a_push_that_fails_leaves_a_finished_run(settings, hub, capsys, monkeypatch):
    from mce_llm.lm import MatrixTrainer

    own = MatrixTrainer.train

    def train(self, *args, **kwargs):
        hub.refuse = True
        return own(self, *args, **kwargs)

    monkeypatch.setattr(MatrixTrainer, "train", train)
    given = {"push_to_hub": "true", "hub_model_id": "somebody/sums", "hub_token": TOKEN}
    assert finetune.run(words(settings, **given)) == 2
    assert "the model was not pushed to the hub; it is saved in" in capsys.readouterr().err
    assert (settings["output_dir"] / "model.safetensors").is_file()
    assert not (settings["output_dir"] / "_UNFINISHED").exists()
