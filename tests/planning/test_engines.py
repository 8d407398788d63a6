"""Partitions and buffers of the engines: the arithmetic, and what DeepSpeed really allocates."""

import json
import subprocess
import sys

import pytest
import torch

from helpers.models import make_model
from mce_llm.planning import ENGINES, DeepSpeedSizes, PlanningError, shape_of
from mce_llm.planning.engines import buffer_terms, engines_for, state_terms


def test_engines_for_a_number_of_gpus():
    assert [engine.name for engine in engines_for(1)] == ["ddp", "zero3_offload"]
    assert [engine.name for engine in engines_for(2)] == ["ddp", "zero2", "zero3", "fsdp2", "zero3_offload"]
    assert engines_for(1, "single") == engines_for(1, "ddp") == [ENGINES["ddp"]]


@pytest.mark.parametrize(
    ("devices", "name", "message"),
    [(2, "zero1", r"unknown engine 'zero1' \(did you mean"), (2, "single", "for one GPU, got 2")],
)
def test_unknown_engines(devices, name, message):
    with pytest.raises(PlanningError, match=message):
        engines_for(devices, name)


def test_one_process_has_no_buckets(run_of):
    model = shape_of(make_model())
    assert buffer_terms(ENGINES["ddp"], model, run_of(), 1) == []
    (buckets,) = buffer_terms(ENGINES["ddp"], model, run_of(), 2)
    assert buckets.bytes == 4 * model.parameters


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ("zero3", {"quantization": "4bit", "adapter_rank": 4}, "4bit weights are not sharded"),
        ("fsdp2", {"optim": "adamw_8bit"}, "does not update sharded"),
        ("zero3_offload", {"optim": "sgd"}, "DeepSpeedCPUAdam in place of sgd"),
        ("zero2", {"quantization": "4bit", "adapter_rank": 4}, None),
        ("ddp", {"optim": "adamw_8bit"}, None),
    ],
)
def test_refusals(engine, changes, message, run_of):
    refusal = ENGINES[engine].refusal(run_of(**changes))
    assert (message is None and refusal is None) or message in refusal


_PARTITIONS = """
import json, os, sys, torch, transformers
import deepspeed
stage, out = int(sys.argv[1]), sys.argv[2]
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
)
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": stage, "reduce_bucket_size": 10000, "stage3_param_persistence_threshold": 0},
}
model = transformers.LlamaForCausalLM(config)
engine, *_ = deepspeed.initialize(
    model=model, config=settings, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3)
)
ids = torch.randint(64, (1, 8))
engine.backward(engine(input_ids=ids, labels=ids).loss)
zero = engine.optimizer
if stage == 3:
    masters = zero.fp32_partitioned_groups_flat
    weights = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in engine.module.parameters())
    gradients = zero.grad_partitions_flat_buffer
    gradients = gradients.numel() * gradients.element_size()
else:
    masters = zero.single_partition_of_fp32_groups
    weights = sum(p.numel() * p.element_size() for p in engine.module.parameters())
    gradients = sum(g.numel() * g.element_size() for group in zero.averaged_gradients.values() for g in group)
engine.step()
states = sum(
    v.numel() * v.element_size()
    for state in zero.optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim
)
if int(os.environ["RANK"]) == 0:
    sizes = {
        "weights": weights, "gradients": gradients, "optimizer states": states,
        "master weights": sum(t.numel() * t.element_size() for t in masters),
    }
    open(out, "w").write(json.dumps(sizes))
"""


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_partitions_are_those_of_deepspeed(stage, tmp_path, run_of):
    """Two processes over gloo, one step: each line to the byte, but for padding to whole partitions."""
    pytest.importorskip("deepspeed")
    import os

    import transformers

    script, out = tmp_path / "partitions.py", tmp_path / "sizes.json"
    script.write_text(_PARTITIONS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launcher, str(script), str(stage), str(out)],
        check=True,
        timeout=280,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    real = json.loads(out.read_text())
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.device("meta"):
        model = shape_of(transformers.LlamaForCausalLM(config))
    terms = state_terms(ENGINES[f"zero{stage}"], model, run_of(mixed="bfloat16"), 2)
    planned = {term.name: term.bytes for term in terms if term.phase == "always"}
    assert set(planned) == set(real)
    for name, size in real.items():
        assert size == pytest.approx(planned[name], rel=0.01), name


