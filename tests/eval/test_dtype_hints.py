"""What is said of a precision that nobody chose, where this machine has a faster one."""

import re

import pytest
import torch

from mce_llm.eval import dtype_hints
from mce_llm.eval.dtype_hints import faster_dtype, precision_hints
from mce_llm.eval.gsm8k import Gsm8kConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "speed", "faster"),
    [
        ("float32", CPU, 3.5, "--dtype bfloat16 is faster on this CPU \\(3.5 times"),
        ("float32", CPU, 1.1, None),
        ("bfloat16", CPU, 0.2, "--dtype float32 is faster on this CPU \\(5.0 times"),
        ("bfloat16", CPU, 3.5, None),
        ("float16", CPU, 3.5, None),
        ("float32", CUDA, 0.0, "--dtype bfloat16 takes half the memory .* on this GPU"),
        ("bfloat16", CUDA, 0.0, None),
    ],
)
def test_the_faster_one_is_named(dtype, device, speed, faster, monkeypatch):
    monkeypatch.setattr(dtype_hints, "bfloat16_speed", lambda: speed)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    said = faster_dtype(Gsm8kConfig(model="m", output="o"), dtype, device)
    if faster is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(faster, said)
        assert f"the model runs in {dtype}, as it was saved" in said
        assert "the answers may differ" in said


def test_nothing_is_said_of_a_choice(monkeypatch):
    monkeypatch.setattr(dtype_hints, "bfloat16_speed", lambda: 9.0)
    assert faster_dtype(Gsm8kConfig(model="m", output="o", dtype="float32"), "float32", CPU) is None


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert faster_dtype(Gsm8kConfig(model="m", output="o"), "float32", CUDA) is None


def test_the_launchs_precision_is_no_precision_of_an_evaluation(monkeypatch):
    monkeypatch.setattr(dtype_hints, "bfloat16_speed", lambda: 1.0)
    config = Gsm8kConfig(model="m", output="o")
    assert precision_hints(config, "float32", CPU) == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    (text,) = precision_hints(config, "float32", CPU)
    assert "the launch asks for mixed_precision bf16" in text
    assert text.endswith("which is not used: an evaluation has --dtype, here auto")
