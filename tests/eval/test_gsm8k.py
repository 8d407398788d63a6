"""The whole evaluation, on one process and on two, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from helpers.scripts import ROOT, launch_processes
from mce_llm.data import DataError, get_prompt, write_jsonl
from mce_llm.eval.answers import extract_answer
from mce_llm.eval.errors import EvaluationError, GenerationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k, main
from mce_llm.eval.intervals import wilson_interval

SCRIPT = ROOT / "eval" / "gsm8k.py"


def options(model_directory, questions, output, **changed):
    values = {"model": model_directory, "data": questions, "output": output, "prompt": "plain"}
    values |= {"max_new_tokens": 12, "batch_size": 4, **changed}
    return {
        key: value if isinstance(value, (int, type(None))) else str(value) for key, value in values.items()
    }


def command_line(values):
    return [f"--{key}={value}" for key, value in values.items()]


def read_items(output):
    return [json.loads(line) for line in Path(output, "items.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, model_directory, questions):
    output = tmp_path_factory.mktemp("one")
    summary = evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, output)))
    return output, summary


def test_items(one_process, question_rows, llama, tokenizer):
    output, _ = one_process
    items = read_items(output)
    assert [item["index"] for item in items] == list(range(len(question_rows)))
    assert [item["question"] for item in items] == [row["question"] for row in question_rows]
    assert [item["gold"] for item in items] == [row["answer"] for row in question_rows]
    for item in items:
        answer = extract_answer(item["response"])
        assert item["predicted"] == (None if answer.value is None else str(answer.value))
        assert item["found_by"] == answer.found_by
        assert item["correct"] is (answer.value is not None and answer.value == Fraction(item["gold"]))
        assert item["finished"] in ("eos", "stop", "length")
        assert 1 <= item["new_tokens"] <= 12
    # The prompt is the one of training with the evaluation suffix, and the model's own continuation follows.
    ids = get_prompt("plain").encode_prompt(tokenizer, question_rows[3]["question"], evaluation=True)
    new = llama.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False
    )
    expected = tokenizer.decode(new[0, len(ids) :], skip_special_tokens=True)
    assert expected.startswith(items[3]["response"])


def test_summary(one_process, model_directory, questions):
    output, summary = one_process
    written = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(asdict(summary)))
    items = read_items(output)
    assert summary.n == len(items) == 11
    assert summary.correct == sum(item["correct"] for item in items)
    assert summary.accuracy == summary.correct / 11
    assert summary.interval == tuple(wilson_interval(summary.correct, 11))
    assert sum(summary.found_by.values()) == 11
    assert summary.truncated == sum(item["finished"] == "length" for item in items) / 11
    assert summary.new_tokens == sum(item["new_tokens"] for item in items)
    assert (summary.model, summary.prompt, summary.dtype) == (str(model_directory), "plain", "float32")
    assert {"python", "torch", "transformers"} <= set(summary.versions)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["settings"]["data"] == str(questions)
    assert "output" not in config["settings"]
    assert config["hashes"] == summary.hashes
    assert set(config["hashes"]) == {"prompt", "data", "decoding", "model"}
    assert config["prompt"]["prompt"] == get_prompt("plain").prompt
    assert config["decoding"]["stop"] == ["\nQuestion:"]
    assert config["versions"] == summary.versions
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "items.jsonl", "summary.json"]


def test_right_answers_are_counted(tmp_path, model_directory, questions):
    """Turn the model's own answers into the references: all are right; then shift each: none is."""
    long = {"max_new_tokens": 80}  # random text of this length holds a digit more often than not
    evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path / "first", **long)))
    items = [item for item in read_items(tmp_path / "first") if item["predicted"] is not None]
    assert len(items) > 3
    for shift, expected in ((0, len(items)), (1, 0)):
        rows = [
            {"question": item["question"], "response": "", "answer": str(Fraction(item["predicted"]) + shift)}
            for item in items
        ]
        rows = [{**row, "response": f"The answer is: {row['answer']}"} for row in rows]
        data = write_jsonl(rows, tmp_path / f"own{shift}.jsonl")
        summary = evaluate_gsm8k(Gsm8kConfig(**options(model_directory, data, tmp_path / str(shift), **long)))
        assert summary.correct == expected


def test_a_model_in_memory(tmp_path, one_process, llama, tokenizer, questions):
    config = Gsm8kConfig(**options("my model", questions, tmp_path, batch_size=3))
    summary = evaluate_gsm8k(config, llama, tokenizer)
    assert summary.model == "my model"
    assert read_items(tmp_path) == read_items(one_process[0])
    with pytest.raises(EvaluationError, match="model and tokenizer together"):
        evaluate_gsm8k(config, llama)


