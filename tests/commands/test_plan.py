"""`mce-llm plan`: what it prints, what it recommends, and what bad input gets."""

import json

import pytest
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file

from helpers.recipes import RECIPES
from mce_llm.commands.recipe_shapes import attention_of, read_recipe, recipe_shapes
from mce_llm.commands.training_plan import batch_of, best_batch, launch_command, plan_training
from mce_llm.planning import ENGINES, GIB, PlanningError

LLEMMA = RECIPES / "llemma7b_metamath_mce.yaml"


def planned(command, *words):
    result = command("plan", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_llemma_on_eight_gpus(command, place):
    found = planned(command, LLEMMA, "--gpus", 8, "--memory", 80, "--model_name_or_path", place / "big")
    assert found["model"]["parameters"] == found["model"]["trained_parameters"] == 6_738_546_688
    assert found["batch"] == {"rows": 4, "accumulation": 4, "total": 128}
    assert found["recommended"] == "zero2"
    assert found["launch"].startswith(
        "accelerate launch --config_file recipes/accelerate/zero2.yaml --num_processes 8 recipes/finetune.py --config "
    )
    engines = {item["engine"]: item for item in found["engines"]}
    assert set(engines) == set(ENGINES)
    assert not engines["ddp"]["fits"]
    states = {term["name"]: term["bytes"] for term in engines["zero3"]["terms"] if term["phase"] == "always"}
    assert states["weights"] == round(2 * 6_738_546_688 / 8)
    assert states["optimizer states"] == 6_738_546_688


@pytest.mark.parametrize("columns", [80, 100])
def test_the_report_fits_its_terminal(command, place, columns):
    """Every line, but for the command line, which is to be copied whole."""
    words = ["--gpus", 8, "--memory", 80, "--model_name_or_path", place / "big"]
    result = command("plan", LLEMMA, *words, columns=columns)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= columns for line in lines if not line.startswith("accelerate launch"))
    text = result.stdout
    for part in ("optimizer states", "peak", "room left", "largest micro-batch", "6,738,546,688 × 2 B ÷ 8"):
        assert part in text
    # One line, with the setting that was given, ready to paste.
    (launch,) = [line for line in lines if line.startswith("accelerate launch")]
    assert launch.endswith(f"--model_name_or_path {place / 'big'}")


def test_overrides_of_the_recipe_change_the_plan(command, place):
    words = [LLEMMA, "--gpus", 8, "--memory", 80, "--model_name_or_path", place / "big"]
    before = planned(command, *words, "--engine", "zero3")
    after = planned(command, *words, "--engine", "zero3", "--per_device_train_batch_size", 8)
    assert after["batch"]["accumulation"] == 2
    assert after["engines"][0]["peak_bytes"] >= before["engines"][0]["peak_bytes"]
    long = planned(
        command, *words, "--engine", "zero3", "--max_length", 4096, "--gradient_checkpointing", "false"
    )
    assert long["engines"][0]["peak_bytes"] > before["engines"][0]["peak_bytes"] + 80 * GIB


def test_when_nothing_fits_it_says_what_would(command, place):
    result = command("plan", LLEMMA, "--gpus", 1, "--memory", 5, "--model_name_or_path", place / "big")
    assert result.exit_code == 0
    assert "nothing fits in 5 GiB" in result.stdout
    for change in ("per_device_train_batch_size: 1", "lora_r: 16", "quantization: 4bit", "GPUs"):
        assert change in result.stdout
    assert "accelerate launch" not in result.stdout


def test_a_model_from_scratch(command, place):
    """Sizes from the recipe itself; its tokenizer need not be there where the vocabulary is given."""
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "vocab_size": 1000}
    words = [RECIPES / "quickstart_pretrain.yaml", "--model_config", json.dumps(shape)]
    found = planned(command, *words, "--tokenizer_name_or_path", place / "none", "--gpus", 1, "--memory", 8)
    assert found["model"]["parameters"] == 2 * 1000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert found["recommended"] == "ddp"
    assert "--config_file" not in found["launch"]


