"""The scores of tokens against full logits in float64, for every supported architecture, and whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from helpers.models import CONFIGS, VOCABULARY, make_model
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood import scoring
from mce_llm.eval.likelihood.scoring import Scorer
from mce_llm.lm.heads import UnsupportedModelError


def texts(count, seed=0, longest=20):
    """Prompts and completions of unequal lengths, the shortest possible among them."""
    generator = np.random.default_rng(seed)

    def ids(length):
        return generator.integers(3, VOCABULARY, length).tolist()

    prompts = [ids(generator.integers(1, longest)) for _ in range(count - 1)] + [ids(1)]
    return prompts, [ids(generator.integers(1, longest)) for _ in range(count - 1)] + [ids(1)]


def dense(model, prompt, completion):
    """One text at a time, from all logits: nats, entropy, confidence, first choice."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    log_q = torch.log_softmax(logits.double(), dim=-1)
    rows = torch.arange(len(completion))
    return (
        -log_q[rows, torch.tensor(completion)].numpy(),
        -(log_q.exp() * log_q).sum(-1).numpy(),
        log_q.max(-1).values.exp().numpy(),
        (log_q.argmax(-1) == torch.tensor(completion)).numpy(),
    )


def assert_dense(model, scored, prompts, completions, tolerance):
    for found, prompt, completion in zip(scored, prompts, completions, strict=True):
        nats, entropy, confidence, top1 = dense(model, prompt, completion)
        np.testing.assert_allclose(found.nats_T, nats, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.entropy_T, entropy, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.confidence_T, confidence, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(found.top1_T, top1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK_ELEMENTS", {"cpu": 7 * VOCABULARY, "cuda": 7 * VOCABULARY})


@pytest.mark.parametrize("family", CONFIGS)
def test_every_architecture_as_its_full_logits_in_float64(family):
    model = make_model(family, scale=8.0).eval()
    single = family.startswith("mixtral")  # torch multiplies by experts in single precision at most
    model = model if single else model.double()
    prompts, completions = texts(5)
    # float64 rounding; a measured softcap or scale is that of a float32 probe.
    tolerance = 1e-5 if single or "softcap" in family or "scale" in family else 1e-9
    assert_dense(model, Scorer(model).score(prompts, completions), prompts, completions, tolerance)


def test_a_device_without_float64(monkeypatch):
    monkeypatch.setattr(scoring, "exact_dtype", lambda device: torch.float32)
    model = make_model(scale=8.0).eval()
    prompts, completions = texts(5)
    # float32 rounding of a logarithm, of logits between -30 and 30.
    assert_dense(model, Scorer(model).score(prompts, completions), prompts, completions, 2e-5)


def test_the_softcap_and_the_scale_are_there(monkeypatch):
    """What the test above would show without them."""
    for family in ("gemma2-softcap", "cohere-scale"):
        model = make_model(family, scale=8.0).double().eval()
        scorer = Scorer(model)
        monkeypatch.setattr(scorer, "_softcap", None)
        monkeypatch.setattr(scorer, "_logit_scale", 1.0)
        prompts, completions = texts(5)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_dense(model, scorer.score(prompts, completions), prompts, completions, 1e-2)


@pytest.mark.parametrize("where", ["layers", "head", "saved head"])
def test_adapters(where):
    torch.manual_seed(0)
    named = {
        "layers": {"target_modules": ["q_proj", "v_proj"]},
        "head": {"target_modules": ["lm_head"]},
        "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }[where]
    model = get_peft_model(make_model(scale=8.0), LoraConfig(init_lora_weights=False, r=2, **named))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight))
    model = model.double().eval()
    prompts, completions = texts(4)
    scored = Scorer(model).score(prompts, completions)
    assert_dense(model, scored, prompts, completions, 1e-9)
    with model.disable_adapter(), pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_dense(model, scored, prompts, completions, 1e-2)


LLAMA = make_model(scale=8.0).eval()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_a_batch_of_one_and_a_batch_of_many_agree(seed, count):
    prompts, completions = texts(count, seed)
    scorer = Scorer(LLAMA)
    together = scorer.score(prompts, completions)
    for number, found in enumerate(together):
        (alone,) = scorer.score(prompts[number : number + 1], completions[number : number + 1])
        for name in ("nats_T", "entropy_T", "confidence_T"):
            # float32 sums over 61 tokens of logits up to about 30.
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_that_of_the_model():
    """The logits are rounded to bfloat16 as the model rounds them, and everything behind them is float32."""
    model = make_model(scale=8.0).to(torch.bfloat16).eval()
    prompts, completions = texts(6)
    scored = [Scorer(model).score([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    # A head on a chunk and on all positions may round a product to the other side: one bfloat16 step of a logit below 8.
    for found, prompt, completion in zip(scored, prompts, completions, strict=True):
        nats, *_ = dense(model, prompt, completion)
        np.testing.assert_allclose(found.nats_T, nats, atol=2**-4)
        assert abs(found.nats_T - nats).mean() < 2**-7


def test_a_model_that_rules_tokens_out():
    model = make_model(scale=8.0).eval()
    head = torch.nn.Linear(16, VOCABULARY)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[5:9] = -torch.inf
    model.lm_head = head
    prompts, completions = [[3, 4]], [[10, 11, 12]]
    (found,) = Scorer(model).score(prompts, completions)
    assert np.isfinite(found.entropy_T).all()
    with pytest.raises(EvaluationError, match="give 1 of 3 tokens no finite likelihood"):
        Scorer(model).score(prompts, [[10, 6, 12]])


def test_weights_that_are_no_numbers():
    model = make_model().eval()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(
        EvaluationError, match="give 2 of 2 tokens no finite likelihood; the weights are damaged"
    ):
        Scorer(model).score([[3, 4]], [[5, 6]])


def test_the_model_is_as_it_was():
    model = make_model().eval()
    before = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    Scorer(model).score([[3, 4]], [[5, 6]])
    assert "forward" not in model.lm_head.__dict__
    assert torch.equal(model(input_ids=torch.tensor([[3, 4, 5]])).logits, before)


def test_logits_of_a_chunk_at_most(monkeypatch):
    model = make_model().eval()
    seen = []
    model.lm_head.register_forward_hook(lambda *_: seen.append("whole"))
    own = type(model.lm_head).forward

    def counting(self, hidden):
        if self is model.lm_head:
            seen.append(hidden.shape[0])
        return own(self, hidden)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    prompts, completions = texts(6)
    scorer = Scorer(model)
    seen.clear()
    scorer.score(prompts, completions)
    counts = [count for count in seen if count != "whole"]
    assert max(counts) == 7
    assert sum(counts) == sum(map(len, completions))


def test_encoders_are_refused():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        Scorer(BertForMaskedLM(config))
