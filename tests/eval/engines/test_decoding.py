"""Sampling: the distribution is the one that was asked for, and each row has its own random numbers."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mce_llm.eval.engines import decoding
from mce_llm.eval.engines.decoding import Decoding, Picker, Request


def rows(count, sample=0):
    return [Request(index, sample, (1,)) for index in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 2.0, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.05},
        {"temperature": 1.0, "top_k": 100},
    ],
)
@pytest.mark.parametrize("exact", [torch.float64, torch.float32])
def test_frequencies_are_those_of_the_stock_warpers(options, exact, monkeypatch):
    """20,000 draws against temperature, top-k and top-p of transformers: 5 standard errors on every token."""
    monkeypatch.setattr(decoding, "exact_dtype", lambda device: exact)  # MPS has no float64
    logits_V = torch.tensor([2.0, -1.0, 0.5, 1.9, 0.0, -3.0, 1.0, 0.51])
    scores_1V = TemperatureLogitsWarper(options["temperature"])(None, logits_V[None])
    if "top_k" in options:
        scores_1V = TopKLogitsWarper(min(options["top_k"], len(logits_V)))(None, scores_1V)
    if "top_p" in options:
        scores_1V = TopPLogitsWarper(options["top_p"])(None, scores_1V)
    expected_V = scores_1V.softmax(-1)[0]
    draws = 20_000
    tokens = Picker(Decoding(**options))(logits_V.expand(draws, -1), rows(draws), 1)
    found_V = torch.bincount(torch.tensor(tokens), minlength=len(logits_V)) / draws
    error_V = (expected_V * (1 - expected_V) / draws).sqrt()
    assert ((found_V - expected_V).abs() <= 5 * error_V).all()  # exactly none where the probability is 0


def test_greedy_takes_the_most_probable():
    logits_BV = torch.randn(9, 50)
    assert Picker(Decoding())(logits_BV, rows(9), 1) == logits_BV.argmax(-1).tolist()


def test_random_numbers_belong_to_the_row():
    logits_BV = torch.zeros(6, 100)
    alone = [Picker(Decoding(temperature=1.0, seed=3))(logits_BV[:1], [row], 1)[0] for row in rows(6)]
    picker = Picker(Decoding(temperature=1.0, seed=3))
    assert picker(logits_BV, rows(6), 1) == alone
    assert picker(logits_BV, rows(6), 2) != alone  # the next token has the next number
    assert Picker(Decoding(temperature=1.0, seed=3))(logits_BV, rows(6, sample=1), 1) != alone
    assert Picker(Decoding(temperature=1.0, seed=4))(logits_BV, rows(6), 1) != alone


def test_rare_tokens_of_a_large_vocabulary_are_drawn():
    """Uniform over 200,000 tokens: float32 sums would reach each end with steps of 6e-8, a hundredth of a token."""
    size = 200_000
    tokens = torch.tensor(Picker(Decoding(temperature=1.0))(torch.zeros(60, size), rows(60), 1))
    assert tokens.float().mean() == pytest.approx(size / 2, abs=5 * size / (12 * 60) ** 0.5)
    assert len(set(tokens.tolist())) > 58


def test_minus_infinity_is_no_error_and_never_drawn():
    logits_BV = torch.tensor([[-torch.inf, 1.0, -torch.inf]]).expand(50, -1)
    assert set(Picker(Decoding(temperature=1.0))(logits_BV, rows(50), 1)) == {1}
