"""Every engine under `accelerate launch`, with two processes and each kind of loss, ends where one process ends.

What a launch does that goes wrong is here too: an engine that cannot run, a process that fails alone, Ctrl-C.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.recipes import RECIPES, logged, run_script, words
from helpers.scripts import load_script
from helpers.waiting import HANG, wait_until

finetune = load_script("recipes/finetune.py")
main = finetune.main

KINDS = ("token", "marginal", "expected")
# One optimizer step is two micro-steps of four rows, whoever computes them: the batch kinds then see the same rows.
SETTINGS = {"max_steps": 3, "total_batch_size": 8}
# Adam divides by gradients as small as rounding errors here and there, and its steps are of the same length all the
# same. Measured: 3e-6 (token), 4e-5 (marginal), 8e-6 (expected).
WEIGHTS_TOLERANCE = 2e-4
HELD_OUT = 4  # rows: fewer than a batch, so that accelerate fills up with repeated ones
HELD_OUT_TOLERANCE = 1e-4  # the weights are others by as much
NUMBERS_TOLERANCE = 1e-5  # float32, the logged digits; measured 2e-7

slow = pytest.mark.slow
ci = pytest.mark.ci
EACH_TIME = {("ddp", "token"), ("zero2", "token"), ("zero3", "marginal")}
ENGINES = [
    pytest.param(engine, kind, marks=[slow, ci] if (engine, kind) in EACH_TIME else slow)
    for engine in ("cpu", "ddp", "zero2", "zero3", "zero3_offload")
    for kind in KINDS
]


def launcher(engine, processes=2):
    file = RECIPES / "accelerate" / f"{engine}.yaml"
    options = ("--config_file", str(file), "--num_processes", str(processes), "--main_process_port", "0")
    return ("-m", "accelerate.commands.launch", *options)


def environment(engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
        if engine.endswith("offload") and not (shutil.which("c++") and shutil.which("ninja")):
            pytest.skip("DeepSpeedCPUAdam needs a C++ compiler and ninja")
        return {"DS_ACCELERATOR": "cpu"}
    return {}


def numbers(output):
    return [value for name in ("loss", "ce_loss", "mce_loss", "grad_norm") for value in logged(output, name)]


def held_out(output):
    """The losses of the recipe's own evaluation, in the order total, CE, MCE."""
    results = json.loads((output / "eval_results.json").read_text())
    return [results[f"eval_{name}"] for name in ("loss", "ce_loss", "mce_loss")]


def stock_weights(output):
    """The weights, by transformers alone; every one of them has to be there."""
    model, loading = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.state_dict()


