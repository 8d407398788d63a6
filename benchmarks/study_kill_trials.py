"""Kill a small study with SIGKILL at random moments, start it again, and compare the tables that it ends with.

    python benchmarks/study_kill_trials.py --trials 5

The study has two arms and two training seeds of a tiny model, evaluated by answers and by likelihoods. Each trial kills it
a few times: the command alone (its programs are told to leave, and are waited for by the next start), or the command with
all its programs. The same command is started until it is through. Its results must be, value by value, those of a study
that nothing disturbed; seconds and journals of launches may differ. The exit code is 0 when all are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data import generate_problems, train_tokenizer, write_jsonl

STARTS = 12  # of one trial, before it counts as failed
WAIT = 3600.0  # seconds
SEEDS = [1, 2]


def make_inputs(folder: Path, *, quick: bool) -> Path:
    """A model of 15,000 weights, its data, a recipe and a study file, whose path is returned; quick: no answers."""
    rows = generate_problems(24, max_number=10)
    write_jsonl(rows, folder / "data.jsonl")
    write_jsonl(generate_problems(12, split="test", max_number=10), folder / "test.jsonl")
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "dataset": str(folder / "data.jsonl"),
        "prompt": "plain",
        "output_dir": "unused",
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answers = {"data": str(folder / "test.jsonl"), "prompt": "plain"}
    study: dict[str, Any] = {
        "name": "killed",
        "recipe": "recipe.yaml",
        "baseline": "ce",
        "arms": {
            "ce": {"settings": {"matrix_weight": 0}},
            "mce": {"settings": {"matrix_weight": 1}},
        },
        "seeds": SEEDS,
        "evaluations": {
            "answers": {"script": "gsm8k", "settings": {**answers, "max_new_tokens": 24, "batch_size": 2}},
            "likelihood": {"script": "likelihood", "settings": {**answers, "batch_tokens": 200}},
        },
        "primary": {"evaluation": "likelihood", "measure": "numbers.nats", "smallest_difference": 0.02},
        "keep_weights": False,
    }
    if quick:
        del study["evaluations"]["answers"]
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def start(study: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the command, for two runs at once, in a session of its own."""
    words = [sys.executable, "-m", "mce_llm", "study", str(study), "--output", str(output), "--jobs", "2"]
    with log.open("ab") as file:
        return subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )


def kill(process: subprocess.Popen[bytes], *, all_of_it: bool) -> str:
    """Kill a study, with its programs or without; say what was under way."""
    programs = psutil.Process(process.pid).children(recursive=True)
    under_way = "nothing"
    for program in programs:
        with contextlib.suppress(psutil.Error):
            words = " ".join(program.cmdline())
            for name in ("finetune.py", "gsm8k.py", "likelihood.py"):
                under_way = name if name in words else under_way
    process.send_signal(signal.SIGKILL)
    if all_of_it:
        for program in programs:
            with contextlib.suppress(psutil.NoSuchProcess):
                program.kill()
    process.wait()
    return under_way


def outcome_of(output: Path) -> dict[str, Any]:
    """What a study found, without what depends on how often it was started."""
    lines = {}
    for text in (output / "results.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        line["training"].pop("seconds")
        for evaluation in line["evaluations"].values():
            for name in ("seconds", "code"):
                evaluation.pop(name)
            for name in ("seconds", "tokens_per_second", "continued"):
                evaluation["summary"].pop(name, None)
        line.pop("code")
        lines[f"{line['arm']}, seed {line['seed']}"] = line
    tables = json.loads((output / "study.json").read_text(encoding="utf-8"))
    return {"results": lines, "evaluations": tables["evaluations"], "verdict": tables["verdict"]}


def trial(
    study: Path, output: Path, undisturbed: dict[str, Any], seconds: float, chance: random.Random, kills: int
) -> tuple[str | None, Counter[str]]:
    """Kill a study a few times and bring it to its end: what is wrong with it, and when it was killed."""
    log = output.with_suffix(".log")
    when: Counter[str] = Counter()
    for number in range(STARTS):
        process = start(study, output, log)
        if number < kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.02, 0.6) * seconds)
            if process.poll() is None:
                when[kill(process, all_of_it=chance.random() < 0.5)] += 1
                continue
        code = process.wait(WAIT)
        if code == 0:
            same = outcome_of(output) == undisturbed
            return (None if same else f"{output} ended with other results"), when
        if number >= kills:
            return f"{output} ended with exit code {code}: {log.read_text()[-500:]}", when
    return f"{output} did not end in {STARTS} starts", when


def main() -> None:
    """Run the trials and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4, help="of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything there, in place of a temporary folder")
    parser.add_argument("--quick", action="store_true", help="evaluate by likelihoods alone")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(arguments.folder or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    study = make_inputs(folder.resolve(), quick=arguments.quick)
    began = time.monotonic()
    process = start(study, folder / "undisturbed", folder / "undisturbed.log")
    if process.wait(WAIT):
        sys.exit((folder / "undisturbed.log").read_text()[-2000:])
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    undisturbed = outcome_of(folder / "undisturbed")
    right, when = 0, Counter[str]()
    for number in range(arguments.trials):
        problem, killed = trial(
            study, folder / f"trial{number}", undisturbed, seconds, chance, arguments.kills
        )
        right += problem is None
        when += killed
        told = ", ".join(f"{count} in {name}" for name, count in sorted(killed.items()))
        print(f"trial {number + 1}: {problem or 'the same results'}; kills: {told}", flush=True)
    total = ", ".join(f"{count} in {name}" for name, count in sorted(when.items()))
    print(
        f"{right} of {arguments.trials} trials ended with the same results; {sum(when.values())} kills: {total}"
    )
    if arguments.folder is None:
        shutil.rmtree(folder)
    sys.exit(right != arguments.trials)


if __name__ == "__main__":
    main()
