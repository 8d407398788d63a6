"""What the check of a model's class finds, each with a model that has the fault and one that has not."""

import random
import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from helpers.models import CONFIGS, make_model
from mce_llm.lm import UncheckedModelWarning, UnsupportedModelError, check_model, examine_model
from mce_llm.lm.checks import model_check

_SEQUENCE = {"vocab_size": 90, "num_hidden_layers": 2}
_DECODER = {"vocab_size": 90, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
_DECODER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
_DECODER |= {"encoder_ffn_dim": 24, "max_position_embeddings": 64, "pad_token_id": 0}
_OPT = {**_SEQUENCE, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "word_embed_proj_dim": 16}


def on_meta(config, **settings):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))


class DoubledLoss(LlamaForCausalLM):
    """Its own loss is another one, by a factor."""

    def forward(self, *args, labels=None, **kwargs):
        output = super().forward(*args, labels=labels, **kwargs)
        if labels is not None:
            output.loss = 2 * output.loss
        return output


class Peeking(LlamaForCausalLM):
    """Each position also sees the token after it."""

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids=None, **kwargs):
        table = self.model.embed_tokens
        embedded = table(input_ids) + 0.1 * table(input_ids.roll(-1, dims=1))
        return super().forward(inputs_embeds=embedded, **kwargs)


class HalfTrained(LlamaForCausalLM):
    """The same loss, of which one layer gets no gradient as soon as the head does not give logits."""

    def forward(self, *args, labels=None, **kwargs):
        output = super().forward(*args, labels=labels, **kwargs)
        if labels is not None:
            output.loss = output.loss + self.model.norm.weight.sum() - self.model.norm.weight.sum().detach()
        return output


class Unmakeable(LlamaForCausalLM):
    """Takes more than a configuration."""

    def __init__(self, config, secret):
        super().__init__(config)
        self.secret = secret


def tiny(model_class, *more):
    torch.manual_seed(0)
    return model_class(transformers.LlamaConfig(**CONFIGS["llama"][1]), *more)


@pytest.mark.parametrize(
    "family", ["llama", "gemma2-softcap", "cohere-scale", "mixtral-router", "gpt2-unnamed-loss"]
)
def test_right_models_pass(family):
    found = examine_model(make_model(family))
    assert (found.problem, found.unchecked) == (None, ())
    assert 0 < found.parameters < 100_000


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (lambda: on_meta("BartConfig", **_DECODER), "BartForCausalLM: it does not shift the labels"),
        (lambda: on_meta("MBartConfig", **_DECODER), "MBartForCausalLM: it does not shift the labels"),
        (
            lambda: tiny(DoubledLoss),
            r"DoubledLoss: its own loss on one batch is .*, and causal cross-entropy",
        ),
        (
            lambda: tiny(HalfTrained),
            r"HalfTrained: the gradient of model.norm.weight is not that of its own loss",
        ),
        (
            lambda: tiny(Peeking),
            r"Peeking is no causal language model: its logits depend on tokens that come after",
        ),
        (
            lambda: on_meta("XLMConfig", vocab_size=90, emb_dim=16, n_layers=1, n_heads=2),
            "XLMWithLMHeadModel is no causal language model",
        ),
        (
            lambda: on_meta("XLNetConfig", vocab_size=90, d_model=16, n_layer=1, n_head=2, d_inner=24),
            "XLNetLMHeadModel is no causal language model",
        ),
    ],
)
def test_faults_are_refused_by_name(model, pattern):
    with pytest.raises(UnsupportedModelError, match=pattern):
        check_model(model())


@pytest.mark.parametrize(
    ("config", "settings", "apart"),
    [
        ("LlamaConfig", CONFIGS["llama"][1], True),
        ("MistralConfig", CONFIGS["mistral"][1], True),
        ("GPT2Config", CONFIGS["gpt2-unnamed-loss"][1], True),
        ("OPTConfig", _OPT, False),
        ("BloomConfig", {**_SEQUENCE, "hidden_size": 16, "n_head": 2}, False),
        ("MptConfig", {**_SEQUENCE, "d_model": 16, "n_heads": 2, "n_layers": 1}, False),
        ("MambaConfig", {**_SEQUENCE, "hidden_size": 16, "state_size": 4}, False),
    ],
)
def test_packing_that_leaks_is_refused(config, settings, apart):
    model = on_meta(config, **settings)
    assert examine_model(model).problem is None
    problem = examine_model(model, packing=True).problem
    assert (problem is None) == apart
    if not apart:
        assert problem.startswith(f"{type(model).__name__}: packing: examples in one row see each other")
        assert problem.endswith("set packing: false, or take a collator that pads")


def test_large_models_are_checked_small():
    """Llemma-7B's sizes, on the meta device: no weight of it is made."""
    model = on_meta(
        "LlamaConfig",
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32016,
        pad_token_id=32015,
    )
    found = examine_model(model, packing=True)
    assert (found.problem, found.unchecked) == (None, ())
    assert found.parameters < 10_000_000


def test_each_attention_is_checked_with_itself():
    found = examine_model(make_model(), packing=True, attention="eager")
    assert (found.problem, found.attention) == (None, "eager")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is checked with FlashAttention")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_needs_a_gpu_is_named(attention):
    with pytest.warns(
        UncheckedModelWarning, match=f"with sdpa attention in place of {attention}: it needs a GPU"
    ):
        check_model(make_model(), packing=True, attention=attention)


def test_what_cannot_be_made_small_is_not_passed_in_silence():
    with pytest.warns(
        UncheckedModelWarning, match=r"not checked: that its loss is causal .* no small Unmakeable"
    ):
        check_model(tiny(Unmakeable, 3))


def test_a_class_is_checked_once():
    first = examine_model(make_model(seed=1))
    assert examine_model(make_model(seed=2)) is first
    assert examine_model(make_model(tie_word_embeddings=True)) is not first
    # Under its own name each: a subclass may compute another loss.
    assert examine_model(tiny(DoubledLoss)).problem is not None


def test_random_numbers_and_warnings_are_left_as_they_were():
    model = make_model("qwen2", hidden_size=24)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(model, packing=True)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_gates_that_begin_closed_hide_nothing(monkeypatch):
    """The negative control of the noise: with attention's output at zero, as at some initialisations, a leak stays unseen."""
    model = on_meta("OPTConfig", **{**_OPT, "init_std": 0.0})
    assert examine_model(model, packing=True).problem is not None
    monkeypatch.setattr(model_check, "stir", lambda model: None)
    monkeypatch.setattr(model_check, "_FOUND", {})
    unstirred = examine_model(model, packing=True)
    assert "see each other" not in (unstirred.problem or "")
