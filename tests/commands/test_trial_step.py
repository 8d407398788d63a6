"""Shrunken models of every supported family, and what a step of one shows."""

import pytest
import torch
import transformers
from torch import nn

from helpers.models import CONFIGS
from mce_llm.commands import trial_step
from mce_llm.commands.recipe_shapes import read_recipe
from mce_llm.commands.trial_step import shrunken_model, try_step
from mce_llm.data import load_tokenizer
from mce_llm.finetuning.settings import ModelSourceError

# As the families come, but for the vocabulary: widths and heads of 1B to 9B models.
FULL_SIZE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}


def full_model(family):
    name, settings = CONFIGS[family]
    if family.startswith("gpt2"):
        settings = {"vocab_size": 300}
    else:
        settings = settings | FULL_SIZE | {"vocab_size": 300}
        settings |= {"head_dim": 256} if "head_dim" in settings else {}
        settings |= {"num_key_value_heads": 4} if "num_key_value_heads" in settings else {}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))


def rows_of(tokenizer):
    ids = tokenizer("Question: How many? Answer: 3 + 5 = 8")["input_ids"]
    return [{"input_ids": ids, "labels": [-100] * 4 + ids[4:]}] * 3


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("MambaConfig", {"state_size": 16}),
        ("Mamba2Config", {}),
        ("RwkvConfig", {"attention_hidden_size": None}),
        ("xLSTMConfig", {}),
    ],
)
def test_models_without_attention_shrink_and_step(config, changes, recipe, place):
    """They have no num_attention_heads, or none that means anything."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, config)(vocab_size=300, **changes)
        )
    tokenizer = load_tokenizer(place / "tokenizer")
    step = try_step(read_recipe(str(recipe()), []), model, tokenizer, rows_of(tokenizer))
    assert step.without_gradient == step.not_finite == []
    assert step.parameters < 20_000_000


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_shrinks_and_steps(family, recipe, place):
    """Same type and head, every trained tensor with a finite gradient; the config that was given is left alone."""
    model = full_model(family)
    before = model.config.to_dict()
    settings = read_recipe(str(recipe()), [])
    tokenizer = load_tokenizer(place / "tokenizer")
    step = try_step(settings, model, tokenizer, rows_of(tokenizer))
    assert step.without_gradient == step.not_finite == []
    assert step.parameters < 20_000_000
    assert step.loss > 0
    assert step.matrix_cross_entropy is not None
    assert model.config.to_dict() == before


def test_the_recipes_loss_and_adapters_are_used(recipe, place):
    tokenizer = load_tokenizer(place / "tokenizer")
    rows = rows_of(tokenizer)
    model = full_model("llama")
    without = try_step(read_recipe(str(recipe(matrix_weight=0.0)), []), model, tokenizer, rows)
    assert without.matrix_cross_entropy is None
    assert without.loss == pytest.approx(without.cross_entropy)
    assert without.terms == {}
    emo = try_step(read_recipe(str(recipe(loss="emo")), []), model, tokenizer, rows)
    assert emo.terms.keys() == {"emo_loss", "emo_distance"}
    assert emo.loss == pytest.approx((emo.cross_entropy + emo.terms["emo_loss"]) / 2)
    settings = read_recipe(str(recipe(lora_r=2, gradient_checkpointing=True)), [])
    adapted = try_step(settings, model, tokenizer, rows)
    assert adapted.trained == 2 * 2 * 7  # two layers, seven matrices, A and B
    assert adapted.without_gradient == []


def test_random_numbers_are_left_as_they_were(recipe, place):
    tokenizer = load_tokenizer(place / "tokenizer")
    before = torch.random.get_rng_state()
    try_step(read_recipe(str(recipe()), []), full_model("llama"), tokenizer, rows_of(tokenizer))
    assert torch.equal(before, torch.random.get_rng_state())


def test_parameters_out_of_reach_are_named(recipe, place, monkeypatch):
    """The negative control: a model with a weight that no gradient reaches."""

    def with_a_stray_weight(*args, **kwargs):
        model = shrunken_model(*args, **kwargs)
        model.stray = nn.Parameter(torch.zeros(3))
        return model

    monkeypatch.setattr(trial_step, "shrunken_model", with_a_stray_weight)
    tokenizer = load_tokenizer(place / "tokenizer")
    step = try_step(read_recipe(str(recipe()), []), full_model("llama"), tokenizer, rows_of(tokenizer))
    assert step.without_gradient == ["stray"]


def test_gradients_that_are_not_finite_are_named(recipe, place, monkeypatch):
    def with_an_overflow(*args, **kwargs):
        model = shrunken_model(*args, **kwargs)
        model.model.layers[0].mlp.down_proj.weight.register_hook(lambda gradient: gradient / 0)
        return model

    monkeypatch.setattr(trial_step, "shrunken_model", with_an_overflow)
    tokenizer = load_tokenizer(place / "tokenizer")
    step = try_step(read_recipe(str(recipe()), []), full_model("llama"), tokenizer, rows_of(tokenizer))
    assert step.not_finite == ["model.layers.0.mlp.down_proj.weight"]


def test_what_cannot_shrink_says_why(monkeypatch):
    monkeypatch.setattr(trial_step, "_MOST_PARAMETERS", 10)
    with pytest.raises(ModelSourceError, match=r"no small LlamaForCausalLM can be made: .* parameters"):
        shrunken_model(full_model("llama"), attention=None)


def test_long_rows_are_cut_around_their_answers():
    row = {"input_ids": list(range(2000)), "labels": [-100] * 1000 + list(range(1000, 2000))}
    cut = trial_step._cut(row)
    assert len(cut["labels"]) == trial_step._LENGTH
    assert cut["labels"].count(-100) == trial_step._LENGTH // 2
