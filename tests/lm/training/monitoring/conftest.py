"""A small real tokenizer, and a model with its vocabulary."""

import pytest

from helpers.models import make_model
from mce_llm.data import generate_problems, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    rows = generate_problems(40, max_number=10)
    return train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)


@pytest.fixture
def talker(tokenizer):
    """Makes models that know the tokenizer's vocabulary, with dropout."""

    def make(**changes):
        settings = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        return make_model(attention_dropout=0.3, **{**settings, **changes})

    return make
