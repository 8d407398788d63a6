"""Every configuration in recipes/ is complete, and trains."""

import math

import accelerate
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from packaging.version import Version
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from transformers import AutoModelForCausalLM

from helpers.models import make_model
from helpers.recipes import RECIPES, logged, words
from helpers.scripts import load_script

finetune = load_script("recipes/finetune.py")
main = finetune.main

CONFIGS = sorted(path.name for path in RECIPES.glob("*.yaml"))
PAIRS = [
    ("quickstart_ce.yaml", "quickstart_mce.yaml"),
    ("llemma7b_metamath_ce.yaml", "llemma7b_metamath_mce.yaml"),
    ("smollm2_135m_gsm8k_ce.yaml", "smollm2_135m_gsm8k_mce.yaml"),
]
LAUNCH = {
    "cpu.yaml": DistributedType.MULTI_GPU,
    "ddp.yaml": DistributedType.MULTI_GPU,
    "fsdp2.yaml": DistributedType.FSDP,
    "zero2.yaml": DistributedType.DEEPSPEED,
    "zero3.yaml": DistributedType.DEEPSPEED,
    "zero3_offload.yaml": DistributedType.DEEPSPEED,
}


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def is_baseline(config):
    """Whether a configuration trains cross-entropy alone."""
    return config.get("loss") == "ce" or config.get("matrix_weight", 1.0) == 0


def read(name):
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def test_there_are_configurations():
    assert {name for pair in PAIRS for name in pair} | {"llemma7b_metamath_lora.yaml"} <= set(CONFIGS)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_trains(name, folder, tmp_path):
    """The configuration as it stands, with the model, the data and the length of the run swapped for small ones."""
    config = read(name)
    if "quantization" in config:
        pytest.importorskip("bitsandbytes")
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
    if config["prompt"] == "chat":
        changed["chat_template"] = CHAT_TEMPLATE
    if "eval_dataset" in config:
        changed |= {"eval_dataset": folder / "held_out.jsonl", "eval_steps": 1}
    main(["--config", str(RECIPES / name), *words(changed)])

    output = tmp_path / "out"
    assert len(logged(output, "ce_loss")) == 2
    assert all(map(math.isfinite, logged(output, "loss")))
    assert len(logged(output, "mce_loss")) == (0 if is_baseline(config) else 2)
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
    assert {key for key in different if not key.startswith("matrix_")} <= {"output_dir", "loss"}
    assert is_baseline(baseline)
    assert matrix.get("loss", "mce") == "mce"
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


def launch(name, *more):
    """What `accelerate launch --config_file name` makes of the file, before it starts anything."""
    path = RECIPES / "accelerate" / name
    words = ["--config_file", str(path), "--main_process_port", "0", *more, "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return yaml.safe_load(path.read_text(encoding="utf-8")), arguments


def test_launch_configurations():
    files = {path.name: path for path in (RECIPES / "accelerate").glob("*.yaml")}
    assert set(files) == set(LAUNCH)
    for name, path in files.items():
        config = load_config_from_file(str(path))  # refuses unknown keys
        assert config.distributed_type == LAUNCH[name]
        assert config.num_processes == (2 if name == "cpu.yaml" else 8)
        assert config.mixed_precision == "no"  # the recipe says bf16


@pytest.mark.parametrize("name", LAUNCH)
def test_every_setting_arrives(name):
    """load_config_from_file looks at the names of the outer level alone; the launcher passes over names that it does not
    know, and over values for which it has a default of its own."""
    settings, arguments = launch(name)
    del settings["compute_environment"], settings["distributed_type"]
    settings |= settings.pop("deepspeed_config", {}) | settings.pop("fsdp_config", {})
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(settings) <= set(known)
    assert {key: getattr(arguments, key) for key in settings} == settings


def test_a_setting_that_does_not_arrive(tmp_path):
    """The comparison above can fail: `same_network` has a default in the launcher, which wins."""
    (tmp_path / "launch.yaml").write_text(
        (RECIPES / "accelerate" / "ddp.yaml").read_text() + "same_network: true\n"
    )
    settings, arguments = launch(tmp_path / "launch.yaml")
    assert settings["same_network"]
    assert not arguments.same_network


def test_the_command_line_wins():
    _, arguments = launch("zero3.yaml", "--num_processes", "4", "--zero_stage", "2")
    assert (arguments.num_processes, arguments.zero_stage) == (4, 2)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "weights"),
    [
        ("zero2.yaml", 2, "none", "none"),
        ("zero3.yaml", 3, "none", "none"),
        ("zero3_offload.yaml", 3, "cpu", "cpu"),
    ],
)
def test_deepspeed_settings_of_the_processes(monkeypatch, name, stage, optimizer, weights):
    """From the file through the launcher's environment into the plugin that each process makes."""
    pytest.importorskip("deepspeed")
    _, arguments = launch(name)
    arguments.deepspeed_fields_from_accelerate_config = ""
    for variable, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        monkeypatch.setenv(variable, value)
    plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["offload_optimizer"]["device"] == optimizer
    assert zero["offload_param"]["device"] == weights
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.zero3_init_flag == zero["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)


@pytest.mark.skipif(Version(accelerate.__version__) < Version("1.6"), reason="without FSDP2")
def test_fsdp_settings_of_the_processes(monkeypatch):
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    _, arguments = launch("fsdp2.yaml")
    for variable, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert not plugin.activation_checkpointing
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    plugin.set_auto_wrap_policy(model := make_model("llama"))
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    units = {type(module).__name__ for module in model.modules() if policy(module)}
    assert units == {"LlamaDecoderLayer"}
