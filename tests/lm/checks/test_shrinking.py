"""Small models of large ones: what is kept, and what cannot be made."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from mce_llm.lm.checks.shrinking import ShrinkingError, small_model


def full(config, **settings):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))


def small(model, **changes):
    return small_model(model, **{"vocabulary": 64, "length": 32, "attention": None} | changes)


def test_one_layer_of_every_kind_is_kept():
    """Gemma 3 has full attention in every sixth layer, Jamba attention in the fifth, experts in the second."""
    gemma = small(full("Gemma3TextConfig", num_hidden_layers=26))
    assert gemma.config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    jamba = small(full("JambaConfig"))
    kinds = {type(layer).__name__ for layer in jamba.model.layers}
    assert kinds == {"JambaMambaDecoderLayer", "JambaAttentionDecoderLayer"}
    mixtral = small(full("MixtralConfig"))
    assert mixtral.config.num_hidden_layers == 2
    assert mixtral.config.num_local_experts == 4


def test_ratios_of_sizes_are_kept():
    config = small(full("Qwen2Config", num_key_value_heads=8)).config
    assert config.hidden_size // config.num_attention_heads == 128
    assert config.num_attention_heads // config.num_key_value_heads > 1
    assert config.vocab_size == 64


def test_the_full_configuration_is_left_alone():
    model = full("LlamaConfig", quantization_config={"quant_method": "bitsandbytes"})
    before = model.config.to_dict()
    made = small(model)
    assert model.config.to_dict() == before
    assert made.dtype == torch.float32
    assert made.device.type == "cpu"
    assert not hasattr(made.config, "quantization_config")


def test_dropout_is_taken_away():
    made = small(full("GPT2Config", n_layer=3))
    assert all(module.p == 0 for module in made.modules() if isinstance(module, torch.nn.Dropout))


def test_a_limit_of_size():
    with pytest.raises(
        ShrinkingError,
        match=r"no small LlamaForCausalLM can be made: ValueError: the smallest one has [\d,]+ para",
    ):
        small(full("LlamaConfig"), most_parameters=1000)
