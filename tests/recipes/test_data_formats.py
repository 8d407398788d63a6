"""Data in the formats that people have, trained on by the recipe: what comes in is what is trained."""

import csv
import gzip
import json

import datasets
import pytest
from transformers import AutoTokenizer

from helpers.recipes import logged, save_chat_model, words
from helpers.scripts import load_script
from mce_llm.data import write_jsonl
from mce_llm.finetuning.rows import tokenized
from mce_llm.finetuning.settings import DataArguments

recipe = load_script("recipes/finetune.py")

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
# ChatML with places for tools, calls of them, and reasoning.
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(folder, tmp_path_factory):
    target = save_chat_model(folder, tmp_path_factory.mktemp("chat"))
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def rows(folder):
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()][:12]


def pairs(rows):
    return [{"question": row["question"], "response": row["answer"]} for row in rows]


def save_table(rows, path, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *rows[0]], delimiter=delimiter)  # pandas' index has no name
        writer.writeheader()
        writer.writerows({"": number, **row} for number, row in enumerate(rows))


def write_lines(make):
    return lambda rows, path: write_jsonl(map(make, rows), path)


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


PLAIN = {
    "pairs.jsonl": lambda rows, path: write_jsonl(pairs(rows), path),
    "pairs.json": lambda rows, path: path.write_text(json.dumps(pairs(rows))),
    "wrapped.json": lambda rows, path: path.write_text(json.dumps({"version": 1, "data": pairs(rows)})),
    "pairs.csv": lambda rows, path: save_table(pairs(rows), path),
    "pairs.tsv": lambda rows, path: save_table(pairs(rows), path, "\t"),
    "pairs.parquet": lambda rows, path: datasets.Dataset.from_list(pairs(rows)).to_parquet(path),
    "pairs.jsonl.gz": lambda rows, path: path.write_bytes(
        gzip.compress("\n".join(map(json.dumps, pairs(rows))).encode())
    ),
    "alpaca.jsonl": write_lines(
        lambda row: {"instruction": row["question"], "input": "", "output": row["answer"]}
    ),
    "prompts.jsonl": write_lines(lambda row: {"prompt": row["question"], "completion": row["answer"]}),
    "answers.jsonl": write_lines(
        lambda row: {"question": row["question"], "response": row["answer"], "answer": 42}
    ),
    "saved": lambda rows, path: datasets.Dataset.from_list(pairs(rows)).save_to_disk(path),
}


@pytest.fixture(scope="module")
def expected(folder, rows, tmp_path_factory):
    path = write_jsonl(pairs(rows), tmp_path_factory.mktemp("expected") / "a.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return tokenized(tokenizer, DataArguments(dataset=str(path), prompt="plain"), "train")[1].digest


@pytest.mark.parametrize("name", list(PLAIN))
def test_every_form_of_the_same_pairs_is_the_same_training(name, folder, rows, settings, tmp_path, expected):
    PLAIN[name](rows, tmp_path / name)
    recipe.main(words(settings, dataset=tmp_path / name, max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = tokenized(tokenizer, DataArguments(dataset=str(tmp_path / name), prompt="plain"), "train")[1]
    assert (found.examples, found.digest) == (12, expected)
    assert len(logged(settings["output_dir"], "loss")) == 1


def test_a_pattern_and_a_folder(folder, rows, settings, tmp_path, expected):
    for number in range(3):
        write_jsonl(pairs(rows[4 * number : 4 * number + 4]), tmp_path / "data" / f"{number}.jsonl")
    for source in (tmp_path / "data", tmp_path / "data" / "*.jsonl"):
        recipe.main(words(settings, dataset=source, max_steps=1, overwrite="true"))
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        assert (
            tokenized(tokenizer, DataArguments(dataset=str(source), prompt="plain"), "train")[1].digest
            == expected
        )


def test_slices_of_a_file_are_apart(folder, settings, capsys):
    data = folder / "data.jsonl"
    slices = {"dataset_split": "train[:75%]", "eval_dataset": data, "eval_split": "train[75%:]"}
    recipe.main(words(settings, dataset=data, max_steps=1, **slices))
    said = capsys.readouterr().out
    assert "45 of 45" in said
    assert "15 of 15" in said


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CHATS = {
    "openai": (
        lambda row: {
            "messages": talk(("system", "S."), ("user", row["question"]), ("assistant", row["answer"]))
        },
        {},
        ["{answer}<|im_end|>"],
        "system\nS.",
    ),
    "sharegpt": (
        lambda row: {
            "system": "S.",
            "conversations": [
                {"from": "human", "value": row["question"]},
                {"from": "gpt", "value": row["answer"]},
            ],
        },
        {},
        ["{answer}<|im_end|>"],
        "system\nS.",
    ),
    "tools": (
        lambda row: {
            "tools": [TOOL],
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "5"},
                {"role": "assistant", "content": row["answer"]},
            ],
        },
        {},
        ['{{"name": "add", "arguments": {{"a": 2, "b": 3}}}}<|im_end|>', "{answer}<|im_end|>"],
        '"description": "Adds."',
    ),
    "weights": (
        lambda row: {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": "Wrong.", "weight": 0},
                {"role": "user", "content": "No."},
                {"role": "assistant", "content": row["answer"], "weight": 1},
            ]
        },
        {},
        ["{answer}<|im_end|>"],
        "assistant\nWrong.",
    ),
    "reasoning": (
        lambda row: {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"], "thinking": "Let me add."},
            ]
        },
        {},
        ["<think>Let me add.</think>{answer}<|im_end|>"],
        None,
    ),
    "parts": (
        lambda row: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": row["question"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]},
            ]
        },
        {},
        ["{answer}<|im_end|>"],
        None,
    ),
    "prompts": (
        lambda row: {
            "prompt": talk(("user", row["question"])),
            "completion": talk(("assistant", row["answer"])),
        },
        {},
        ["{answer}<|im_end|>"],
        None,
    ),
    "alpaca with a system prompt and a history": (
        lambda row: {
            "instruction": row["question"],
            "input": "Think.",
            "output": row["answer"],
            "system": "S.",
            "history": [["1?", "2"]],
        },
        {},
        ["2<|im_end|>", "{answer}<|im_end|>"],
        "Think.<|im_end|>",
    ),
    "begins with the assistant": (
        lambda row: {
            "conversations": [
                {"from": "gpt", "value": "Hello!"},
                {"from": "human", "value": row["question"]},
                {"from": "gpt", "value": row["answer"]},
            ]
        },
        {},
        ["Hello!<|im_end|>", "{answer}<|im_end|>"],
        None,
    ),
    "the last turn alone": (
        lambda row: {
            "messages": talk(("user", "1?"), ("assistant", "2"), ("user", "3?"), ("assistant", row["answer"]))
        },
        {"train_turns": "last"},
        ["{answer}<|im_end|>"],
        "assistant\n2<|im_end|>",
    ),
    "pairs under a system prompt of the settings": (
        lambda row: {"question": row["question"], "response": row["answer"]},
        {"system_prompt": "S."},
        ["{answer}<|im_end|>"],
        "system\nS.",
    ),
}


