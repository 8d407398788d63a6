"""Adapters with a whole head in two processes over gloo end where one process ends: data parallel, and ZeRO-3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.adapters import HEADS, VARIANTS
from helpers.models import make_model

# Relative to the change: of the smallest, 2.5e-5 of the weight, float32 keeps two or three digits.
TOLERANCE = 3e-3

WORKER = """
import json, sys
sys.path[:0] = {folders!r}
import torch
from transformers import AutoModelForCausalLM
from helpers.adapters import HEADS, VARIANTS, lora_settings
from helpers.monitored import InOrder, Rows, collate
from mce_llm.running.processes import leave_processes
from mce_llm.finetuning.adapters import with_lora
from test_trainer import arguments

variant, head, rows, out, engine = sys.argv[1:]
zero = {{
    "zero_optimization": {{"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}},
    "gradient_clipping": "auto",  # max_grad_norm; accelerate clips at 1 where nothing is said
    "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    "train_micro_batch_size_per_gpu": int(rows), "gradient_accumulation_steps": 2,
}}
# lora_B starts at zero, so the first steps of lora_A are of the second order: large ones, or float32 keeps none of them.
args = arguments(out, max_steps=3, learning_rate=1.0, per_device_train_batch_size=int(rows), gradient_accumulation_steps=2,
                 matrix_order=16, seed=3, **({{"deepspeed": zero}} if engine == "zero3" else {{}}))
model = AutoModelForCausalLM.from_pretrained(out + "/base")
torch.manual_seed(3)  # the engines draw other numbers while they load a model
model = with_lora(model, lora_settings(**VARIANTS[variant], **HEADS[head][1]))
if engine != "zero3":
    model.save_pretrained(out + "/start")
trainer = InOrder(model=model, args=args, train_dataset=Rows(48), data_collator=collate)
trainer.train()
trainer.save_model(out + "/end")
if trainer.is_world_process_zero():
    world, kind = trainer.accelerator.num_processes, trainer.accelerator.distributed_type.value
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    json.dump([world, kind, losses], open(out + "/log.json", "w"))
leave_processes()
"""


def launch(folder, processes, variant, head, engine="none"):
    """Train; (adapters at the start, adapters at the end, [world size, engine, losses])."""
    folder.mkdir()
    make_model(HEADS[head][0]).save_pretrained(folder / "base")
    tests = Path(__file__).parents[1]
    (folder / "worker.py").write_text(WORKER.format(folders=[str(tests / "lm"), str(tests)]))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    rows = 4 // processes
    command += [str(folder / "worker.py"), variant, head, str(rows), str(folder), engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if engine == "zero3":
        environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    end = load_file(folder / "end" / "adapter_model.safetensors")
    start = folder / "start" / "adapter_model.safetensors"
    return load_file(start) if start.exists() else None, end, json.loads((folder / "log.json").read_text())


def deviation(start, a, b):
    """Largest relative deviation over the adapters, measured against what three steps changed."""
    assert a.keys() == b.keys()
    return max(
        ((a[n].double() - b[n].double()).norm() / (b[n] - start[n]).double().norm().clamp_min(1e-9)).item()
        for n in b
    )


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "head"), [(v, h) for v in VARIANTS for h in HEADS])
def test_two_processes_are_one(tmp_path, variant, head):
    start, one, one_log = launch(tmp_path / "one", 1, variant, head)
    _, two, two_log = launch(tmp_path / "two", 2, variant, head)
    assert (one_log[:2], two_log[:2]) == ([1, "NO"], [2, "MULTI_CPU"])
    assert two_log[2] == pytest.approx(one_log[2], rel=1e-5)
    assert deviation(start, two, one) < TOLERANCE
    assert all(not torch.equal(value, start[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_zero3_is_one_process(tmp_path, head):
    pytest.importorskip("deepspeed")
    start, one, one_log = launch(tmp_path / "one", 1, "lora", head)
    _, two, two_log = launch(tmp_path / "two", 2, "lora", head, "zero3")
    assert two_log[:2] == [2, "DEEPSPEED"]
    assert two_log[2] == pytest.approx(one_log[2], rel=1e-5)
    assert deviation(start, two, one) < TOLERANCE