def launch(arguments, processes):
    return launch_processes(SCRIPT, arguments, processes)


def test_two_processes_give_the_same_items(tmp_path, one_process, model_directory, questions):
    (tmp_path / "items.rank7.jsonl").write_text("stale\n")  # no answer, whatever left it
    result = launch(command_line(options(model_directory, questions, tmp_path)), 2)
    assert result.returncode == 0, result.stderr
    assert read_items(tmp_path) == read_items(one_process[0])
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["processes"] == 2
    alone = asdict(one_process[1])
    for key in ("n", "correct", "found_by", "correct_by", "truncated", "new_tokens"):
        assert summary[key] == alone[key]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "items.jsonl", "summary.json"]
    assert result.stdout.count("written to") == 1  # one table, by the main process


@pytest.mark.slow
def test_fewer_questions_than_processes(tmp_path, one_process, model_directory, questions):
    result = launch(command_line(options(model_directory, questions, tmp_path, limit=1)), 2)
    assert result.returncode == 0, result.stderr
    assert read_items(tmp_path) == read_items(one_process[0])[:1]


@pytest.mark.slow
def test_two_processes_report_a_problem_once(tmp_path, model_directory):
    result = launch(command_line(options(model_directory, tmp_path / "nothing.jsonl", tmp_path / "out")), 2)
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1
    assert "nothing.jsonl: no such file" in result.stderr


def test_command_line_prints_a_table(tmp_path, model_directory, questions, capsys):
    assert main(command_line(options(model_directory, questions, tmp_path, limit=3))) == 0
    printed = capsys.readouterr().out
    for word in ("accuracy", "95% interval", "no answer", "cut off", "tokens/s", f"written to {tmp_path}"):
        assert word in printed


def test_help_names_every_option_and_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for word in (
        "--model",
        "--output",
        "--data",
        "--split",
        "--limit",
        "--prompt",
        "--batch_size",
        "--dtype",
    ):
        assert word in printed
    assert "(default: 512)" in printed
    assert "(default: auto)" in printed


