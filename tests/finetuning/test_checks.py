"""What the recipe refuses or says at its start, before a model is loaded or a step is made."""

import pytest
from transformers import AutoModelForCausalLM

from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.data import train_tokenizer, write_jsonl
from mce_llm.running.settings import ConfigurationError

main = load_script("recipes/finetune.py").main


def test_a_tokenizer_with_more_ids_than_embeddings(settings, tmp_path):
    other = train_tokenizer(["Franz jagt im Taxi"], vocab_size=280)
    other.add_tokens([f"<extra_{n}>" for n in range(100)])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigurationError, match=r"ids up to \d+, the model 300 embeddings"):
        main(words(settings, tokenizer_name_or_path=tmp_path / "other"))
    assert not list(settings["output_dir"].glob("*.safetensors"))


def test_another_tokenizer_is_named(settings, tmp_path, capsys):
    other = train_tokenizer(
        ["Franz jagt im komplett verwahrlosten Taxi quer durch Bayern"] * 3, vocab_size=280
    )
    other.save_pretrained(tmp_path / "other")
    main(words(settings, tokenizer_name_or_path=tmp_path / "other", max_steps=1))
    assert "is not the tokenizer of" in capsys.readouterr().out


def test_examples_beyond_the_positions(settings, tmp_path):
    write_jsonl([{"question": "How many? " * 300, "answer": "#### 8"}] * 4, tmp_path / "long.jsonl")
    long = {**settings, "dataset": tmp_path / "long.jsonl", "max_length": 4096}
    with pytest.raises(
        ConfigurationError, match=r"the model knows 512 positions; set max_length to 512 at most"
    ):
        main(words(long))
    main(words(long, max_length=512, max_steps=1, overlong="truncate", limit=1, dataset=settings["dataset"]))


def test_fewer_rows_than_a_step(settings, capsys):
    main(words(settings, limit=2, max_steps=1))
    assert "warning: 2 rows are fewer than the 4 of an optimizer step" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(settings["output_dir"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"load_best_model_at_end": "true"}, "load_best_model_at_end goes by evaluations"),
        ({"early_stopping_patience": 2}, "early_stopping_patience goes by evaluations"),
        ({"save_strategy": "best"}, "save_strategy best goes by evaluations"),
        ({"early_stopping_patience": -1}, "early_stopping_patience must be a number of evaluations"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold does nothing without"),
        ({"early_stopping_threshold": -0.1}, "early_stopping_threshold must be at least 0"),
    ],
)
def test_settings_that_would_do_nothing(changed, message, settings):
    with pytest.raises(ConfigurationError, match=message):
        main(words(settings, **changed))
