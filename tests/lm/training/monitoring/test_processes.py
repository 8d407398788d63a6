"""Two processes over gloo, with unequal labels, say what one process says of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.monitored import lines

WORKER = """
import json, sys
sys.path[:0] = {folders!r}
import torch
torch.set_num_threads(1)
from helpers.models import make_model
from helpers.monitored import trainer_for
from mce_llm.data import generate_problems, train_tokenizer
from mce_llm.lm.training.monitoring.flops import ModelFlops
from mce_llm.running.processes import leave_processes

kind, rows, out, masked, engine = sys.argv[1:]
changes = {{}}
if engine == "zero3":
    changes["deepspeed"] = {{
        "zero_optimization": {{"stage": 3}}, "zero_allow_untested_optimizer": True, "torch_adam": True,
        "zero_force_ds_cpu_optimizer": False, "train_micro_batch_size_per_gpu": int(rows),
        "gradient_accumulation_steps": 2, "gradient_clipping": "auto",
    }}
text = [f"{{row['question']}} {{row['answer']}}" for row in generate_problems(40, max_number=10)]
tokenizer = train_tokenizer(text, vocab_size=300)
model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
trainer = trainer_for(out, model=model, rows=48, tokenizer=tokenizer, matrix_kind=kind, matrix_support=7,
                      per_device_train_batch_size=int(rows), gradient_accumulation_steps=2, max_steps=3,
                      report_to="tensorboard", seed=3, sample_steps=2, sample_max_new_tokens=6,
                      sample_prompts=["Tom has 3 apples.", "A box"], **changes)
if engine == "fsdp2":  # what accelerate does on GPUs; without one it would train on as if nothing had been asked for
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    shared = trainer.accelerator.state._shared_state
    PartialState._shared_state["distributed_type"] = shared["distributed_type"] = DistributedType.FSDP
    shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"], cpu_ram_efficient_loading=False)
    trainer.is_fsdp_enabled = True
if masked == "masked":  # every second pair of rows has no label at all: all that one of two ranks sees
    for index in range(48):
        if index // 2 % 2:
            trainer.train_dataset[index]["labels"][:] = -100
trainer.train()
if trainer.is_world_process_zero():
    state = trainer.accelerator.state
    flops = ModelFlops.of(trainer.model).fixed
    sharded = sum(hasattr(p, "to_local") or hasattr(p, "ds_id") for p in trainer.model.parameters())
    about = [trainer.accelerator.num_processes, state.distributed_type.value, sharded, flops]
    about.append(trainer.state.log_history)
    json.dump(about, open(out + "/about.json", "w"))
leave_processes()
"""
NAMES = ("hidden_effective_rank", "hidden_top_share", "density_effective_rank", "density_top_share", "loss")


def launch(folder, processes, kind, rows, masked="none", engine="plain"):
    folder.mkdir(parents=True)
    script = folder / "worker.py"
    script.write_text(WORKER.format(folders=[str(Path(__file__).parents[3])]))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(script), kind, str(rows), str(folder), masked, engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if engine == "zero3":
        environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    world, used, sharded, flops, history = json.loads((folder / "about.json").read_text())
    named = {"plain": "NO" if processes == 1 else "MULTI_CPU", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
    assert (world, used) == (processes, named[engine])
    assert (sharded > 0) == (engine != "plain")
    values = {name: [entry[name] for entry in history if name in entry] for name in (*NAMES, "tail_mass")}
    values["flops"] = [flops]
    trained = [
        entry["trained_tokens_per_second"] * entry["step_time"] for entry in history if "step_time" in entry
    ]
    samples = lines(folder / "samples.jsonl")
    return values, trained, lines(folder / "spectra.jsonl"), samples, done.stdout


def same(two, one):
    for name in NAMES:
        assert len(one[0][name]) >= 2
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    assert two[0]["tail_mass"] == pytest.approx(one[0]["tail_mass"], rel=1e-3)
    assert two[1] == pytest.approx(one[1])  # labels of each step, over all ranks
    for a, b in zip(two[2], one[2], strict=True):
        assert (a["step"], a["hidden"]["positions"]) == (b["step"], b["hidden"]["positions"])
        assert a["density"]["eigenvalues"] == pytest.approx(b["density"]["eigenvalues"], rel=1e-3, abs=1e-6)
    assert two[0]["flops"] == one[0]["flops"]
    assert len(one[3]) == 2
    assert two[3] == one[3]
    assert [run[4].count("step 1/3 ·") for run in (two, one)] == [1, 1]  # the main process alone writes lines


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_two_processes_are_one(tmp_path, kind):
    two, one = launch(tmp_path / "two", 2, kind, 2), launch(tmp_path / "one", 1, kind, 4)
    same(two, one)
    assert len(list((tmp_path / "two" / "runs").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_a_rank_without_labels(tmp_path, kind):
    same(launch(tmp_path / "two", 2, kind, 2, "masked"), launch(tmp_path / "one", 1, kind, 4, "masked"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_sharded_weights_are_seen_whole(tmp_path, kind, engine):
    """The table is whole inside the head's forward alone: ε/d in place of a spectrum would show, or an error."""
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    same(launch(tmp_path / "two", 2, kind, 2, engine=engine), launch(tmp_path / "one", 1, kind, 4))
