"""Which updates low-precision weights lose: by the definition of rounding, and in a training."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.finetuning.precision import (
    cpu_precision_text,
    lost_share,
    lost_share_of,
    lost_updates_text,
    usual_lost_share,
)
from mce_llm.running.cpu_speed import bfloat16_speed

main = load_script("recipes/finetune.py").main


@given(st.floats(1e-3, 1.0), st.floats(1e-7, 1e-1), st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_weight_loses_an_update_below_half_of_its_spacing(weight, learning_rate, dtype):
    stored = torch.tensor([weight]).to(dtype)
    above = torch.nextafter(stored, torch.tensor([2.0], dtype=dtype)).double() - stored.double()
    share = lost_share(stored, learning_rate)
    if learning_rate < 0.49 * float(above) / 2:  # the spacing below a power of two is half of that above
        assert share == 1.0
    if learning_rate > 0.51 * float(above):
        assert share == 0.0


def test_float32_loses_nothing_of_usual_updates():
    assert lost_share(torch.randn(1000) * 0.02, 1e-6) == 0.0
    assert lost_share(torch.zeros(0), 1.0) == 0.0
    assert usual_lost_share(torch.bfloat16, 1e-5) > 0.8 > 0.2 > usual_lost_share(torch.bfloat16, 2e-4)


def test_only_what_is_trained_counts():
    layer = torch.nn.Linear(64, 64)
    frozen = torch.nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    assert lost_share_of(torch.nn.ModuleList([layer, frozen]), 1e-6) == (0.0, None)
    frozen.requires_grad_(True)
    share, dtype = lost_share_of(torch.nn.ModuleList([layer, frozen]), 1e-6)
    assert dtype == torch.bfloat16
    assert share > 0.9
    assert "bf16: true" in lost_updates_text(share, dtype, 1e-6)
    assert lost_updates_text(0.1, dtype, 1e-3) is None


def test_the_speed_of_bfloat16_is_measured():
    """What is said follows what is measured; `tests/running/test_cpu_speed.py` holds that against the processor."""
    speed = statistics.median(bfloat16_speed() for _ in range(5))
    if 0.8 < speed < 1.25:
        pytest.skip(f"as fast as float32 here ({speed:.2f}), so that noise decides")
    fast = speed > 1
    texts = {mixed: cpu_precision_text(mixed=mixed) for mixed in (True, False)}
    assert texts[fast] is None  # the faster one is in use
    assert texts[not fast] is None or "(measured)" in texts[not fast]


@pytest.mark.parametrize(("dtype", "warned"), [("bfloat16", True), ("float32", False)])
def test_the_recipe_says_so_at_its_start(dtype, warned, settings, capsys):
    """And it is true: most bfloat16 weights are the same after the steps, few float32 ones."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    main(words(settings, dtype=dtype, learning_rate=1e-5, max_steps=3, lr_scheduler_type="constant"))
    said = capsys.readouterr().out
    assert ("warning: " in said and "rounded away" in said) == warned
    before = AutoModelForCausalLM.from_pretrained(
        settings["model_name_or_path"], dtype=getattr(torch, dtype)
    ).state_dict()
    after = load_file(settings["output_dir"] / "model.safetensors")
    same = sum(int((after[name] == before[name]).sum()) for name in after)
    share = same / sum(tensor.numel() for tensor in after.values())
    assert (share > 0.5) == warned
