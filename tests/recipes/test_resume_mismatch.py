"""A run that is started again with another model than its checkpoint holds says so in words, and touches nothing."""

import errno

import pytest
import torch

from helpers.recipes import contents, words
from helpers.scripts import load_script
from mce_llm.lm import MatrixTrainer
from mce_llm.lm.training.manifest import vouch
from mce_llm.lm.training.run_settings import FILE

finetune = load_script("recipes/finetune.py")
run = finetune.run

WIDER = "{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}"


@pytest.mark.parametrize(
    ("before", "after", "change", "why"),
    [
        ({}, {"model_config": WIDER}, "model_name_or_path", "size mismatch for"),
        ({"lora_r": 2}, {"lora_r": 4}, "lora_r 2 → 4", "size mismatch for"),
        ({"lora_r": 2}, {}, "lora_r 2 → 0", "find a checkpoint index"),
        ({}, {"lora_r": 2}, "lora_r 0 → 2", "a parameter group that"),
        (
            {"lora_r": 2},
            {"lora_r": 2, "lora_target_modules": "q_proj"},
            "lora_target_modules all-linear → q_proj",
            "a parameter group that doesn't match",
        ),
    ],
    ids=["wider", "rank", "adapters to all weights", "all weights to adapters", "targets"],
)
def test_a_checkpoint_of_another_model(settings, folder, capsys, before, after, change, why):
    settings |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    assert run(words(settings | before)) == 0
    checkpoint = settings["output_dir"] / "checkpoint-1"
    for result in (
        *settings["output_dir"].glob("*.safetensors"),
        settings["output_dir"] / "train_results.json",
    ):
        result.unlink()  # as a run leaves it that was stopped after its first save
    if "model_config" in after:
        settings["tokenizer_name_or_path"] = settings.pop("model_name_or_path")
    for known in (True, False):
        if not known:  # so that it is only found out when weights or optimizer are loaded
            (checkpoint / FILE).unlink()
            vouch(checkpoint)
            (settings["output_dir"] / "recipe.yaml").unlink()
        held = contents(settings["output_dir"])
        capsys.readouterr()
        assert run(words(settings | after, max_steps=2)) == 2
        captured = capsys.readouterr()
        assert f"error: cannot go on from {checkpoint}" in captured.err
        assert (change if known else why) in captured.err
        assert ("trained with are unknown" in captured.out) == (not known)
        assert "--resume false --overwrite true" in captured.err
        assert contents(settings["output_dir"]) == held
    assert run(words(settings | after, max_steps=2, resume="false", overwrite="true")) == 0


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
    ],
    ids=["memory", "disk"],
)
def test_memory_and_disk_are_not_taken_for_another_model(settings, monkeypatch, capsys, problem, said):
    settings |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    assert run(words(settings)) == 0
    for result in (
        *settings["output_dir"].glob("*.safetensors"),
        settings["output_dir"] / "train_results.json",
    ):
        result.unlink()

    def load(*_, **__):
        raise problem

    monkeypatch.setattr(MatrixTrainer, "_load_from_checkpoint", load)
    assert run(words(settings, max_steps=2)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "another model" not in error
