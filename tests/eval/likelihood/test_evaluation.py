"""The whole likelihood evaluation: every number against full logits in float64, going on, processes, and what is refused."""

import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.scripts import ROOT, launch_processes
from mce_llm.data import DataError, get_prompt, write_jsonl
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood import evaluation
from mce_llm.eval.likelihood.evaluation import batches, evaluate_likelihood, main
from mce_llm.eval.likelihood.items import BINS, CALIBRATED, GROUPS
from mce_llm.eval.likelihood.references import encode_references
from mce_llm.eval.likelihood.settings import LikelihoodConfig

SCRIPT = ROOT / "eval" / "likelihood.py"


def options(model, data, output, **changed):
    values = {"model": str(model), "data": str(data), "output": str(output), "prompt": "plain"}
    return {**values, "batch_tokens": 200, **changed}


def command_line(values):
    return [f"--{key}={value}" for key, value in values.items()]


def lines(folder):
    with Path(folder, "items.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_directory, solution_file):
    output = tmp_path_factory.mktemp("run")
    return output, evaluate_likelihood(LikelihoodConfig(**options(model_directory, solution_file, output)))


def naive(model, reference):
    """Sums over the tokens of one solution, one token after the other, from all logits in float64."""
    ids = torch.tensor([reference.prompt_ids + reference.completion_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    groups = {name: {"tokens": 0, "nats": 0.0, "top1": 0, "entropy": 0.0} for name in GROUPS}
    bins = {
        name: {"tokens": [0] * BINS, "confidence": [0.0] * BINS, "top1": [0] * BINS} for name in CALIBRATED
    }
    for number, token in enumerate(reference.completion_ids):
        q = torch.softmax(logits[len(reference.prompt_ids) + number - 1].double(), dim=-1)
        hit = int(q.argmax()) == token
        for name in GROUPS:
            if reference.groups[name][number]:
                sums = groups[name]
                sums["tokens"] += 1
                sums["nats"] -= float(q[token].log())
                sums["top1"] += hit
                sums["entropy"] -= float(torch.xlogy(q, q).sum())
        place = min(int(float(q.max()) * BINS), BINS - 1)
        for name in CALIBRATED:
            if reference.groups[name][number]:
                bins[name]["tokens"][place] += 1
                bins[name]["confidence"][place] += float(q.max())
                bins[name]["top1"][place] += hit
    return groups, bins


def test_every_number_is_that_of_full_logits_in_float64(tmp_path, llama, tokenizer, solution_file):
    model = type(llama)(llama.config)
    model.load_state_dict(llama.state_dict())
    model.double().eval()
    config = LikelihoodConfig(**options("memory", solution_file, tmp_path))
    summary = evaluate_likelihood(config, model, tokenizer)
    rows = evaluation.LIKELIHOOD.load(str(solution_file)).rows
    references = encode_references(rows, get_prompt("plain"), tokenizer)
    items = lines(tmp_path)
    totals = {name: dict.fromkeys(("tokens", "nats", "top1", "entropy"), 0) for name in GROUPS}
    for item, reference in zip(items, references, strict=True):
        groups, bins = naive(model, reference)
        for name in GROUPS:
            assert item["groups"][name] == pytest.approx(groups[name], rel=1e-9)
            for key, value in groups[name].items():
                totals[name][key] += value
        for name in CALIBRATED:
            for key in ("tokens", "confidence", "top1"):
                assert item["calibration"][name][key] == pytest.approx(bins[name][key], rel=1e-9)
    for name, total in totals.items():
        pooled = summary.groups[name]
        assert pooled["tokens"] == total["tokens"] > 0
        assert pooled["nats_per_token"] == pytest.approx(total["nats"] / total["tokens"], rel=1e-9)
        assert pooled["perplexity"] == pytest.approx(np.exp(total["nats"] / total["tokens"]), rel=1e-9)
        assert pooled["top1"] == pytest.approx(total["top1"] / total["tokens"])
        assert pooled["entropy"] == pytest.approx(total["entropy"] / total["tokens"], rel=1e-9)
    assert summary.dtype == "float64"


def test_the_mean_is_the_loss_of_transformers(run, llama, tokenizer, solution_file):
    output, summary = run
    total = 0.0
    for row in evaluation.LIKELIHOOD.load(str(solution_file)).rows:
        pair = get_prompt("plain").encode_pair(tokenizer, row["question"], row["solution"])
        ids = torch.tensor([pair.prompt_ids + pair.completion_ids])
        labels = ids.clone()
        labels[0, : len(pair.prompt_ids)] = -100
        total += float(llama(input_ids=ids, labels=labels).loss.detach()) * len(pair.completion_ids)
    assert summary.groups["all"]["nats"] == pytest.approx(total, rel=1e-5)
    assert sum(item["groups"]["all"]["nats"] for item in lines(output)) == pytest.approx(total, rel=1e-5)


def test_files(run, model_directory, solution_file, solutions):
    output, summary = run
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "items.jsonl", "summary.json"]
    assert json.loads((output / "summary.json").read_text()) == asdict(summary)
    config = json.loads((output / "config.json").read_text())
    assert set(config["hashes"]) == {"prompt", "data", "scoring", "model"}
    assert summary.hashes == config["hashes"]
    assert config["settings"]["model"] == str(model_directory)
    assert "batch_tokens" not in config["settings"]
    assert config["prompt"]["completion_prefix"] == " "
    assert config["scoring"]["calculator_notes"] == "left out, as in training"
    items = lines(output)
    assert [item["index"] for item in items] == list(range(len(solutions)))
    assert [(item["question"], item["gold"]) for item in items] == [(q, gold) for q, _, gold in solutions]
    for item in items:
        assert list(item) == ["index", "question", "gold", "groups", "calibration"]
        words, numbers, whole = (item["groups"][name] for name in ("words", "numbers", "all"))
        assert words["tokens"] + numbers["tokens"] == whole["tokens"]
        assert words["nats"] + numbers["nats"] == pytest.approx(whole["nats"])
        for name in CALIBRATED:
            assert sum(item["calibration"][name]["tokens"]) == item["groups"][name]["tokens"]
            assert sum(item["calibration"][name]["top1"]) == item["groups"][name]["top1"]


def test_the_suffix_of_evaluation_is_not_in_the_prompt(tmp_path, model_directory, solution_file):
    evaluate_likelihood(
        LikelihoodConfig(**options(model_directory, solution_file, tmp_path / "a", prompt="metamath"))
    )
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["prompt"]["evaluation_suffix"] == ""
    config_of = LikelihoodConfig(
        **options(model_directory, solution_file, tmp_path / "b", prompt="zero-shot-cot")
    )
    evaluate_likelihood(config_of)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["prompt"]["evaluation_suffix"] == " Let's think step by step."
    assert config["prompt"]["completion_prefix"] == " "


@pytest.mark.parametrize("batch_tokens", [1, 150, 10**6])
def test_batches_change_no_number(batch_tokens, tmp_path, run, model_directory, solution_file):
    values = options(model_directory, solution_file, tmp_path, batch_tokens=batch_tokens)
    evaluate_likelihood(LikelihoodConfig(**values))
    for item, expected in zip(lines(tmp_path), lines(run[0]), strict=True):
        for name in GROUPS:
            assert item["groups"][name] == pytest.approx(expected["groups"][name], rel=1e-5)


def test_batches_by_tokens():
    lengths = [10, 9, 4, 4, 1, 1]
    assert list(batches(range(6), lengths, 20)) == [[0, 1], [2, 3, 4, 5]]
    assert list(batches(range(6), lengths, 8)) == [[0], [1], [2, 3], [4, 5]]
    assert list(batches([], lengths, 8)) == []


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupted_after(count, monkeypatch, act):
    make = evaluation.item_of
    seen = []

    def counting(index, *rest):
        if len(seen) == count:
            act()
        seen.append(index)
        return make(index, *rest)

    monkeypatch.setattr(evaluation, "item_of", counting)
    return seen


@pytest.mark.parametrize("count", [0, 3, 6])
def test_goes_on_where_it_was_interrupted(count, tmp_path, run, model_directory, solution_file, monkeypatch):
    def fail():
        raise Interrupted

    config = LikelihoodConfig(**options(model_directory, solution_file, tmp_path, batch_tokens=1))
    with monkeypatch.context() as patch:
        first = interrupted_after(count, patch, fail)
        with pytest.raises(Interrupted):
            evaluate_likelihood(config)
    assert not (tmp_path / "summary.json").exists()
    with monkeypatch.context() as patch:
        second = interrupted_after(99, patch, fail)
        summary = evaluate_likelihood(config)
    assert sorted(first + second) == list(range(7))  # nothing twice, nothing lost
    assert summary.continued == count
    for item, expected in zip(lines(tmp_path), lines(run[0]), strict=True):
        assert item["groups"]["all"] == pytest.approx(expected["groups"]["all"], rel=1e-5)
    with monkeypatch.context() as patch:
        assert not interrupted_after(0, patch, fail)
        assert evaluate_likelihood(config) == summary  # finished: not run again


def damaged(**changes):
    return lambda item: {**item, **changes}


def other_sum(item):
    groups = {name: dict(group) for name, group in item["groups"].items()}
    groups["all"]["nats"] -= 1.5
    return {**item, "groups": groups}


@pytest.mark.parametrize(
    "edit",
    [
        damaged(index="3"),
        damaged(index=[3]),
        damaged(index=-1),
        damaged(index=99),
        damaged(groups=None),
        damaged(groups={}),
        damaged(calibration={"all": 3}),
        damaged(more=float("nan")),
        damaged(question=None),
        other_sum,
    ],
)
def test_a_damaged_line_is_scored_anew(edit, tmp_path, run, model_directory, solution_file):
    """Whatever a disk or an editor made of a line that an interrupted run has kept: it counts as one that is missing."""
    output = tmp_path / "scores"
    shutil.copytree(run[0], output)
    (output / "summary.json").unlink()
    kept = lines(output)
    (output / "items.jsonl").unlink()
    texts = [json.dumps(item) + "\n" for item in (*kept[:3], edit(kept[3]))]
    (output / "items.done.jsonl").write_text("".join(texts))
    evaluate_likelihood(LikelihoodConfig(**options(model_directory, solution_file, output)))
    assert [item["index"] for item in lines(output)] == list(range(len(kept)))
    for found, expected in zip(lines(output), kept, strict=True):
        assert "more" not in found
        assert found["groups"]["all"]["nats"] == pytest.approx(expected["groups"]["all"]["nats"], rel=1e-5)


def test_a_signal_ends_the_run_and_says_what_is_kept(
    tmp_path, model_directory, solution_file, monkeypatch, capsys
):
    words = command_line(options(model_directory, solution_file, tmp_path, batch_tokens=1))
    with monkeypatch.context() as patch:
        interrupted_after(2, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(words) == 143
    assert f"the scores of 2 questions that are kept in {tmp_path}" in capsys.readouterr().err
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "nats each" in printed
    assert f"written to {tmp_path}" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "metamath"}, "prompt: 'plain' there, 'metamath' now"),
        ({"limit": 3}, "limit: None there, 3 now"),
        ({"dtype": "bfloat16"}, "dtype: 'auto' there, 'bfloat16' now"),
    ],
)
def test_other_conditions_in_the_same_folder_are_refused(
    changed, message, run, model_directory, solution_file
):
    with pytest.raises(EvaluationError, match=message):
        evaluate_likelihood(LikelihoodConfig(**options(model_directory, solution_file, run[0], **changed)))


