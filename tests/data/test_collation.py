import inspect
import pickle

import pytest
import torch
from transformers import LlamaForCausalLM

from mce_llm.data.collation import CompletionCollator
from mce_llm.data.errors import DataError

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
]
PACKED = [
    {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "position_ids": [0, 1, 0, 1]},
    {"input_ids": [9], "labels": [-100], "position_ids": [0]},
]


def test_unpacked_rows():
    batch = CompletionCollator(0)(ROWS)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_packed_rows_have_no_mask_and_padding_is_an_example_of_its_own():
    batch = CompletionCollator(0, pad_to_multiple_of=3)(PACKED)
    assert batch.pop("use_cache") is False
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 0, 0], [9, 0, 0, 0, 0, 0]],
        "position_ids": [[0, 1, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4]],
        "labels": [[-100, 6, -100, 8, -100, -100], [-100] * 6],
    }


def test_flattened_packed_rows():
    batch = CompletionCollator(0, pad_to_multiple_of=4, flatten_packed=True)(PACKED)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 0, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, -100, -100, -100, -100]]


def test_models_take_every_key():
    accepted = set(inspect.signature(LlamaForCausalLM.forward).parameters)
    assert set(CompletionCollator(0)(ROWS)) | set(CompletionCollator(0)(PACKED)) <= accepted


@pytest.mark.parametrize(("multiple", "width"), [(None, 3), (1, 3), (2, 4), (3, 3), (8, 8)])
def test_pad_to_multiple_of(multiple, width):
    assert CompletionCollator(0, pad_to_multiple_of=multiple)(ROWS)["input_ids"].shape == (2, width)


def test_pad_id_from_a_tokenizer(byte_level, sentencepiece):
    assert CompletionCollator(byte_level).pad_token_id == byte_level.pad_token_id
    assert sentencepiece.pad_token_id is None
    assert CompletionCollator(sentencepiece).pad_token_id == sentencepiece.eos_token_id


def test_collator_survives_pickling(byte_level):
    # Loader workers that are spawned receive it that way.
    collator = pickle.loads(pickle.dumps(CompletionCollator(byte_level, 8)))
    assert torch.equal(collator(ROWS)["input_ids"], CompletionCollator(byte_level, 8)(ROWS)["input_ids"])


def test_rows_are_not_changed():
    CompletionCollator(0)(PACKED)
    assert PACKED[1] == {"input_ids": [9], "labels": [-100], "position_ids": [0]}


def test_tokenizer_without_any_token_to_pad_with(byte_level):
    tokenizer = type(byte_level)(tokenizer_object=byte_level.backend_tokenizer)
    with pytest.raises(
        DataError,
        match=r"neither a padding nor an EOS token; .*tokenizer_name_or_path \(in Python: set tokenizer\.pad_token",
    ):
        CompletionCollator(tokenizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompletionCollator(-1), "pad_token_id must be a token id, 0 or more, got -1"),
        (lambda: CompletionCollator(0, 0), "pad_to_multiple_of must be at least 1 or None, got 0"),
        (lambda: CompletionCollator(0)([]), "at least one row"),
        (lambda: CompletionCollator(0)([ROWS[0], PACKED[0]]), "1 of 2 rows are packed"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(DataError, match=message):
        make()
