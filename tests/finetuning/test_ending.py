"""Generation stops where training ends an answer, whatever the base model's settings said."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from helpers.recipes import save_chat_model, words
from helpers.scripts import load_script
from mce_llm.data import get_prompt
from mce_llm.finetuning.ending import add_stop_ids, stored_stop_ids
from mce_llm.running.stop_ids import stop_ids

main = load_script("recipes/finetune.py").main


@pytest.fixture(scope="session")
def base(folder, tmp_path_factory):
    return save_chat_model(folder, tmp_path_factory.mktemp("chat") / "base")


class Say(LogitsProcessor):
    """Says one token, then another for ever."""

    def __init__(self, first, then, start):
        self.first, self.then, self.start = first, then, start

    def __call__(self, ids, scores):
        scores = torch.full_like(scores, -1e9)
        scores[:, self.first if ids.shape[1] == self.start else self.then] = 0
        return scores


def new_tokens(place, first, **options):
    """How many tokens a saved model generates, by its own settings, if it says `first` and then a letter for ever."""
    model = AutoModelForCausalLM.from_pretrained(place)
    ids = torch.tensor([[5, 6]])
    out = model.generate(
        input_ids=ids, max_new_tokens=9, do_sample=False, logits_processor=[Say(first, 7, 2)], **options
    )
    return out.shape[1] - 2


@pytest.mark.parametrize("lora", [0, 2])
def test_a_chat_model_stops_at_the_end_of_its_turn(lora, base, settings, capsys):
    """All the weights trained and saved, or adapters merged: both stop; the base model does not."""
    end = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("<|im_end|>")
    assert new_tokens(base, end) == 9
    extra = {"lora_r": lora, "merge_adapters": "true"} if lora else {}
    main(
        words(settings, model_name_or_path=base, prompt="chat", save_strategy="steps", save_steps=1, **extra)
    )
    assert f"answers end in '<|im_end|>' ({end}): added to generation_config.json" in capsys.readouterr().out
    output = settings["output_dir"]
    for saved in (output, output / "checkpoint-1", *([output / "merged"] if lora else [])):
        assert set(stop_ids(GenerationConfig.from_pretrained(saved))) == {end, 0}, saved
    assert new_tokens(output / "merged" if lora else output, end) == 1
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"][0] in (end, 0)


def test_nothing_is_added_where_generation_stops_already(base, settings, capsys):
    main(words(settings, max_steps=1))
    assert "added to generation_config.json" not in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert stored_stop_ids(model) == [0]
    model.generation_config.eos_token_id = [11, 0]
    added = add_stop_ids(model, tokenizer, get_prompt("chat"))
    assert added == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert stop_ids(model.generation_config) == [*added, 0, 11]  # what was there stays
    assert add_stop_ids(model, tokenizer, get_prompt("chat")) == []


def test_stop_ids_of_any_form():
    assert stop_ids(None) == stop_ids(GenerationConfig()) == []
    assert stop_ids(GenerationConfig(eos_token_id=3)) == [3]
    assert stop_ids(GenerationConfig(eos_token_id=[3, 4])) == [3, 4]