def deviation(output, expected, before):
    """How far apart the weights of two runs are, as a part of how far they have moved."""
    found, expected, before = map(stock_weights, (output, expected, before))
    assert found.keys() == expected.keys()
    apart = sum((found[name].float() - expected[name]).square().sum() for name in expected)
    moved = sum((before[name] - expected[name]).square().sum() for name in expected)
    return float((apart / moved).sqrt())


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The output of one process, made once for each kind of loss."""
    place = tmp_path_factory.mktemp("alone")

    @cache
    def run_alone(kind, rows=4):
        output = place / f"{kind}-{rows}"
        settings = {
            "model_name_or_path": folder / "model",
            "dataset": folder / "data.jsonl",
            "eval_dataset": folder / "held_out.jsonl",
            "eval_limit": HELD_OUT,
            "prompt": "plain",
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": "true",
            "dataloader_pin_memory": "false",
        }
        main(
            words(settings | SETTINGS, output_dir=output, matrix_kind=kind, per_device_train_batch_size=rows)
        )
        return output

    return run_alone


@pytest.mark.parametrize(("engine", "kind"), ENGINES)
def test_two_processes_are_one(engine, kind, settings, folder, alone):
    settings |= SETTINGS | {"matrix_kind": kind, "per_device_train_batch_size": 2}
    settings |= {"eval_dataset": folder / "held_out.jsonl", "eval_limit": HELD_OUT}
    result = run_script(words(settings), launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    assert "2 processes × 2 rows × 2 accumulation steps" in result.stdout
    assert "14,800 parameters, 14,800 of them trained" in result.stdout
    output, expected = settings["output_dir"], alone(kind)
    assert numbers(output) == pytest.approx(numbers(expected), rel=NUMBERS_TOLERANCE)
    assert deviation(output, expected, folder / "model") < WEIGHTS_TOLERANCE
    total, cross_entropy, matrix = held_out(output)
    assert total == pytest.approx(cross_entropy + matrix, rel=1e-9)
    assert held_out(output) == pytest.approx(held_out(expected), rel=HELD_OUT_TOLERANCE)


@pytest.mark.parametrize("kind", ["marginal", "expected"])
def test_statistics_of_half_the_rows_are_others(kind, folder, alone):
    """What the comparison above would see if each process kept its statistics to itself."""
    assert deviation(alone(kind, rows=2), alone(kind), folder / "model") > 50 * WEIGHTS_TOLERANCE


@ci
@slow
def test_fsdp_without_an_accelerator_is_refused(settings):
    """accelerate would train on, with the whole model in each process."""
    result = run_script(words(settings), launcher("fsdp2"), CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0
    assert "error: FSDP was asked for, but accelerate runs MULTI_CPU" in result.stderr
    assert not (settings["output_dir"] / "model.safetensors").exists()


@slow
@pytest.mark.parametrize("engine", ["cpu", "zero2", "zero3"])
def test_evaluated_saved_resumed_and_begun_anew(engine, settings, folder, tmp_path):
    settings |= SETTINGS | {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"max_steps": 4, "eval_dataset": folder / "held_out.jsonl", "eval_limit": 7}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = run_script(words(settings, output_dir=whole), launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    assert logged(whole, "eval_ce_loss")
    checkpoint = stock_weights(whole / "checkpoint-2")  # loadable by itself

    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copy(whole / "recipe.yaml", resumed)
    result = run_script(words(settings, output_dir=resumed), launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"resuming from {resumed / 'checkpoint-2'}" in result.stdout
    assert logged(resumed, "loss") == logged(whole, "loss")
    final = load_file(whole / "model.safetensors")
    for name, value in load_file(resumed / "model.safetensors").items():
        torch.testing.assert_close(value, final[name], rtol=0, atol=0, msg=name)
    assert any(not torch.equal(value, final[name]) for name, value in checkpoint.items() if name in final)

    anew = words(settings, output_dir=whole, overwrite="true", max_steps=1)
    result = run_script(anew, launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(logged(whole, "loss")) == 1
    assert not (whole / "checkpoint-4").exists()


@slow
@pytest.mark.parametrize("engine", ["cpu", "zero2", pytest.param("zero3", marks=ci)])
def test_from_scratch_a_seed_gives_the_same_weights_under_every_engine(engine, settings, folder, tmp_path):
    shape = "{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
    settings |= SETTINGS | {"model_config": shape, "tokenizer_name_or_path": folder / "tokenizer"}
    settings |= {"model_name_or_path": None, "max_steps": 2}
    main(words(settings, output_dir=tmp_path / "alone"))
    result = run_script(words(settings), launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    expected = logged(tmp_path / "alone", "loss")
    assert logged(settings["output_dir"], "loss") == pytest.approx(expected, rel=NUMBERS_TOLERANCE)
    assert logged(settings["output_dir"], "grad_norm") == pytest.approx(
        logged(tmp_path / "alone", "grad_norm"), rel=1e-4
    )


@slow
@pytest.mark.parametrize("engine", ["cpu", pytest.param("zero2", marks=ci), "zero3"])
def test_going_on_with_another_learning_rate(engine, settings, tmp_path):
    """The engines load the optimizer's state each in its own way, the old learning rate and clipping in it."""
    settings |= SETTINGS | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "sgd"}
    settings |= {"lr_scheduler_type": "cosine", "learning_rate": 1.0}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = run_script(words(settings, output_dir=whole), launcher(engine), **environment(engine))
    assert done.returncode == 0, done.stderr[-4000:]
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    changed = words(settings, output_dir=resumed, learning_rate=0.2, max_grad_norm=0.01)
    result = run_script(changed, launcher(engine), **environment(engine))
    assert result.returncode == 0, result.stderr[-4000:]
    assert "from step 3 on: learning_rate 1.0 → 0.2, max_grad_norm 1.0 → 0.01" in result.stdout
    rates = logged(resumed, "learning_rate")[2:]
    assert rates == pytest.approx([value * 0.2 for value in logged(whole, "learning_rate")[2:]])
    # SGD moves the weights by the rate times the length of the gradient, which is that of the clipping.
    used = [0.2 * 0.5, 0.2 * (1 - 2**0.5 / 2) / 2]  # cosine, after 2 and 3 of 4 steps
    start, ends = (
        stock_weights(whole / "checkpoint-2"),
        (load_file(f / "model.safetensors") for f in (whole, resumed)),
    )
    before, now = (distance(end, start) for end in ends)
    assert now <= 0.01 * sum(used) * 1.001
    assert now >= 0.01 * (used[0] - used[1])
    assert before > 20 * now