def test_adapters(command, place):
    words = ["--gpus", 1, "--memory", 24, "--model_name_or_path", place / "big"]
    found = planned(command, RECIPES / "llemma7b_metamath_lora.yaml", *words)
    # r = 64 on the seven matrices of each layer.
    expected = 32 * 64 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert found["model"]["trained_parameters"] == expected
    assert found["recommended"] == "ddp"
    quantized = planned(command, RECIPES / "llemma7b_metamath_lora.yaml", *words, "--quantization", "4bit")
    saved = found["engines"][0]["peak_bytes"] - quantized["engines"][0]["peak_bytes"]
    matrices = 6_738_546_688 - 2 * 32016 * 4096
    assert saved == pytest.approx(matrices * (2 - 4.127 / 8) * 1.04, rel=0.03)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{place}/none.yaml", "--gpus", "1", "--memory", "8"], "no configuration file"),
        (["{recipe}", "--gpus", "0", "--memory", "8"], "number of GPUs must be at least 1, got 0"),
        (["{recipe}", "--gpus", "1", "--memory", "-8"], "must be positive, got -8 GiB"),
        (["{recipe}", "--gpus", "1", "--memory", "8", "--engine", "zero9"], "unknown engine 'zero9'"),
        (["{recipe}", "--gpus", "1", "--memory", "8", "--max_lenght", "9"], "did you mean 'max_length'"),
        (["{recipe}", "--gpus", "1", "--memory", "8", "--optim", "lomo"], "no arithmetic for optim 'lomo'"),
        (
            ["{recipe}", "--gpus", "1", "--memory", "8", "--model_name_or_path", "{place}/nowhere"],
            "there is no such directory",
        ),
        (["{recipe}", "--gpus", "some", "--memory", "8"], "Invalid value"),
    ],
)
def test_bad_input(words, message, command, place, recipe):
    """One explanation, exit code 2, no traceback."""
    path = recipe()
    result = command("plan", *(word.format(place=place, recipe=path) for word in words))
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "ce"}, "loss CE"),
        ({"loss": "label_smoothing"}, "loss label smoothing"),
        ({"loss": "emo"}, "loss CE + EMO"),
    ],
)
def test_the_loss_is_named(settings, said, command, recipe):
    result = command("plan", recipe(**settings), "--gpus", 2, "--memory", 8)
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if "loss " in line)
    assert line.rstrip().endswith(said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_liger_kernel": True},
            "use_liger_kernel replaces the forward that computes the loss; set it to",
        ),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor replaces the model's loss; set it to 0"),
        (
            {"fsdp": "full_shard", "fsdp_config": {"version": 1}},
            "FSDP1 was asked for, which flattens the weights",
        ),
    ],
)
def test_what_training_refuses_is_not_planned(settings, message, command, recipe):
    """In the words of training."""
    result = command("plan", recipe(**settings), "--gpus", 2, "--memory", 8)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_accumulation_is_that_of_the_gpus(recipe):
    """8 rows a step in micro-batches of 2: on one GPU 4 of them, on four 1; and the setting that keeps gradients whole."""
    settings = read_recipe(str(recipe()), [])
    for gpus, steps in ((1, 4), (2, 2), (4, 1), (3, 2)):
        assert plan_training(settings, num_gpus=gpus, memory_gib=8).training.accumulation == steps
    whole = {"gradient_accumulation_kwargs": {"sync_each_batch": False}}
    settings = read_recipe(str(recipe(accelerator_config=whole)), [])
    run = plan_training(settings, num_gpus=2, memory_gib=8).training
    assert (run.accumulation, run.reduces_each_batch) == (2, False)


def test_notes(command, place):
    """Tight, on the host, and what would be on the CPU: in JSON and in the report."""
    words = [LLEMMA, "--gpus", 1, "--memory", 24, "--model_name_or_path", place / "big"]
    found = planned(command, *words)
    assert found["recommended"] == "zero3_offload"
    (note,) = found["notes"]
    assert "needs 126 GiB of host memory" in note
    offload = next(item for item in found["engines"] if item["engine"] == "zero3_offload")
    assert offload["verdict"] == "fits"
    assert offload["stock_cross_entropy_peak_bytes"] >= offload["peak_bytes"]
    (longer,) = planned(command, *words, "--engine", "zero3_offload", "--max_length", 4096)["engines"]
    assert longer["stock_cross_entropy_peak_bytes"] > longer["peak_bytes"]
    assert planned(command, *words, "--host-memory", 200)["notes"] == []
    assert planned(command, *words, "--host-memory", 100)["recommended"] is None
    tight = offload["peak_bytes"] / GIB * 1.02
    words[4] = tight
    found = planned(command, *words, "--engine", "zero3_offload")
    assert "zero3_offload is tight: less than 5% would be left" in found["notes"][0]
    report = command("plan", *words, "--engine", "zero3_offload", columns=100).stdout
    assert "tight" in report
    assert "peak with stock cross-entropy" in report


