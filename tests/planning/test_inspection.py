"""Sizes read off models, against what the models say of themselves."""

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model

from helpers.models import CONFIGS
from mce_llm.lm import UnsupportedModelError
from mce_llm.planning import PlanningError, shape_of, with_lora


def meta_model(family, **changes):
    name, settings = CONFIGS[family]
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, name)(**{**settings, **changes})
        )


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_those_of_the_model(family):
    """Every parameter once: tied embeddings, biases, experts and position tables included."""
    model = meta_model(family)
    shape = shape_of(model)
    assert shape.parameters == model.num_parameters() == shape.trained
    assert shape.num_layers == 2
    assert (shape.vocabulary, shape.hidden_size) == (61, 16)
    assert shape.tied == model.config.tie_word_embeddings
    assert shape.softcap == (family == "gemma2-softcap")


def test_frozen_parameters_are_not_trained():
    model = meta_model("llama")
    model.model.layers[0].requires_grad_(False)
    shape = shape_of(model)
    assert shape.trained == sum(p.numel() for p in model.parameters() if p.requires_grad) < shape.parameters
    assert shape.head_trained
    model.lm_head.requires_grad_(False)
    assert not shape_of(model).head_trained


@pytest.mark.parametrize("family", ["llama", "qwen3-tied", "gpt-neox", "phi-bias"])
def test_lora_arithmetic_is_that_of_peft(family):
    """`with_lora` never builds adapters; it must come to the numbers of the library that does."""
    model = meta_model(family)
    expected = with_lora(shape_of(model), 3)
    adapted = get_peft_model(
        model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=3, target_modules="all-linear")
    )
    found = shape_of(adapted)
    assert (
        found.trained == expected.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    )
    assert found.parameters == expected.parameters
    assert found.layer.linears == expected.layer.linears
    assert not found.head_trained
    assert not expected.head_trained


def test_layers_as_activations_see_them():
    layer = shape_of(meta_model("llama")).layer
    assert (layer.query_width, layer.key_width, layer.heads) == (16, 8, 4)
    assert (layer.inner_width, layer.gated, layer.experts) == (24, True, 0)
    shared = {linear.name.rpartition(".")[2] for linear in layer.linears if linear.shared_input}
    assert shared == {"k_proj", "v_proj", "up_proj"}

    mixture = shape_of(meta_model("mixtral-router")).layer
    assert (mixture.experts, mixture.inner_width) == (2, 24)
    neox = shape_of(meta_model("gpt-neox")).layer
    assert (neox.fused_width, neox.gated, neox.parallel) == (48, False, True)


def test_what_is_no_causal_model_is_refused():
    with torch.device("meta"):
        bert = transformers.BertForMaskedLM(
            transformers.BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        )
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        shape_of(bert)
    headless = meta_model("llama")
    headless.lm_head = None
    with pytest.raises((PlanningError, UnsupportedModelError), match="head"):
        shape_of(headless)
