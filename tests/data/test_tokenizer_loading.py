import json

import pytest
from transformers import PreTrainedTokenizerFast

from mce_llm.data import DataError, load_tokenizer, train_tokenizer


@pytest.fixture
def saved(tmp_path):
    train_tokenizer(["2 + 2 = 4"]).save_pretrained(tmp_path)
    return tmp_path


def test_the_one_that_was_saved(saved):
    assert (
        load_tokenizer(saved)("2 + 2 = 4")["input_ids"]
        == train_tokenizer(["2 + 2 = 4"])("2 + 2 = 4")["input_ids"]
    )


def test_damaged_files(saved):
    (saved / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot load a tokenizer from .*save_pretrained"):
        load_tokenizer(saved)


def test_none_at_all(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match=r"cannot load a tokenizer from .*save_pretrained"):
        load_tokenizer(tmp_path)


def test_one_that_cannot_read(saved, monkeypatch):
    """As some versions of transformers make it up where there are no files: special tokens and nothing else."""
    file = json.loads((saved / "tokenizer.json").read_text())
    file["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1}, "unk_token": "<unk>"}
    (saved / "tokenizer.json").write_text(json.dumps(file))
    PreTrainedTokenizerFast(tokenizer_file=str(saved / "tokenizer.json"), unk_token="<unk>").save_pretrained(
        saved
    )
    with pytest.raises(DataError, match=r"what is there cannot read '2 \+ 2 = 4'"):
        load_tokenizer(saved)