def test_all_problems_of_the_options_at_once():
    with pytest.raises(EvaluationError) as caught:
        LikelihoodConfig(model="", output="o", limit=0, prompt="chatt", batch_tokens=0, dtype="int8")
    for part in (
        "limit must be at least 1, got 0",
        "model must not be empty",
        "prompt must be one of auto,",
        "did you mean 'chat'?",
        "batch_tokens must be at least 1, got 0",
        "dtype must be one of",
    ):
        assert part in str(caught.value)


def test_an_unknown_option_names_the_nearest(tmp_path, model_directory, solution_file, capsys):
    words = command_line(options(model_directory, solution_file, tmp_path / "out"))
    assert main([*words, "--batch_token=5", "--max_new_tokens=7"]) == 2
    printed = capsys.readouterr().err
    assert "unknown setting 'batch_token' (did you mean 'batch_tokens'?)" in printed
    assert "unknown setting 'max_new_tokens'" in printed
    assert not (tmp_path / "out").exists()


def test_references_longer_than_the_model(tmp_path, model_directory):
    rows = [
        {"question": "Short?", "answer": "It is 1.\n#### 1"},
        {"question": "Long?", "answer": "very " * 600 + "\n#### 2"},
        {"question": "Short again?", "answer": "It is 3.\n#### 3"},
    ]
    data = write_jsonl(rows, tmp_path / "long.jsonl")
    with pytest.raises(
        DataError,
        match=r"1 of 3 reference solutions are longer.*\n  - question 2: \d+ tokens with its prompt, of 512",
    ):
        evaluate_likelihood(LikelihoodConfig(**options(model_directory, data, tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    values = options(model_directory, data, tmp_path / "out", unreadable_references="skip")
    summary = evaluate_likelihood(LikelihoodConfig(**values))
    assert (summary.n, summary.skipped) == (2, 1)
    assert [item["question"] for item in lines(tmp_path / "out")] == ["Short?", "Short again?"]
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["skipped"]) == 1


def test_references_without_an_answer(tmp_path, model_directory):
    rows = [
        {"question": "A?", "answer": "It is 1.\n#### 1"},
        {"question": "B?", "answer": "words " * 20},
    ]
    data = write_jsonl(rows, tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="1 of 2 records have no reference answer"):
        evaluate_likelihood(LikelihoodConfig(**options(model_directory, data, tmp_path / "out")))


def test_a_tokenizer_of_another_model(tmp_path, make_model, tokenizer, solution_file):
    config = LikelihoodConfig(**options("memory", solution_file, tmp_path / "out"))
    with pytest.raises(
        EvaluationError, match="but the model knows ids below 100: the tokenizer does not belong"
    ):
        evaluate_likelihood(config, make_model("llama", 100), tokenizer)


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_with_unequal_shares(tmp_path, run, model_directory, solution_file):
    values = options(model_directory, solution_file, tmp_path, batch_tokens=300)
    result = launch_processes(SCRIPT, command_line(values), 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("written to") == 1  # one table, by the main process
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["processes"], summary["n"]) == (2, 7)  # 4 and 3
    assert summary["hashes"] == run[1].hashes
    for item, expected in zip(lines(tmp_path), lines(run[0]), strict=True):
        assert item["groups"]["all"] == pytest.approx(expected["groups"]["all"], rel=1e-5)
        assert item["calibration"]["all"]["tokens"] == expected["calibration"]["all"]["tokens"]
