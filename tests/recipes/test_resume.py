"""A run that is interrupted and started again ends where one without interruption ends, to the last bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.recipes import logged, words
from mce_llm.lm import MatrixTrainer
from mce_llm.recipes.finetune import main, run

# The settings, and the micro-step that is interrupted: after optimizer step 9, in an epoch after the first.
EVERY_KIND = {
    "all weights": ({}, 10),
    "adapters with dropout": ({"lora_r": 2, "lora_dropout": 0.2}, 10),
    "DoRA and a whole head": (
        {"lora_r": 2, "lora_dropout": 0.2, "use_dora": "true", "lora_modules_to_save": "lm_head"},
        10,
    ),
    "packed rows": ({"packing": "true"}, 10),
    "between micro-batches": ({"total_batch_size": 8}, 16),
}


def weights(output):
    (path,) = output.glob("*.safetensors")
    return load_file(path)


@pytest.fixture
def interrupt(monkeypatch):
    """Make Ctrl-C happen in a micro-step, the first being 0; None takes it back. Counts in `interrupt.micro_steps`."""
    own_step = MatrixTrainer.training_step

    def training_step(self, *args, **kwargs):
        if interrupt.micro_steps == interrupt.at:
            raise KeyboardInterrupt
        interrupt.micro_steps += 1
        return own_step(self, *args, **kwargs)

    def interrupt(at):
        interrupt.at, interrupt.micro_steps = at, 0

    interrupt(None)
    monkeypatch.setattr(MatrixTrainer, "training_step", training_step)
    return interrupt


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_interrupted_in_a_later_epoch(settings, tmp_path, interrupt, capsys, kind):
    changed, micro_step = EVERY_KIND[kind]
    settings |= {"limit": 20, "lr_scheduler_type": "cosine", "warmup_steps": 2, **changed}
    settings |= {"max_steps": 12, "save_strategy": "steps", "save_steps": 3}
    main(words(settings, output_dir=tmp_path / "whole"))
    interrupt(micro_step)
    assert run(words(settings)) == 130
    output = settings["output_dir"]
    assert sorted(path.name for path in output.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-9",
    ]
    assert not (output / "train_results.json").exists()
    interrupt(None)
    capsys.readouterr()
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert f"resuming from {output / 'checkpoint-9'}" in said
    assert "settings that differ" not in said
    assert interrupt.micro_steps == (
        5 if kind == "between micro-batches" else 3
    )  # an epoch is five micro-batches
    expected, resumed = weights(tmp_path / "whole"), weights(output)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    for name in ("loss", "ce_loss", "mce_loss", "learning_rate"):
        assert logged(output, name) == logged(tmp_path / "whole", name)
    assert len(logged(output, "loss")) == 12


def test_another_start_is_another_end(settings, tmp_path, interrupt):
    """The comparison above can fail: without the checkpoint's optimizer the weights differ."""
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    main(words(settings, output_dir=tmp_path / "whole"))
    interrupt(4)
    assert run(words(settings)) == 130
    path = settings["output_dir"] / "checkpoint-3" / "optimizer.pt"
    state = torch.load(path)
    for moments in state["state"].values():
        moments["exp_avg"].zero_()
    torch.save(state, path)
    interrupt(None)
    assert run(words(settings)) == 0
    expected, resumed = weights(tmp_path / "whole"), weights(settings["output_dir"])
    assert any(not torch.equal(resumed[name], value) for name, value in expected.items())


def test_without_resume_the_run_starts_anew(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    interrupt(None)
    assert run(words(settings, resume="false")) == 2
    assert "holds checkpoints (checkpoint-3)" in capsys.readouterr().err
    assert run(words(settings, resume="false", overwrite="true", max_steps=2)) == 0
    assert not (settings["output_dir"] / "checkpoint-3").exists()
    assert len(logged(settings["output_dir"], "loss")) == 2


def test_an_empty_checkpoint_is_passed_over(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    (settings["output_dir"] / "checkpoint-5").mkdir()
    interrupt(None)
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert "checkpoint-5 is incomplete" in said
    assert f"resuming from {settings['output_dir'] / 'checkpoint-3'}" in said


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_only_an_empty_checkpoint(settings, capsys, overwrite):
    empty = settings["output_dir"] / "checkpoint-2"
    empty.mkdir(parents=True)
    assert run(words(settings, overwrite=overwrite)) == 2
    assert "none of the 1 checkpoints" in capsys.readouterr().err
    assert empty.is_dir()


def test_training_for_longer_is_said(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    interrupt(None)
    assert run(words(settings, max_steps=7, matrix_weight=0.5)) == 0
    assert "max_steps 6 → 7, matrix_weight None → 0.5" in capsys.readouterr().out
    state = json.loads((settings["output_dir"] / "trainer_state.json").read_text())
    assert state["global_step"] == 7


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint(settings, interrupt, capsys, name):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    interrupt(5)
    assert run(words(settings)) == 130
    interrupt(None)
    path = settings["output_dir"] / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[:1000])
    assert run(words(settings)) == 2
    assert f"{path.parent} is damaged" in capsys.readouterr().err
    shutil.rmtree(path.parent)
    assert run(words(settings)) == 0
    assert "resuming from" in capsys.readouterr().out
