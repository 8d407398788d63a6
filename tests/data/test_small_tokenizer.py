import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mce_llm.data.errors import DataError
from mce_llm.data.small_tokenizer import train_tokenizer
from mce_llm.data.synthetic import generate_problems

TEXTS = [f"{p['question']} {p['answer']}" for p in generate_problems(100)]
TOKENIZER = train_tokenizer(TEXTS, 512)


def test_special_tokens_are_two_and_apart():
    assert TOKENIZER.eos_token == "<|endoftext|>"
    assert TOKENIZER.pad_token == "<|pad|>"
    assert TOKENIZER.bos_token is None
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id
    assert len(TOKENIZER) <= 512
    assert TOKENIZER("12")["input_ids"] == TOKENIZER("12", add_special_tokens=False)["input_ids"]


def test_digits_are_read_one_by_one():
    tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER("12 + 345")["input_ids"])
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("12345")


@given(st.text())
def test_any_text_comes_back(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_saved_and_loaded_it_is_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    for text in [*TEXTS[:5], "  two  spaces ,\n\n end "]:
        assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_training_is_deterministic():
    assert train_tokenizer(TEXTS, 512).get_vocab() == TOKENIZER.get_vocab()


def test_too_small_a_vocabulary():
    with pytest.raises(DataError, match=r"vocab_size must be at least 258 .*got 100"):
        train_tokenizer(TEXTS, 100)