@pytest.mark.slow
def test_runs_as_a_plain_script_from_anywhere(tmp_path):
    """The script's own folder comes first on sys.path there; no module of it may hide another."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "--model" in result.stdout
    names = {path.stem for path in SCRIPT.parent.glob("*.py")}
    assert names & set(sys.stdlib_module_names) == {"math"}  # which both scripts take off the path first


def test_adapter(tmp_path, model_directory, questions, one_process):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_directory),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    summary = evaluate_gsm8k(Gsm8kConfig(**options(tmp_path / "adapter", questions, tmp_path / "out")))
    assert summary.n == 11
    items = read_items(tmp_path / "out")
    assert items != read_items(one_process[0])  # the adapter counts
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(
        EvaluationError, match=r"needs its base model /nowhere/base.*no such directory.*correct base_mod"
    ):
        evaluate_gsm8k(Gsm8kConfig(**options(tmp_path / "adapter", questions, tmp_path / "again")))
    assert not (tmp_path / "again").exists()


def test_results_of_another_configuration_are_kept(tmp_path, model_directory, questions):
    first = options(model_directory, questions, tmp_path, limit=2)
    evaluate_gsm8k(Gsm8kConfig(**first))
    before = (tmp_path / "items.jsonl").read_text()
    changed = {**first, "max_new_tokens": 5}
    with pytest.raises(
        EvaluationError, match=r"another configuration \(max_new_tokens: 12 there, 5 now\).*--overwrite"
    ):
        evaluate_gsm8k(Gsm8kConfig(**changed))
    assert (tmp_path / "items.jsonl").read_text() == before
    evaluate_gsm8k(Gsm8kConfig(**first))  # the same again is no conflict
    assert (tmp_path / "items.jsonl").read_text() == before
    assert evaluate_gsm8k(Gsm8kConfig(**changed, overwrite=True)).max_new_tokens == 5


def broken_copy(model_directory, path, change):
    shutil.copytree(model_directory, path)
    change(path)
    return path


def bad_models(model_directory, tmp_path):
    """Name → (directory, pattern of the message)."""

    def nan(path):
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        weights["lm_head.weight"][:] = float("nan")
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    def missing_weights(path):
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    def damaged(path):
        (path / "model.safetensors").write_bytes(b"not weights")

    def no_tokenizer(path):
        for file in path.glob("tokenizer*"):
            file.unlink()

    (tmp_path / "empty").mkdir()
    return {
        "empty": (tmp_path / "empty", "is not a model: it has no config.json (found: nothing)"),
        "absent": (tmp_path / "absent", "there is no such directory"),
        "a file": (SCRIPT, "is a file; give the directory of a model"),
        "nan": (broken_copy(model_directory, tmp_path / "nan", nan), "logits are NaN or infinite for"),
        "missing": (
            broken_copy(model_directory, tmp_path / "missing", missing_weights),
            "lacks 1 weight of a LlamaForCausalLM (first: model.norm.weight)",
        ),
        "damaged": (
            broken_copy(model_directory, tmp_path / "damaged", damaged),
            "cannot be loaded: SafetensorError",
        ),
        "no tokenizer": (
            broken_copy(model_directory, tmp_path / "tok", no_tokenizer),
            "cannot load a tokenizer from",
        ),
    }


@pytest.mark.parametrize("name", ["empty", "absent", "a file", "nan", "missing", "damaged", "no tokenizer"])
def test_bad_models(name, tmp_path, model_directory, questions, capsys):
    directory, message = bad_models(model_directory, tmp_path)[name]
    assert main(command_line(options(directory, questions, tmp_path / "out"))) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "q", "response": "r", "answer": "5:30"}],
            "data.jsonl, line 1: the reference answer '5:30' is not one number",
        ),
        ([{"question": "q", "response": "r"}], "line 1: 'response' is a text that marks no final answer"),
        (
            [
                {"question": "q", "response": "r", "answer": "5"},
                {"question": "q", "response": "r", "answer": "x"},
            ],
            "1 of 2",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "line 1: the answer in the conversation is a text that marks no final answer",
        ),
        ([], "empty"),
    ],
)
def test_bad_data(rows, message, tmp_path, model_directory, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = options(model_directory, data, tmp_path / "out")
    with pytest.raises(DataError):
        evaluate_gsm8k(Gsm8kConfig(**config))
    assert main(command_line(config)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        (
            {"max_new_tokens": -1, "dtype": "float8"},
            "max_new_tokens must be at least 1, got -1; dtype must be one of auto",
        ),
        ({"prompt": "metamaths"}, "got 'metamaths' (did you mean 'metamath'?)"),
        ({"num_samples": 4}, "num_samples is 4 and temperature 0"),
        ({"temperature": -0.5}, "temperature must be 0 (greedy) or more, got -0.5"),
        ({"shots": "x.jsonl"}, "shots has no effect without one of the prompts cot-8shot, chat, chat-cot"),
        ({"num_shots": 9, "prompt": "cot-8shot"}, "num_shots is 9, and there are 8 worked examples"),
        ({"unreadable_references": "drop"}, "unreadable_references must be one of refuse, skip, got 'drop'"),
        ({"columns": "question"}, "columns must be a mapping, got 'question'"),
        ({"prompt": "cot-8shot", "shots": "x.jsonl"}, "x.jsonl: no such file"),
        ({"prompt": "cot-8shot"}, "more than the 512 positions of the model"),
        ({"backend": "tgi"}, "backend must be one of hf, vllm, got 'tgi'"),
        ({"backend": "vllm"}, "the backend vllm is not installed; `pip install vllm`"),
        ({"batching": "paged"}, "batching must be one of auto, continuous, bucketed, static, got 'paged'"),
        ({"backend": "vllm", "batching": "static"}, "batching has no effect on the backend vllm"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size has no effect without backend vllm"),
        ({"model": ""}, "model must not be empty"),
        ({"max_new_tokens": 500}, "more than the 512 positions of the model"),
        ({"prompt": "chat"}, "chat template"),
        ({"output": SCRIPT}, "cannot be a directory"),
        ({"output": "/proc/here"}, ""),
    ],
)
def test_bad_options(changed, message, tmp_path, model_directory, questions, capsys):
    assert (
        main(command_line(options(model_directory, questions, **{"output": tmp_path / "out", **changed})))
        == 2
    )
    printed = capsys.readouterr().err
    assert printed.strip().splitlines()[-1].startswith("error: ")
    assert message in printed
    assert "Traceback" not in printed


def test_no_permission(unwritable, model_directory, questions):
    with pytest.raises(EvaluationError, match=r"no permission to write|cannot write to"):
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, unwritable)))


def test_no_permission_is_said(tmp_path, model_directory, questions, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EvaluationError, match=f"no permission to write to {tmp_path}; choose another"):
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path / "out")))


def test_generation_errors_are_evaluation_errors():
    assert issubclass(GenerationError, EvaluationError)


def test_a_file_is_one_split_and_has_slices(model_directory, questions, question_rows, tmp_path):
    given = options(model_directory, questions, tmp_path / "part", split="train[1:3]")
    assert evaluate_gsm8k(Gsm8kConfig(**given)).n == 2
    assert [item["question"] for item in read_items(tmp_path / "part")] == [
        row["question"] for row in question_rows[1:3]
    ]
    with pytest.raises(DataError, match="no split 'test'; there are train"):
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path / "none", split="test")))