def distance(one, other):
    return (
        sum((value.double() - other[name].double()).square().sum() for name, value in one.items())
        .sqrt()
        .item()
    )


# A rank of its own mind: the others wait for it, in the next collective operation or in front of the data.
FAILS_ALONE = """
import os, runpy, sys
if os.environ["RANK"] == sys.argv.pop(1):
    sys.argv += ["--{setting}", "{value}"]
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


@slow
@pytest.mark.parametrize(
    ("rank", "setting", "value", "message"),
    [
        (0, "dataset", "nowhere.jsonl", "error: nowhere.jsonl: no such file"),
        pytest.param(1, "dataset", "nowhere.jsonl", "error: nowhere.jsonl: no such file", marks=ci),
        (1, "matrix_shrinkage", "1.2", "shrinkage must be in [0, 1), got 1.2"),
        (1, "model_name_or_path", "./nowhere", "./nowhere: there is no such directory"),
    ],
)
def test_one_process_fails(settings, tmp_path, rank, setting, value, message):
    script = tmp_path / "fails_alone.py"
    script.write_text(FAILS_ALONE.format(setting=setting, value=value, script=str(RECIPES / "finetune.py")))
    result = run_script([str(rank), *words(settings)], launcher("cpu"), script)  # a hang is a timeout
    assert result.returncode != 0
    assert message in result.stderr
    assert not (settings["output_dir"] / "model.safetensors").exists()
    assert not processes_with(settings["output_dir"])


@slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_is_interrupted(settings, tmp_path, number):
    settings |= {"max_steps": 5000, "save_strategy": "steps", "save_steps": 20, "save_total_limit": 2}
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *launcher("cpu"), str(RECIPES / "finetune.py"), *words(settings)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        wait_until(lambda: list(settings["output_dir"].glob("checkpoint-*/trainer_state.json")), process, log)
        process.send_signal(number)
        assert process.wait(timeout=HANG) != 0
    said = log.read_text()
    if number == signal.SIGINT:
        assert "interrupted; the same command goes on" in said
    else:
        assert "stopped by SIGTERM" in said
        assert "goes on from" in said
    assert not processes_with(settings["output_dir"])
    assert not (settings["output_dir"] / "model.safetensors").exists()


def processes_with(argument):
    """Processes that have an argument on their command line; those that are ending get a moment to do so."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = [
            process.pid
            for process in psutil.process_iter(["cmdline", "status"])
            if str(argument) in (process.info["cmdline"] or [])
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]
        if not found:
            break
        time.sleep(0.2)
    return found