@pytest.mark.parametrize("name", list(CHATS))
def test_every_form_of_a_conversation_trains_what_it_says(name, chat_model, rows, settings, tmp_path, capsys):
    make, changes, trained, masked = CHATS[name]
    path = write_jsonl(map(make, rows), tmp_path / "a.jsonl")
    recipe.main(
        words(settings, model_name_or_path=chat_model, dataset=path, prompt="chat", max_steps=1, **changes)
    )
    assert "leaves out" not in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    data = DataArguments(dataset=str(path), prompt="chat", **changes)
    found, _ = tokenized(tokenizer, data, "train")
    for example, row in zip(found, rows, strict=True):
        texts, run = [], []
        for token, label in zip([*example["input_ids"], 0], [*example["labels"], -100], strict=True):
            if label != -100:
                run.append(token)
            elif run:
                texts.append(tokenizer.decode(run))
                run = []
        assert texts == [text.format(answer=row["answer"]) for text in trained]
        if masked:
            assert masked in tokenizer.decode(example["input_ids"])


def test_what_a_template_leaves_out_is_said_at_the_start(chat_model, rows, settings, tmp_path, capsys):
    # ChatML as most base models have it knows neither tools nor reasoning.
    target = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(target)
    records = [CHATS["tools"][0](row) for row in rows]
    path = write_jsonl(records, tmp_path / "a.jsonl")
    given = words(
        settings,
        model_name_or_path=chat_model,
        tokenizer_name_or_path=target,
        dataset=path,
        prompt="chat",
        max_steps=1,
    )
    assert recipe.run(given) == 2
    error = capsys.readouterr().err
    assert f"{path}, line 1: the chat template writes nothing of message 2 (a call of add)" in error
    for record in records:
        record["messages"][1]["content"] = "I sum them up."
    write_jsonl(records, path)
    assert recipe.run(given) == 0
    said = capsys.readouterr().out
    assert "warning: the chat template leaves out description of a tool: 24 in 12 examples" in said
    assert "warning: the chat template leaves out call of a tool: 12 in 12 examples" in said
    assert f"({path}, line 1: 'add')" in said


def test_a_column_that_means_something_and_has_no_place_is_said(rows, settings, tmp_path, capsys):
    path = write_jsonl(
        [pair | {"tools": [TOOL], "images": [], "id": 1} for pair in pairs(rows)], tmp_path / "a.jsonl"
    )
    recipe.main(words(settings, dataset=path, max_steps=1))
    said = capsys.readouterr().out
    assert "warning: the format plain has no place for 'tools': what is there is not trained on" in said
    assert "read as plain, without the columns 'tools', 'images', 'id'" in said


def test_a_record_that_the_template_refuses_is_named_by_file_and_line(
    chat_model, rows, settings, tmp_path, capsys
):
    records = [CHATS["openai"][0](row) for row in rows]
    records[4]["messages"][1]["role"] = "tool"
    target = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools here') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(target)
    path = write_jsonl(records, tmp_path / "a.jsonl")
    given = words(
        settings, model_name_or_path=chat_model, tokenizer_name_or_path=target, dataset=path, prompt="chat"
    )
    assert recipe.run(given) == 2
    assert f"{path}, line 5: the tokenizer's chat template refuses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template_kwargs": "{enable_thinkng: false}", "prompt": "chat"}, "reads no 'enable_thinkng'"),
        ({"chat_template_kwargs": "{tokenize: true}", "prompt": "chat"}, "cannot set 'tokenize'"),
        ({"system_prompt": "S."}, "a system message needs a chat template, and the prompt 'plain'"),
        ({"chat_template_kwargs": "{x: 1}"}, "chat_template_kwargs are for a chat template"),
        ({"train_turns": "first"}, "train_turns must be one of all, last, each, got 'first'"),
        ({"dataset_format": "chatt"}, "dataset_format must be auto or one of"),
        ({"eval_split": "test"}, "eval_split without eval_dataset"),
        ({"dataset_split": "test"}, "no split 'test'; there are train"),
        ({"dataset_revision": "main"}, "a revision ('main') is for data sets of the hub"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message, chat_model, settings, capsys):
    assert recipe.run(words(settings, model_name_or_path=chat_model, **changes)) == 2
    assert message in capsys.readouterr().err
