"""The recipe from end to end: from scratch, fine-tuning, adapters, interruption, several processes."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.recipes import RECIPES, logged, run_script, words
from helpers.scripts import load_script
from helpers.waiting import HANG, wait_until
from mce_llm.finetuning.configuration import parse_recipe

finetune = load_script("recipes/finetune.py")
main, run = finetune.main, finetune.run

LAUNCH = ("-m", "accelerate.commands.launch", "--main_process_port", "0")
SHAPE = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2}


def weights(output):
    return load_file(output / "model.safetensors")


def test_from_scratch_then_fine_tuned(folder, settings, tmp_path, capsys):
    first = {**settings, "model_name_or_path": None, "model_config": json.dumps(SHAPE)}
    main(words(first, tokenizer_name_or_path=folder / "tokenizer", matrix_weight=0))
    said = capsys.readouterr().out
    assert "vocab_size 300, from the tokenizer" in said
    assert "60 of 60" in said
    assert "4 rows an optimizer step = 1 processes × 4 rows × 1 accumulation steps" in said
    scratch = settings["output_dir"]
    assert logged(scratch, "ce_loss") == pytest.approx(logged(scratch, "loss"))
    assert not logged(scratch, "mce_loss")

    main(words(settings, model_name_or_path=scratch, output_dir=tmp_path / "tuned", matrix_weight=0.3))
    tuned = tmp_path / "tuned"
    total = [
        ce + 0.3 * mce for ce, mce in zip(logged(tuned, "ce_loss"), logged(tuned, "mce_loss"), strict=True)
    ]
    assert logged(tuned, "loss") == pytest.approx(total, rel=1e-5)
    assert AutoModelForCausalLM.from_pretrained(tuned).config.vocab_size == 300
    assert len(AutoTokenizer.from_pretrained(tuned)) == 300
    assert parse_recipe(["--config", str(tuned / "recipe.yaml")]).training.matrix_loss.weight == 0.3
    assert "torch" in json.loads((tuned / "versions.json").read_text())


def test_held_out_loss_of_both_parts(folder, settings):
    main(
        words(
            settings,
            eval_dataset=folder / "held_out.jsonl",
            eval_strategy="steps",
            eval_steps=1,
            eval_limit=7,
        )
    )
    results = json.loads((settings["output_dir"] / "eval_results.json").read_text())
    assert len(logged(settings["output_dir"], "eval_ce_loss")) >= 2
    for name in ("eval_ce_loss", "eval_mce_loss", "eval_hidden_effective_rank", "eval_tail_mass"):
        assert math.isfinite(results[name])
    assert results["eval_loss"] == pytest.approx(results["eval_ce_loss"] + results["eval_mce_loss"], rel=1e-9)
    card = (settings["output_dir"] / "README.md").read_text()
    assert f"`eval_loss` | {results['eval_loss']:.4g} |" in card


def test_adapters(folder, settings):
    main(words(settings, lora_r=4, lora_target_modules="q_proj, v_proj"))
    output = settings["output_dir"]
    adapted = AutoPeftModelForCausalLM.from_pretrained(output)
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(adapted(ids).logits, base(ids).logits)
    names = set(load_file(output / "adapter_model.safetensors"))
    assert names
    assert all(re.search(r"(q|v)_proj\.lora_[AB]\.weight$", name) for name in names)


def test_packing_trains_on_the_same_tokens(settings, tmp_path):
    """One row of everything, against one batch of everything: the same loss at the first step."""
    plain = {**settings, "max_steps": 1, "limit": 3, "packing": "false"}
    main(words(plain))
    main(words(plain, packing="true", max_length=512, output_dir=tmp_path / "packed"))
    assert logged(tmp_path / "packed", "ce_loss") == pytest.approx(
        logged(settings["output_dir"], "ce_loss"), rel=1e-4
    )


@pytest.mark.slow
def test_interrupted_training_goes_on_as_if_nothing_had_happened(settings, tmp_path, capsys):
    settings |= {"save_strategy": "steps", "save_steps": 40, "max_steps": 120}
    main(words(settings, output_dir=tmp_path / "whole"))
    command = [sys.executable, str(RECIPES / "finetune.py"), *words(settings)]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log, stdout=log)
    with log:
        wait_until(
            lambda: list(settings["output_dir"].glob("checkpoint-*/manifest.json")), process, tmp_path / "log"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANG) == 130
    assert "interrupted; the same command goes on" in (tmp_path / "log").read_text()
    assert not (settings["output_dir"] / "model.safetensors").exists()

    capsys.readouterr()
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert "resuming from" in said
    assert " → " not in said
    whole, resumed = weights(tmp_path / "whole"), weights(settings["output_dir"])
    for name, expected in whole.items():
        torch.testing.assert_close(resumed[name], expected, rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_not_overwritten(settings, capsys):
    assert run(words(settings)) == 0
    before = weights(settings["output_dir"])
    assert run(words(settings)) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert run(words(settings, overwrite="true", dataset="nowhere.jsonl")) == 2
    assert weights(settings["output_dir"]).keys() == before.keys()  # removed only when training can start
    assert run(words(settings, overwrite="true", max_steps=3)) == 0
    after = weights(settings["output_dir"])
    assert any(not torch.equal(after[name], before[name]) for name in before)


def numbers(output):
    return [value for name in ("loss", "ce_loss", "mce_loss", "grad_norm") for value in logged(output, name)]


@pytest.fixture
def alone(settings, tmp_path):
    """A run of one process over batches of eight, and the settings that share them out."""
    settings |= {"max_steps": 3, "total_batch_size": 8, "per_device_train_batch_size": 2}
    main(words(settings, output_dir=tmp_path / "alone"))
    return settings, tmp_path / "alone"


@pytest.mark.slow
def test_two_processes_are_one(alone):
    settings, expected = alone
    launcher = (*LAUNCH, "--config_file", str(RECIPES / "accelerate" / "cpu.yaml"))
    result = run_script(words(settings), launcher)
    assert result.returncode == 0, result.stderr
    assert "2 processes × 2 rows × 2 accumulation steps" in result.stdout
    assert numbers(settings["output_dir"]) == pytest.approx(numbers(expected), rel=1e-4)


@pytest.mark.slow
def test_processes_that_would_work_alone(settings):
    launcher = (*LAUNCH, "--config_file", str(RECIPES / "accelerate" / "cpu.yaml"))
    result = run_script(words(settings, use_cpu="false"), launcher, CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0
    assert "2 processes were launched, but each works alone" in result.stderr
    assert not (settings["output_dir"] / "model.safetensors").exists()


@pytest.mark.slow
def test_zero3_is_one_process(alone):
    pytest.importorskip("deepspeed")
    settings, expected = alone
    launcher = (*LAUNCH, "--config_file", str(RECIPES / "accelerate" / "zero3.yaml"), "--num_processes", "2")
    result = run_script(words(settings), (*launcher, "--mixed_precision", "no"), DS_ACCELERATOR="cpu")
    assert result.returncode == 0, result.stderr
    assert numbers(settings["output_dir"]) == pytest.approx(numbers(expected), rel=1e-4)
    ours, stock = weights(settings["output_dir"]), weights(expected)
    for name, value in stock.items():
        torch.testing.assert_close(ours[name].float(), value, rtol=1e-3, atol=1e-4)
