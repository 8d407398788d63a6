"""Pushing through the trainer to a hub on the loopback, with the real client: what is uploaded, and what goes wrong."""

import json

import huggingface_hub.constants
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from helpers.hub import running_hub
from helpers.models import make_batch, make_model
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.training.publishing import HubError

TOKEN = "hf_right"


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch, TOKEN) as hub:
        yield hub


def make_trainer(folder, **changes):
    rows = make_batch(8, 10)
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "hub_model_id": "somebody/tiny",
        "hub_token": TOKEN,
        **changes,
    }
    return MatrixTrainer(
        model=make_model(),
        args=MatrixTrainingArguments(**settings),
        train_dataset=[{name: tensor[i] for name, tensor in rows.items()} for i in range(8)],
    )


def test_a_push_at_the_end_carries_weights_and_card_and_no_token(hub, tmp_path):
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_private_repo=True)
    trainer.train()
    trainer.save_model()
    assert hub.private == {"somebody/tiny": True}
    assert {"README.md", "model.safetensors", "config.json"} <= set(hub.files)
    assert hub.files["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    card = ModelCard(hub.files["README.md"].decode())
    assert "matrix-cross-entropy" in card.data.tags
    assert "2 of 2" in card.text
    assert all(token == f"Bearer {TOKEN}" for _, token in hub.requests)
    assert "training_args.bin" in hub.files  # Trainer pickles its arguments beside the weights
    assert not [path for path, content in hub.files.items() if TOKEN.encode() in content]


def test_what_the_pusher_says_stays_in_later_cards(hub, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.push_to_hub(
        language="en", license="mit", tags="tiny", dataset="acme/sums", commit_message="By hand"
    )
    assert hub.commits[-1][0] == "By hand"
    trainer.save_model()
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.language, data.license, data.datasets) == ("en", "mit", ["acme/sums"])
    assert "tiny" in data.tags


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("every_save", ["Training in progress, step 1", "Training in progress, step 2"]),
        ("checkpoint", ["Training in progress, step 2, checkpoint"]),
    ],
)
def test_pushes_while_training_goes_on(hub, tmp_path, strategy, expected):
    trainer = make_trainer(
        tmp_path,
        push_to_hub=True,
        save_strategy="steps",
        save_steps=1,
        hub_strategy=strategy,
        hub_always_push=True,
    )
    trainer.train()
    titles = [title for title, _ in hub.commits]
    assert set(expected) <= set(titles)
    assert "1 of 2" in _first(hub, "README.md") or "2 of 2" in _first(hub, "README.md")
    if strategy == "checkpoint":
        pushed = {path: content for path, content in hub.files.items() if path.startswith("last-checkpoint/")}
        assert {"last-checkpoint/model.safetensors", "last-checkpoint/trainer_state.json"} <= set(pushed)
        state = json.loads(pushed["last-checkpoint/trainer_state.json"])
        assert state["global_step"] == 2
    assert not [path for path, content in hub.files.items() if TOKEN.encode() in content]


def _first(hub, path):
    return next(files[path] for _, files in hub.commits if path in files).decode()


def test_a_rejected_token_is_said_before_training(hub, tmp_path):
    with pytest.raises(
        HubError, match=r"cannot make the repository 'somebody/tiny' on the hub: .*401"
    ) as refusal:
        make_trainer(tmp_path, push_to_hub=True, hub_token="hf_wrong")
    assert "hf_wrong" not in str(refusal.value)


def test_a_push_that_fails_leaves_the_model_saved(hub, tmp_path):
    trainer = make_trainer(tmp_path, push_to_hub=True)
    trainer.train()
    hub.refuse = True
    with pytest.raises(HubError, match="the model was not pushed to the hub; it is saved in"):
        trainer.push_to_hub()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_a_failed_push_in_the_background_is_said(hub, tmp_path, caplog, monkeypatch):
    trainer = make_trainer(tmp_path, push_to_hub=True, save_strategy="steps", save_steps=2)
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    transformers.logging.set_verbosity_warning()
    hub.refuse = True
    trainer.train()
    assert "a push to the hub during training failed" in caplog.text


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is unset"):
        make_trainer(tmp_path, push_to_hub=True)
