"""The prompt that a model was trained with: where it is on record, and what an evaluation makes of it."""

import json
import re
import shutil

import huggingface_hub
import pytest

from helpers.recipe_fixtures import folder, settings  # noqa: F401
from helpers.recipes import save_chat_model, words
from helpers.scripts import load_script
from mce_llm.data import write_jsonl
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k, main
from mce_llm.eval.trained_prompt import (
    SETTINGS_OF_CHECKPOINT,
    TRAINING_DEFAULT,
    trained_prompt,
    with_trained_prompt,
)
from mce_llm.finetuning.settings import DataArguments
from mce_llm.lm.training.run_settings import FILE
from mce_llm.running.folder import RECIPE

train = load_script("recipes/finetune.py").main


def record(place, text):
    """A folder with a recipe.yaml."""
    place.mkdir(parents=True, exist_ok=True)
    (place / RECIPE).write_text(text)
    return place


def resolved(model, **options):
    """Prompt, system message and arguments after a look at the record, and what is said."""
    config, notes = with_trained_prompt(Gsm8kConfig(model=str(model), output="o", **options))
    return (config.prompt, config.system_prompt, config.chat_template_kwargs), notes


def test_what_is_read_is_what_training_writes():
    assert SETTINGS_OF_CHECKPOINT == FILE
    assert DataArguments(dataset="d").prompt == TRAINING_DEFAULT


def test_a_trained_model_its_checkpoint_and_its_merged_adapters(folder, settings, tmp_path):  # noqa: F811
    model = save_chat_model(folder, tmp_path / "chat")
    chat = {
        "model_name_or_path": model,
        "prompt": "chat",
        "system_prompt": "Be brief.",
        "save_strategy": "steps",
        "save_steps": 1,
        "lora_r": 2,
        "merge_adapters": "true",
    }
    train(words(settings, **chat))
    output = settings["output_dir"]
    places = [output, output / "checkpoint-1", output / "merged"]
    for place in places:
        found = trained_prompt(str(place))
        assert found is not None
        assert (found.prompt, found.system_prompt, found.chat_template_kwargs) == ("chat", "Be brief.", None)
    (output / "checkpoint-1" / FILE).unlink()  # as earlier versions left it
    assert trained_prompt(str(output / "checkpoint-1")) == trained_prompt(str(output))
    shutil.move(output / "merged", tmp_path / "elsewhere")
    assert str(trained_prompt(str(tmp_path / "elsewhere"))) == str(trained_prompt(str(output)))

    data = write_jsonl([{"question": "1 + 1?", "answer": 2}], tmp_path / "data.jsonl")
    result = tmp_path / "result"
    options = {"data": str(data), "output": str(result), "max_new_tokens": 4}
    evaluate_gsm8k(Gsm8kConfig(model=str(tmp_path / "elsewhere"), **options))
    config = json.loads((result / "config.json").read_text())
    assert (config["settings"]["prompt"], config["settings"]["system_prompt"]) == ("chat", "Be brief.")
    assert (config["prompt"]["name"], config["prompt"]["system"]) == ("chat", "Be brief.")
    again = {**options, "prompt": "chat", "system_prompt": "Be brief."}
    assert evaluate_gsm8k(Gsm8kConfig(model=str(tmp_path / "elsewhere"), **again)).prompt == "chat"
    with pytest.raises(EvaluationError, match="prompt: 'chat' there, 'metamath' now"):
        evaluate_gsm8k(Gsm8kConfig(model=str(tmp_path / "elsewhere"), **{**options, "prompt": "metamath"}))


