"""Tokenizers with more ids than the model has embeddings: rows that are added, trained, saved, merged and evaluated."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers.recipes import CHATML, words
from helpers.scripts import load_script
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.finetuning.merging import merge_adapters
from mce_llm.finetuning.models import load_model, tokenizer_of, without_weights
from mce_llm.finetuning.settings import ModelArguments
from mce_llm.lm import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.running.vocabulary import embedding_rows

run = load_script("recipes/finetune.py").run
ENDS = "embed_tokens,lm_head"


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """longer/ (the tokenizer with two more tokens and ChatML), tied/ (a model of one table)."""
    place = tmp_path_factory.mktemp("vocabulary")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(place / "longer")
    (place / "chatml.jinja").write_text(CHATML)
    config = LlamaConfig(
        **json.loads((folder / "model" / "config.json").read_text()) | {"tie_word_embeddings": True}
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place / "tied")
    return place


@pytest.fixture
def longer(settings, place):
    chat = {"prompt": "chat", "chat_template": place / "chatml.jinja"}
    return {**settings, **chat, "tokenizer_name_or_path": place / "longer", "resize_embeddings": "true"}


def rows_of(path, name="model.embed_tokens.weight"):
    return load_file(path)[name]


def test_all_weights(longer, folder, capsys):
    """The new rows start at the mean of the others, are trained, and are saved in a stock checkpoint."""
    assert run(words(longer)) == 0
    assert "resize_embeddings: 2 rows added to embeddings and head, 302 in all" in capsys.readouterr().out
    out = longer["output_dir"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == embedding_rows(model) == 302
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML
    mean = rows_of(folder / "model" / "model.safetensors").mean(0)
    assert not torch.allclose(model.get_input_embeddings().weight[301], mean, atol=1e-3)  # learnt since
    assert model.generation_config.eos_token_id == [301, 0]


def test_without_it_the_message_names_it(longer, capsys):
    assert run(words(longer, resize_embeddings="false")) == 2
    assert "ids up to 301, the model 300 embeddings; set resize_embeddings: true" in capsys.readouterr().err


def test_enough_rows_are_left_alone(settings, folder, capsys):
    assert run(words(settings, resize_embeddings="true")) == 0
    assert "resize_embeddings: nothing to do, the model has 300 embeddings" in capsys.readouterr().out
    assert rows_of(settings["output_dir"] / "model.safetensors").shape[0] == 300


@pytest.mark.parametrize(("saved", "refused"), [(None, True), ("lm_head", True), (ENDS, False)])
def test_adapters_need_both_ends(longer, saved, refused, capsys, tmp_path):
    code = run(
        words(longer, lora_r=2, lora_modules_to_save=saved, merge_adapters=None if refused else "true")
    )
    assert code == (2 if refused else 0)
    if refused:
        message = "resize_embeddings gives the model 2 rows, which lora_r would leave frozen"
        error = capsys.readouterr().err
        assert message in error
        assert "lora_modules_to_save: [embed_tokens, lm_head]" in error
        return
    out = longer["output_dir"]
    check_adapter(out, tmp_path)
    adapter = load_file(out / "adapter_model.safetensors")
    assert sum(tensor.shape[0] == 302 for tensor in adapter.values()) == 2  # no row is there twice


def check_adapter(out, tmp_path):
    """Loaded as an adapter, merged by the run, and merged later, it is one model."""
    assert merge_adapters(out, tmp_path / "later").deviation < 1e-3
    adapted, tokenizer = load_model_and_tokenizer(str(out))
    ids = torch.tensor([[5, 300, 7, 301]])
    with torch.no_grad():
        expected = adapted(ids).logits
        for merged in (out / "merged", tmp_path / "later"):
            model = AutoModelForCausalLM.from_pretrained(merged)
            assert model.config.vocab_size == len(tokenizer) == 302
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_adapters_on_tied_embeddings_need_one(longer, place, name, tmp_path, capsys):
    tied = {"model_name_or_path": place / "tied", "lora_r": 2}
    assert run(words(longer, **tied)) == 2
    assert "lora_modules_to_save: [embed_tokens]" in capsys.readouterr().err
    assert run(words(longer, **tied, lora_modules_to_save=name, merge_adapters="true")) == 0
    check_adapter(longer["output_dir"], tmp_path)


def test_the_same_rows_for_a_seed(longer, folder, place):
    settings = ModelArguments(
        model_name_or_path=str(folder / "model"),
        tokenizer_name_or_path=str(place / "longer"),
        resize_embeddings=True,
    )
    tokenizer = tokenizer_of(settings)
    bare = without_weights(settings, tokenizer)
    assert embedding_rows(bare) == bare.config.vocab_size == 302
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        torch.rand(seed)  # what else was drawn before does not count
        tables.append(load_model(settings, tokenizer).get_input_embeddings().weight.detach())
    assert torch.equal(tables[0], tables[1])
    torch.testing.assert_close(tables[0][300:], tables[0][:300].mean(0).expand(2, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("exactly", [True, False])
def test_the_geometry_takes_new_rows(exactly):
    """At the mean itself a row is background; a little beside it, as transformers draws it, it has a direction of its own."""
    torch.manual_seed(0)
    old = torch.randn(200, 16) + 3.0
    noise = 0 if exactly else 3e-5 * torch.randn(2, 16)
    geometry = TokenGeometry.from_table(
        torch.cat([old, old.mean(0).expand(2, -1) + noise]), MatrixLossConfig()
    )
    assert geometry.has_direction_V[:200].all()
    assert geometry.has_direction_V[200:].tolist() == [not exactly] * 2
    assert torch.isfinite(geometry.all_rows()).all()
    if not exactly:
        assert geometry.rows(torch.tensor([200, 201])).norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-4)