def test_stacked_experts_are_not_quantised(command, recipe, tmp_path):
    """Weights to 1 % of what bitsandbytes really leaves: matrices in 4 bits, experts in bfloat16; and it is said."""
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(vocab_size=320, num_local_experts=4, **sizes)
    model = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "experts")
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "experts",
        dtype=torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_use_double_quant=True
        ),
        device_map={"": "cpu"},
    )
    stacked = [p for p in quantized.parameters() if p.ndim == 3]
    assert {p.dtype for p in stacked} == {torch.bfloat16}
    real = sum(p.numel() * p.element_size() for p in quantized.parameters())
    settings = {"model_name_or_path": str(tmp_path / "experts"), "quantization": "4bit", "lora_r": 2}
    path = recipe(**settings, dtype="bfloat16", lora_target_modules="q_proj")
    found = planned(command, path, "--gpus", 1, "--memory", 8)
    count = sum(p.numel() for p in stacked)
    assert any(
        f"{count:,} of {found['model']['parameters']:,} parameters stay in bfloat16" in n
        for n in found["notes"]
    )
    weights = next(term["bytes"] for term in found["engines"][0]["terms"] if term["name"] == "weights")
    adapters = 4 * found["model"]["trained_parameters"]
    assert weights - adapters == pytest.approx(real, rel=0.02)  # scales besides


def test_the_cpu_is_another_matter(command, recipe):
    result = command("plan", recipe(use_cpu=True), "--gpus", 1, "--memory", 8)
    assert "use_cpu is true in the recipe: the figures are for a run on GPUs" in " ".join(
        result.stdout.split()
    )


def test_the_batch_is_divided_over_the_gpus(recipe):
    settings = read_recipe(str(recipe()), [])
    assert vars(batch_of(settings, 2)) == {"rows": 2, "accumulation": 2, "total": 8}
    with pytest.raises(PlanningError, match=r"total_batch_size 8 is not a multiple of 6 \(3 GPUs × "):
        batch_of(settings, 3)
    plan = plan_training(settings, num_gpus=2, memory_gib=8).of("ddp")
    best = best_batch(settings, 2, plan)
    assert best.rows == 4  # the largest that divides, though far more would fit
    assert plan.largest_micro_batch > 4
    without_total = read_recipe(str(recipe(total_batch_size=None)), ["--gradient_accumulation_steps", "3"])
    assert vars(batch_of(without_total, 2)) == {"rows": 2, "accumulation": 3, "total": 12}


def test_every_engine_has_a_launch_configuration(recipe):
    for engine in ENGINES:
        words = launch_command("r.yaml", ["--seed", "1"], engine, 2).split()
        path = words[words.index("--config_file") + 1]
        load_config_from_file(str(RECIPES.parent / path))
        assert words[-4:] == ["--config", "r.yaml", "--seed", "1"]


def test_settings_become_shapes(recipe):
    path = recipe(bf16=True, dtype="bfloat16", lora_r=2, lora_dropout=0.1, packing=True, optim="sgd")
    settings = read_recipe(str(path), ["--optim_args", "momentum=0.9", "--matrix_kind", "expected"])
    model, run = recipe_shapes(settings)
    assert (run.dtype, run.mixed, run.optim, run.momentum) == ("bfloat16", "bfloat16", "sgd", 0.9)
    assert (run.adapter_rank, run.adapter_dropout, run.padded) == (2, True, False)
    assert run.loss.kind == "expected"
    assert model.trained < model.parameters
    assert not model.head_trained


@pytest.mark.parametrize(
    ("implementation", "kind"),
    [
        (None, "sdpa"),
        ("sdpa", "sdpa"),
        ("eager", "eager"),
        ("flash_attention_2", "flash"),
        ("kernels-community/flash-attn3", "flash"),
        ("flex_attention", "sdpa"),
    ],
)
def test_what_an_attention_keeps(implementation, kind):
    assert attention_of(implementation) == kind