@pytest.mark.parametrize(
    ("text", "options", "expected", "said"),
    [
        ("prompt: plain\n", {}, ("plain", None, None), ["prompt plain: as the model was trained"]),
        ("dataset: d\n", {}, ("metamath", None, None), ["prompt metamath: as the model was trained"]),
        (
            "prompt: chat\nsystem_prompt: Be brief.\nchat_template_kwargs: {enable_thinking: false}\n",
            {},
            ("chat", "Be brief.", '{"enable_thinking": false}'),
            ["prompt chat, system_prompt 'Be brief.', chat_template_kwargs"],
        ),
        (
            "prompt: chat\nchat_template_kwargs: '{enable_thinking: false}'\n",
            {"prompt": "chat", "chat_template_kwargs": '{"enable_thinking": false}'},
            ("chat", None, '{"enable_thinking": false}'),
            [],
        ),
        (
            "prompt: chat\n",
            {"prompt": "metamath"},
            ("metamath", None, None),
            ["warning: the model was trained with prompt chat"],
        ),
        (
            "prompt: chat\nsystem_prompt: Be brief.\n",
            {"prompt": "chat"},
            ("chat", None, None),
            ["trained with system_prompt 'Be brief.' .* and is asked with no system_prompt"],
        ),
        (
            "prompt: chat\nsystem_prompt: Be brief.\n",
            {"system_prompt": "Be long."},
            ("chat", "Be long.", None),
            [
                "prompt chat: as",
                "trained with system_prompt 'Be brief.' .* asked with system_prompt 'Be long.'",
            ],
        ),
        ("prompt: plain\n", {"prompt": "plain"}, ("plain", None, None), []),
        ("prompt: chat\n", {"prompt": "chat-cot"}, ("chat-cot", None, None), ["asked with prompt chat-cot"]),
        ("lr: 0.1\n", {}, ("metamath", None, None), ["warning: there is no record"]),  # of another kind
        (
            ": [",
            {"prompt": "plain"},
            ("plain", None, None),
            ["whether prompt plain is the one of training is unknown"],
        ),
        ("prompt: mine\n", {"prompt": "plain"}, ("plain", None, None), ["trained with prompt mine"]),
    ],
)
def test_records(text, options, expected, said, tmp_path):
    found, notes = resolved(record(tmp_path / "run", text), **options)
    assert found == expected
    assert len(notes) == len(said)
    for note, pattern in zip(notes, said, strict=True):
        assert re.search(pattern, note)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "prompt: plainn\n",
            {},
            "trained with the prompt 'plainn' \\(did you mean 'plain'\\?\\).*choose a prompt with --prompt",
        ),
        (
            'prompt: "Q: {question}"\n',
            {},
            "trained with the prompt 'Q: {question}', which is none of metamath, plain, chat",
        ),
        ("- prompt\n", {}, "cannot be read .*; choose a prompt with --prompt"),
        (
            "prompt: plain\n",
            {"num_shots": 2},
            "num_shots has no effect .*; the prompt is plain, for which auto stands here",
        ),
        ("prompt: plain\n", {"system_prompt": "x"}, "system_prompt has no effect .*; the prompt is plain"),
    ],
)
def test_what_auto_cannot_be(text, options, message, tmp_path):
    with pytest.raises(EvaluationError, match=message):
        resolved(record(tmp_path / "run", text), **options)


def test_the_record_of_a_neighbour_does_not_count(tmp_path):
    record(tmp_path / "runs", "prompt: chat\n")
    (tmp_path / "runs" / "other").mkdir()
    assert trained_prompt(str(tmp_path / "runs" / "other")) is None
    assert trained_prompt("some/hub-id") is None
    (tmp_path / "runs" / "checkpoint-3").mkdir()
    assert trained_prompt(str(tmp_path / "runs" / "checkpoint-3")) == trained_prompt(str(tmp_path / "runs"))


def test_a_model_of_the_hub(tmp_path, monkeypatch):
    """A recipe pushes its record with the model; here it was downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--a--b", "0" * 40
    record(repository / "snapshots" / commit, "prompt: chat\nsystem_prompt: Be brief.\n")
    (repository / "refs").mkdir()
    for name in ("main", "v2"):
        (repository / "refs" / name).write_text(commit)
    for revision in (None, "v2"):
        found = trained_prompt("a/b", revision)
        assert found is not None
        assert (found.prompt, found.system_prompt) == ("chat", "Be brief.")
    assert trained_prompt("a/b", "v3") is None
    assert trained_prompt("a/c") is None


def test_without_a_record_it_is_said_what_was_taken(tmp_path, model_directory, questions, capsys):
    given = {"model": model_directory, "data": questions, "output": tmp_path, "limit": 2, "max_new_tokens": 4}
    assert main([f"--{name}={value}" for name, value in given.items()]) == 0
    printed = capsys.readouterr().out
    assert "warning: there is no record of the prompt" in printed
    assert "asked with metamath" in printed
    assert "zero-shot-cot and cot-8shot are for base models" in printed
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["prompt"] == "metamath"


def test_a_chat_template_is_noticed(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert "has a chat template, so chat or chat-cot may be meant" in resolved(tmp_path)[1][0]
