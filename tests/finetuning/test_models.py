"""Which models and tokenizers the recipe takes, and how it refuses the others."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.data import DataError
from mce_llm.finetuning.models import load_model, tokenizer_of
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.running.settings import ConfigurationError

finetune = load_script("recipes/finetune.py")
main = finetune.main

SHAPE = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="session")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture
def new(folder, tokenizer):
    """load_model for a model from scratch with a changed shape."""

    def call(shape=SHAPE, **changed):
        source = {"tokenizer_name_or_path": str(folder / "tokenizer")}
        return load_model(ModelArguments(model_config=json.dumps(shape), **source, **changed), tokenizer)

    return call


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "copy")
    return tmp_path / "copy"


def change_config(path, **changed):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changed}))


def lose_a_weight(path):
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lose_a_weight, r"lacks 1 weight of a LlamaForCausalLM \(first: model.layers.0.mlp.up_proj.weight"),
        (lambda path: change_config(path, num_hidden_layers=3), "lacks 9 weights .*first: model.layers.2"),
        (lambda path: change_config(path, intermediate_size=48), "RuntimeError: .*ignore_mismatched_sizes"),
        (lambda path: change_config(path, model_type="lama"), "does not recognize this architecture"),
        (lambda path: change_config(path, hidden_size="wide"), "'hidden_size' expected int, got str"),
        (lambda path: (path / "config.json").write_text("{"), "not a valid JSON"),
        (lambda path: (path / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda path: (path / "model.safetensors").write_bytes(b"ab"), "SafetensorError: .*header too small"),
        (lambda path: (path / "config.json").unlink(), r"no config.json \(found: generation_config.json"),
    ],
)
def test_damaged_checkpoints(copied, tokenizer, damage, pattern):
    damage(copied)
    with pytest.raises(ModelSourceError, match=pattern):
        load_model(ModelArguments(model_name_or_path=str(copied)), tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(copied, tokenizer, new, dtype):
    loaded = load_model(ModelArguments(model_name_or_path=str(copied), dtype=dtype), tokenizer)
    assert {loaded.dtype, new(dtype=dtype).dtype} == {getattr(torch, dtype)}


def test_vocabulary_and_special_tokens_come_from_the_tokenizer(new, tokenizer):
    config = new().config
    assert config.vocab_size == len(tokenizer)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert new({**SHAPE, "vocab_size": 320}).config.vocab_size == 320


def test_old_names_of_config_settings_count(new):
    model = new({**SHAPE, "rope_theta": 500.0})
    assert model.config.rope_parameters["rope_theta"] == 500.0


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"hiden_size": 32}, r"llama has no setting hiden_size \(did you mean 'hidden_size'\?\)"),
        ({"model_type": "lama"}, "Unrecognized model identifier: lama"),
        ({"model_type": "t5"}, "Unrecognized configuration class .*T5Config"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 17}, r"hidden size \(17\) is not a multiple"),
        ({"hidden_act": "gleu"}, "gleu"),
    ],
)
def test_models_that_cannot_be_made(new, changed, pattern):
    shape = {"model_type": "t5"} if changed.get("model_type") == "t5" else {**SHAPE, **changed}
    with pytest.raises(ModelSourceError, match=f"cannot make a model from model_config: .*{pattern}"):
        new(shape)


def test_unknown_attention(new):
    with pytest.raises(ModelSourceError, match=r'attn_implementation="sdap". is not supported'):
        new(attn_implementation="sdap")


def test_a_tokenizer_of_its_own(folder, tmp_path, copied):
    model = {"model_name_or_path": str(copied)}
    for file in copied.glob("tokenizer*"):
        file.unlink()
    own = tokenizer_of(ModelArguments(**model, tokenizer_name_or_path=str(folder / "tokenizer")))
    assert len(own) == 300
    with pytest.raises(DataError, match=r"cannot load a tokenizer from .*copy'"):
        tokenizer_of(ModelArguments(**model))
    with pytest.raises(ModelSourceError, match="nowhere: there is no such directory"):
        tokenizer_of(ModelArguments(**model, tokenizer_name_or_path=str(tmp_path / "nowhere")))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"cannot load a tokenizer from .*odd'"):
        tokenizer_of(ModelArguments(**model, tokenizer_name_or_path=str(tmp_path / "odd")))


def test_padding_without_a_padding_token(folder, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    source = ModelArguments(model_name_or_path="m", tokenizer_name_or_path=str(tmp_path))
    assert tokenizer_of(source).pad_token == tokenizer.eos_token
    assert "padding with '<|endoftext|>'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor replaces the model's loss"),
        ({"report_to": "nobody"}, "unknown tracker 'nobody'"),
    ],
)
def test_settings_that_the_trainer_refuses(settings, changed, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        main(words({**settings, **changed}))
