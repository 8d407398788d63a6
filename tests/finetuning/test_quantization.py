"""Quantised loading: what is refused anywhere, and training on 4 and 8 bits where bitsandbytes is installed."""

import importlib.util
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.adapters import disturb
from helpers.recipes import logged, words
from helpers.scripts import load_script
from mce_llm.finetuning import quantization
from mce_llm.finetuning.adapters import check_adapters, with_lora
from mce_llm.finetuning.models import load_model
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.running.installation import install_hint

finetune = load_script("recipes/finetune.py")
main = finetune.main

FROZEN = {"4bit": torch.uint8, "8bit": torch.int8}


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture
def quantized(folder, tokenizer):
    """A quantised model with adapters."""
    pytest.importorskip("bitsandbytes")

    def call(bits, **changed):
        settings = quantized_settings(folder, bits, **changed)
        check_adapters(settings, tokenizer)
        return with_lora(load_model(settings, tokenizer), settings)

    return call


def quantized_settings(folder, bits, **changed):
    model = {"model_name_or_path": str(folder / "model"), "quantization": bits, "lora_r": 2}
    return ModelArguments(**{**model, "dtype": "bfloat16", **changed})


def test_without_bitsandbytes(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        ModelSourceError, match=re.escape(f"4bit needs bitsandbytes: {install_hint('qlora')}")
    ):
        check_adapters(quantized_settings(folder, "4bit"), tokenizer)


def test_sharded_engines_are_refused(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: importlib.util.find_spec("torch"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelSourceError, match="4bit with ZeRO-3 or FSDP: quantised weights are not sharded"):
        check_adapters(quantized_settings(folder, "4bit"), tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", FROZEN)
@pytest.mark.parametrize(
    "changed",
    [{}, {"use_dora": True}, {"lora_modules_to_save": "lm_head,down_proj"}],
    ids=["lora", "dora", "saved"],
)
def test_a_step_on_quantised_weights(quantized, bits, dtype, changed):
    model = quantized(bits, dtype=dtype, **changed)
    base = model.get_base_model()
    assert type(base.get_output_embeddings().weight) is torch.nn.Parameter
    assert base.get_output_embeddings().weight.dtype == (
        torch.float32 if "lora_modules_to_save" in changed else getattr(torch, dtype)
    )
    linear = base.model.layers[0].self_attn.q_proj.base_layer
    assert linear.weight.dtype == FROZEN[bits]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    disturb(model)
    patch_model(model, MatrixLossConfig())
    ids = torch.arange(3, 43).view(2, -1)
    loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trained.values())
    before, whole = linear.weight.clone(), {name: p.detach().clone() for name, p in trained.items()}
    torch.optim.AdamW(trained.values(), lr=0.1).step()
    assert torch.equal(linear.weight, before)
    assert all(not torch.equal(p, whole[name]) for name, p in trained.items())


def test_4_bits_are_double_quantised_normal_floats(quantized):
    linear = quantized("4bit").get_base_model().model.layers[0].self_attn.q_proj.base_layer
    state = linear.weight.quant_state
    assert (state.quant_type, state.nested, linear.compute_dtype) == ("nf4", True, torch.bfloat16)


def test_a_quantised_layer_cannot_be_trained_whole(folder, tokenizer):
    pytest.importorskip("bitsandbytes")
    model = load_model(quantized_settings(folder, "4bit"), tokenizer)
    with pytest.raises(ModelSourceError, match="'down_proj' is quantised and cannot be trained whole"):
        with_lora(model, quantized_settings(folder, "4bit", lora_modules_to_save="down_proj"))


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_recipe_on_4_bits(folder, settings, checkpointing):
    """Trained, saved and merged into the unquantised base."""
    pytest.importorskip("bitsandbytes")
    settings |= {
        "lora_r": 2,
        "quantization": "4bit",
        "dtype": "bfloat16",
        "activation_checkpointing": checkpointing,
    }
    main(words(settings, merge_adapters="true", lora_modules_to_save="lm_head"))
    output = settings["output_dir"]
    assert all(map(math.isfinite, logged(output, "loss")))
    weights = load_file(output / "adapter_model.safetensors")
    assert all(weights[name].any() for name in weights if "lora_B" in name)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    merged = AutoModelForCausalLM.from_pretrained(output / "merged")
    assert getattr(merged.config, "quantization_config", None) is None
    assert merged.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).state_dict()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, base[name])}
    assert changed == {name for name in base if name.endswith("_proj.weight")} | {"lm_head.weight"}
