"""Every configuration in recipes/ is complete, and trains."""

import math

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM

from helpers.recipes import RECIPES, logged, words
from mce_llm.recipes.finetune import main

CONFIGS = sorted(path.name for path in RECIPES.glob("*.yaml"))
PAIRS = [
    ("quickstart_ce.yaml", "quickstart_mce.yaml"),
    ("llemma7b_metamath_ce.yaml", "llemma7b_metamath_mce.yaml"),
]
LAUNCH = {
    "cpu.yaml": DistributedType.MULTI_GPU,
    "ddp.yaml": DistributedType.MULTI_GPU,
    "zero3.yaml": DistributedType.DEEPSPEED,
}


def read(name):
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def test_there_are_configurations():
    assert {name for pair in PAIRS for name in pair} | {"llemma7b_metamath_lora.yaml"} <= set(CONFIGS)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_trains(name, folder, tmp_path):
    """The configuration as it stands, with the model, the data and the length of the run swapped for small ones."""
    config = read(name)
    changed = {
        "output_dir": tmp_path / "out",
        "dataset": folder / ("metamath.jsonl" if config["dataset"] == "metamathqa" else "data.jsonl"),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
        "dataloader_pin_memory": "false",
    }
    if "model_config" in config:
        changed["tokenizer_name_or_path"] = folder / "tokenizer"
        changed["model_config"] = {**config["model_config"], "hidden_size": 16, "intermediate_size": 16}
    else:
        changed["model_name_or_path"] = folder / "model"
    if "total_batch_size" in config:
        changed["total_batch_size"] = 4
    if "eval_dataset" in config:
        changed |= {"eval_dataset": folder / "held_out.jsonl", "eval_steps": 1}
    main(["--config", str(RECIPES / name), *words(changed)])

    output = tmp_path / "out"
    assert len(logged(output, "ce_loss")) == 2
    assert all(map(math.isfinite, logged(output, "loss")))
    assert len(logged(output, "mce_loss")) == (2 if config.get("matrix_weight", 1.0) else 0)
    trained = AutoModelForCausalLM.from_pretrained(output)
    if config.get("lora_r"):
        assert (output / "adapter_model.safetensors").exists()
        assert not (output / "model.safetensors").exists()
    elif "model_config" not in config:
        before = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
        assert not any(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(("baseline", "matrix"), PAIRS)
def test_pairs_differ_in_the_matrix_loss_alone(baseline, matrix):
    baseline, matrix = read(baseline), read(matrix)
    different = {key for key in {**baseline, **matrix} if baseline.get(key) != matrix.get(key)}
    assert "matrix_weight" in different
    assert {key for key in different if not key.startswith("matrix_")} == {"output_dir"}
    assert baseline["matrix_weight"] == 0
    assert matrix["matrix_weight"] > 0


@pytest.mark.parametrize("name", ["llemma7b_metamath_ce.yaml", "llemma7b_metamath_mce.yaml"])
def test_hyperparameters_of_metamath(name):
    expected = {
        "model_name_or_path": "EleutherAI/llemma_7b",
        "dataset": "metamathqa",
        "prompt": "metamath",
        "total_batch_size": 128,
        "learning_rate": 2e-5,
        "num_train_epochs": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_length": 512,
        "bf16": True,
    }
    config = read(name)
    assert {key: config[key] for key in expected} == expected


def test_launch_configurations():
    files = {path.name: path for path in (RECIPES / "accelerate").glob("*.yaml")}
    assert set(files) == set(LAUNCH)
    for name, path in files.items():
        config = load_config_from_file(str(path))  # refuses unknown keys
        assert config.distributed_type == LAUNCH[name]
        assert config.num_processes > 1


def test_engine_settings_are_known_to_the_launcher():
    """load_config_from_file looks at the names of the outer level alone, and the launcher passes over the others."""
    known = vars(launch_command_parser().parse_args(["script.py"]))
    settings = yaml.safe_load((RECIPES / "accelerate" / "zero3.yaml").read_text())["deepspeed_config"]
    assert settings["zero_stage"] == 3
    assert set(settings) <= set(known)