_MOMENTS = """
import json, os, sys, torch, transformers
sys.path.insert(0, sys.argv[1])
import deepspeed
from helpers.memory import LiveBytes
deepspeed.init_distributed("gloo")


def moments(stage, accumulation, optimizer, bucket):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    zero = {"stage": stage, "reduce_bucket_size": bucket, "stage3_param_persistence_threshold": 0}
    zero |= {"stage3_prefetch_bucket_size": 40_000, "stage3_max_live_parameters": 1, "stage3_max_reuse_distance": 1}
    settings = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": accumulation}
    settings |= {"bf16": {"enabled": True}, "zero_optimization": zero}
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, **{optimizer: True})
    engine, *_ = deepspeed.initialize(model=model, config=settings, optimizer=adam)
    ids = torch.randint(64, (1, 8))
    peaks = {"backward": [], "step": []}
    with LiveBytes() as memory:
        for _ in range(5):
            before = memory.live
            for _ in range(accumulation):
                loss = engine(input_ids=ids, labels=ids).loss
                memory.reset_peak()
                engine.backward(loss)
                backward = memory.peak - before
                del loss
                memory.reset_peak()
                engine.step()
            peaks["backward"].append(backward)
            peaks["step"].append(memory.peak - before)
    # States are made in the first step. A thread of gloo may hold a buffer for a moment longer: the least is what is needed.
    return {moment: min(sizes[1:]) for moment, sizes in peaks.items()}


found = {name: moments(*run) for name, run in json.loads(sys.argv[2]).items()}
if int(os.environ["RANK"]) == 0:
    open(sys.argv[3], "w").write(json.dumps(found))
"""


@pytest.mark.ci
@pytest.mark.slow
def test_buffers_are_those_of_deepspeed(tmp_path, run_of):
    """What DeepSpeed makes in the backward pass and for the update, counted in two processes; P parameters."""
    pytest.importorskip("deepspeed")
    import os
    from pathlib import Path

    import transformers

    runs = {
        "zero2": (2, 1, "fused", 1000),
        "zero2, two micro-batches": (2, 2, "fused", 1000),
        "zero2, foreach": (2, 1, "foreach", 1000),
        "zero3": (3, 1, "fused", 1000),
        "zero3, bucket": (3, 1, "fused", 100_000),
        "zero3, foreach": (3, 1, "foreach", 1000),
    }
    script, out = tmp_path / "moments.py", tmp_path / "moments.json"
    script.write_text(_MOMENTS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    helpers = str(Path(__file__).parents[1])
    subprocess.run(
        [*launcher, str(script), helpers, json.dumps(runs), str(out)],
        check=True,
        timeout=500,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    real = json.loads(out.read_text())
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=2
    )
    with torch.device("meta"):
        model = shape_of(transformers.LlamaForCausalLM(config))

    def planned(name, phase, *lines):
        stage, accumulation, optimizer, bucket = runs[name]
        run = run_of(
            mixed="bfloat16",
            optim="adamw_torch" if optimizer == "foreach" else "adamw_torch_fused",
            accumulation=accumulation,
            deepspeed=DeepSpeedSizes(reduce_bucket=bucket, prefetch_bucket=40_000),
        )
        engine = ENGINES[f"zero{stage}"]
        terms = [*state_terms(engine, model, run, 2), *buffer_terms(engine, model, run, 2)]
        return sum(term.bytes for term in terms if term.phase == phase and (not lines or term.name in lines))

    # ZeRO-2 lets go of its gradients before the step is over; they are a line of their own.
    gradients = 2 * model.parameters / 2
    for name in ("zero2", "zero2, foreach"):
        assert real[name]["step"] - gradients == pytest.approx(planned(name, "step"), rel=0.02)
    for name in ("zero3", "zero3, foreach"):
        assert real[name]["step"] == pytest.approx(planned(name, "step"), rel=0.02)
    # A second micro-batch has its gradients beside the sum.
    more = real["zero2, two micro-batches"]["backward"] - real["zero2"]["backward"]
    line = planned("zero2, two micro-batches", "backward", "micro-batch's gradients")
    assert more == pytest.approx(line, rel=0.08)
    assert planned("zero2", "backward", "micro-batch's gradients") == 0
    # What is in the bucket is laid out once more; the bucket is not quite full, and was there before.
    more = real["zero3, bucket"]["backward"] - real["zero3"]["backward"]
    assert 0.6 < more / planned("zero3, bucket", "backward", "bucket laid out") <= 1


def test_gradients_are_whole_between_micro_batches_where_they_are_not_reduced(run_of):
    """FSDP2 on four GPUs: 2 bytes a parameter in place of the shards; nothing more where each micro-batch is reduced."""
    model = shape_of(make_model())
    found = {}
    for reduces in (True, False):
        run = run_of(mixed="bfloat16", accumulation=3, reduces_each_batch=reduces)
        terms = state_terms(ENGINES["fsdp2"], model, run, 4)
        found[reduces] = sum(term.bytes for term in terms if term.phase in ("always", "forward"))
    assert found[False] - found[True] == model.parameters * (2 - 4 / 4)
    once = run_of(mixed="bfloat16", accumulation=1, reduces_each_batch=False)
    assert not any("unsharded" in term.name for term in state_terms(ENGINES["fsdp2"], model, once, 4))
