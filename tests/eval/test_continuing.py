"""Runs that are killed at any moment go on without losing or repeating an answer, and never with another model's."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.scripts import ROOT
from mce_llm.eval import tasks
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k, main
from mce_llm.running.folder import LOCK

SCRIPT = ROOT / "eval" / "gsm8k.py"


def options(model, questions, output, **changed):
    values = {"model": str(model), "data": str(questions), "output": str(output), "prompt": "plain"}
    return {**values, "max_new_tokens": 12, "batch_size": 3, **changed}


def command_line(values):
    return [f"--{key}={value}" for key, value in values.items()]


def lines(path):
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_directory, questions):
    output = tmp_path_factory.mktemp("undisturbed")
    evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, output)))
    return lines(output / "items.jsonl")


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt_after(monkeypatch, count, error):
    """Let `count` answers be judged, and then `error` come."""
    judge = tasks.Task.judge
    seen = []

    def judging(self, row, answer, **options):
        if len(seen) == count:
            raise error
        seen.append((answer.index, answer.sample))
        return judge(self, row, answer, **options)

    monkeypatch.setattr(tasks.Task, "judge", judging)
    return seen


def interrupted_run(config, count, monkeypatch):
    """Let a run end after `count` answers; return which they were."""
    with monkeypatch.context() as patch:
        seen = interrupt_after(patch, count, Interrupted())
        with pytest.raises(Interrupted):
            evaluate_gsm8k(config)
    return seen


@pytest.mark.parametrize("count", [0, 1, 5, 10])
def test_goes_on_where_it_was_interrupted(
    count, tmp_path, undisturbed, model_directory, questions, monkeypatch
):
    config = Gsm8kConfig(**options(model_directory, questions, tmp_path))
    first = interrupted_run(config, count, monkeypatch)
    assert not (tmp_path / "summary.json").exists()
    with monkeypatch.context() as patch:
        second = interrupt_after(patch, 99, Interrupted())
        summary = evaluate_gsm8k(config)
    assert len(first) == count
    assert sorted(first + second) == [(index, 0) for index in range(11)]  # nothing twice, nothing lost
    assert lines(tmp_path / "items.jsonl") == undisturbed
    assert summary.continued == count
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "items.jsonl", "summary.json"]


def test_several_samples_go_on_too(tmp_path, model_directory, questions, monkeypatch):
    sampling = {"temperature": 1.0, "num_samples": 3, "seed": 4}
    whole = Gsm8kConfig(**options(model_directory, questions, tmp_path / "whole", **sampling))
    evaluate_gsm8k(whole)
    config = Gsm8kConfig(**options(model_directory, questions, tmp_path / "parts", **sampling))
    for count in (4, 7, 1):
        interrupted_run(config, count, monkeypatch)
    assert evaluate_gsm8k(config).continued == 12
    assert lines(tmp_path / "parts" / "items.jsonl") == lines(tmp_path / "whole" / "items.jsonl")


def test_half_a_line_is_answered_again(tmp_path, undisturbed, model_directory, questions, monkeypatch):
    config = Gsm8kConfig(**options(model_directory, questions, tmp_path))
    interrupted_run(config, 6, monkeypatch)
    file = tmp_path / "items.rank0.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-20])  # as a killed write leaves it
    # Killed between joining the parts and removing them: some answers are in two files.
    (tmp_path / "items.done.jsonl").write_bytes(content.splitlines(keepends=True)[0])
    assert evaluate_gsm8k(config).continued == 5
    assert lines(tmp_path / "items.jsonl") == undisturbed


@pytest.mark.parametrize(
    "change",
    [
        {"index": "1"},
        {"index": [1]},
        {"index": 99},
        {"sample": 7},
        {"correct": None},
        {"new_tokens": float("nan")},
        {"more": float("inf")},
    ],
    ids=str,
)
def test_a_damaged_line_is_answered_again(
    change, tmp_path, undisturbed, model_directory, questions, monkeypatch
):
    config = Gsm8kConfig(**options(model_directory, questions, tmp_path))
    interrupted_run(config, 4, monkeypatch)
    file = tmp_path / "items.rank0.jsonl"
    kept = lines(file)
    kept[1].update(change)
    file.write_text("".join(json.dumps(item) + "\n" for item in kept))
    evaluate_gsm8k(config)
    assert lines(tmp_path / "items.jsonl") == undisturbed


def test_a_finished_run_is_not_run_again(tmp_path, model_directory, questions, monkeypatch):
    config = Gsm8kConfig(**options(model_directory, questions, tmp_path))
    summary = evaluate_gsm8k(config)
    interrupt_after(monkeypatch, 0, AssertionError("nothing is to be answered"))
    assert evaluate_gsm8k(config) == summary
    assert (
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path, batch_size=5))) == summary
    )


def test_another_model_under_the_same_name_is_refused(tmp_path, model_directory, questions, monkeypatch):
    """The folder is the same, the weights are not: trained on, say."""
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    copy = tmp_path / "model"
    model.save_pretrained(copy)
    for file in model_directory.glob("tokenizer*"):
        (copy / file.name).write_bytes(file.read_bytes())
    config = Gsm8kConfig(**options(copy, questions, tmp_path / "out"))
    interrupted_run(config, 4, monkeypatch)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3  # one number
    model.save_pretrained(copy)
    kept = (tmp_path / "out" / "items.rank0.jsonl").read_text()
    with pytest.raises(
        EvaluationError, match=r"another configuration \(hashes model: '\w+' there, '\w+' now\)"
    ):
        evaluate_gsm8k(config)
    assert (tmp_path / "out" / "items.rank0.jsonl").read_text() == kept
    fresh = evaluate_gsm8k(Gsm8kConfig(**options(copy, questions, tmp_path / "out", overwrite=True)))
    assert fresh.continued == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens: 12 there, 5 now"),
        ({"prompt": "zero-shot-cot"}, "prompt: 'plain' there, 'zero-shot-cot' now"),
        ({"temperature": 1.0}, "temperature: 0.0 there, 1.0 now"),
        ({"limit": 3}, "limit: None there, 3 now"),
        ({"dtype": "bfloat16"}, "dtype: 'auto' there, 'bfloat16' now"),
    ],
)
def test_other_conditions_are_refused(changed, message, tmp_path, model_directory, questions):
    first = tmp_path / "out"
    evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, first, max_new_tokens=12)))
    with pytest.raises(EvaluationError, match=message.replace("(", r"\(")):
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, first, **changed)))


def test_changed_questions_are_refused(tmp_path, model_directory, questions):
    data = tmp_path / "data.jsonl"
    data.write_text(questions.read_text())
    config = Gsm8kConfig(**options(model_directory, data, tmp_path / "out"))
    evaluate_gsm8k(config)
    data.write_text(questions.read_text().replace("Tom", "Tim", 1))
    with pytest.raises(EvaluationError, match=r"hashes data: '\w+' there"):
        evaluate_gsm8k(config)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_record_that_cannot_be_read_is_refused(text, tmp_path, model_directory, questions):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        EvaluationError, match=r"config.json cannot be read .*; use --overwrite to replace it"
    ):
        evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path)))


def test_two_runs_at_once_are_refused(tmp_path, model_directory, questions):
    tmp_path.joinpath("out").mkdir()
    with (tmp_path / "out" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EvaluationError, match="another run is writing to"):
            evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path / "out")))


def test_ctrl_c_says_how_to_go_on(tmp_path, model_directory, questions, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4, KeyboardInterrupt())
        assert main(command_line(options(model_directory, questions, tmp_path))) == 130
    assert (
        f"interrupted; the same command goes on from the 4 answers that are kept in {tmp_path}"
        in capsys.readouterr().err
    )
    assert main(command_line(options(model_directory, questions, tmp_path))) == 0
    assert "4 answers" in capsys.readouterr().out


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, undisturbed, model_directory, questions):
    """The process may write files of 2,000 bytes, config.json and some answers: what a full disk does, as far as Python sees it."""
    command = [
        sys.executable,
        str(SCRIPT),
        *command_line(options(model_directory, questions, tmp_path / "out")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=limited, timeout=200, check=False
    )
    if result.returncode == 0:
        pytest.fail("the limit was too large to be met")
    assert result.returncode == 2, result.stderr
    assert "error: cannot write to" in result.stderr
    assert "the same command goes on with it" in result.stderr
    assert "Traceback" not in result.stderr
    summary = evaluate_gsm8k(Gsm8kConfig(**options(model_directory, questions, tmp_path / "out")))
    assert 0 < summary.continued < 11
    assert lines(tmp_path / "out" / "items.jsonl") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again(processes, tmp_path, undisturbed, model_directory, questions):
    """SIGKILL to the whole launch after a few answers; then with another number of processes."""
    values = options(model_directory, questions, tmp_path)

    def start(count):
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *(["--multi_gpu"] if count > 1 else ["--cpu"]),
        ]
        command += [
            f"--num_processes={count}",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ]
        command += ["--main_process_port=0"] if count > 1 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [*command, str(SCRIPT), *command_line(values)],
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    launched = start(processes)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and launched.poll() is None:
        if sum(file.read_bytes().count(b"\n") for file in tmp_path.glob("items.rank*.jsonl")) >= 2:
            break
        time.sleep(0.002)
    os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()
    assert start(3 - processes).wait(timeout=240) == 0
    assert lines(tmp_path / "items.jsonl") == undisturbed
