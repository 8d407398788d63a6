"""The quickstart: data, tokenizer, base model, two fine-tunes, two evaluations, one table and one picture.

Everything it runs is what a user runs: the recipe and the evaluator are started through `accelerate launch`, as
documented, with the configurations in `recipes/`. Stages that are finished are not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mce_llm.commands.quickstart_report import RunResult, draw, print_table
from mce_llm.data import generate_problems, train_tokenizer, write_jsonl
from mce_llm.errors import MceLlmError
from mce_llm.running.installation import shipped_file
from mce_llm.running.launch_options import with_defaults
from mce_llm.running.terminal import DataConsole
from mce_llm.running.yaml_text import load_yaml

LARGEST_NUMBER = 10  # in a question: small enough to be learnt in two minutes
PROBLEMS = {"pretrain": ("train", 24000, 1), "train": ("train", 12000, 2)}
HELD_OUT = {"validation": ("validation", 200, 1), "test": ("test", 300, 1)}


class QuickstartError(MceLlmError, RuntimeError):
    """A stage failed; the message says which command to run by hand."""


@dataclass(frozen=True)
class Stage:
    """One training run of the quickstart: its folder, its name in tables, and its configuration."""

    name: str
    title: str
    config: str


BASE = Stage("base", "base", "quickstart_pretrain.yaml")
FINE_TUNES = (
    Stage("ce", "CE", "quickstart_ce.yaml"),
    Stage("mce", "CE + MCE", "quickstart_mce.yaml"),
)


def run_quickstart(folder: Path, *, fresh: bool = False, steps_scale: float = 1.0) -> list[RunResult]:
    """Run every stage that is not finished in `folder`, and report.

    Args:
        folder: Where data, models and results go.
        fresh: Run finished stages again.
        steps_scale: Multiplies the number of training steps; below one for a quick look.

    Returns:
        What the report shows, a run each.

    Raises:
        QuickstartError: A stage failed.
    """
    console = DataConsole()
    started = time.monotonic()
    console.rule("1/4  arithmetic word problems and a tokenizer")
    make_data(folder, console)
    console.rule("2/4  training")
    for stage in (BASE, *FINE_TUNES):
        train(stage, folder, console, fresh=fresh, steps_scale=steps_scale)
    console.rule("3/4  evaluation on unseen problems")
    for stage in (BASE, *FINE_TUNES):
        evaluate(stage, folder, console, fresh=fresh)
    console.rule("4/4  results")
    results = [RunResult.read(stage.title, folder / stage.name) for stage in (BASE, *FINE_TUNES)]
    print_table(results, console, chance(folder))
    picture = draw(results, folder / "quickstart.png")
    console.print(f"picture: {picture}")
    console.print(f"whole quickstart: {time.monotonic() - started:.0f} s")
    return results


def make_data(folder: Path, console: Console) -> None:
    """Write the problems and the tokenizer; the same ones every time."""
    records = {
        name: generate_problems(count, split=split, seed=seed, max_number=LARGEST_NUMBER)
        for name, (split, count, seed) in {**PROBLEMS, **HELD_OUT}.items()
    }
    for name, rows in records.items():
        write_jsonl(rows, folder / f"{name}.jsonl")
    tokenizer = train_tokenizer(f"{row['question']}\n{row['answer']}" for row in records["pretrain"])
    tokenizer.save_pretrained(folder / "tokenizer")
    example = records["test"][0]
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in records.items())
    console.print(f"{counts}; {len(tokenizer)} tokens; an unseen problem and its solution:")
    console.print(f"  {example['question']}\n  " + example["answer"].replace("\n", "\n  "), style="dim")


def train(stage: Stage, folder: Path, console: Console, *, fresh: bool, steps_scale: float) -> None:
    """One run of recipes/finetune.py."""
    output = folder / stage.name
    recipe = shipped_file("recipes/finetune.py")
    config = recipe.parent / stage.config
    steps = max(2, round(configured_steps(config) * steps_scale))
    if not fresh and is_finished(stage, folder, steps):
        console.print(f"{stage.title}: finished before, kept (--fresh trains again)")
        return
    console.print(stage.title, style="bold")
    options = {"output_dir": output, "overwrite": "true"}
    if stage is BASE:
        options |= {"tokenizer_name_or_path": folder / "tokenizer", "dataset": folder / "pretrain.jsonl"}
        options |= {"eval_dataset": folder / "validation.jsonl"}
    else:
        options |= {"model_name_or_path": folder / BASE.name, "dataset": folder / "train.jsonl"}
        options |= {"eval_dataset": folder / "validation.jsonl"}
    options["max_steps"] = steps
    launch([str(recipe), "--config", str(config), *as_flags(options)])


def is_finished(stage: Stage, folder: Path, steps: int) -> bool:
    """Whether a stage was trained for as many steps as now, and after the base model that it starts from."""
    results = folder / stage.name / "train_results.json"
    state = folder / stage.name / "trainer_state.json"
    if not results.exists() or not state.exists():
        return False
    if json.loads(state.read_text(encoding="utf-8"))["global_step"] != steps:
        return False
    base = folder / BASE.name / "train_results.json"
    return stage is BASE or results.stat().st_mtime >= base.stat().st_mtime


def evaluate(stage: Stage, folder: Path, console: Console, *, fresh: bool) -> None:
    """One run of eval/gsm8k.py."""
    output = folder / stage.name / "eval"
    model = folder / stage.name
    summary = output / "summary.json"
    newest = (model / "train_results.json").stat().st_mtime
    if summary.exists() and summary.stat().st_mtime > newest and not fresh:
        console.print(f"{stage.title}: evaluated before, kept")
        return
    options = {"model": model, "data": folder / "test.jsonl", "output": output, "prompt": "plain"}
    options |= {"max_new_tokens": 48, "batch_size": 100, "overwrite": "true"}
    launch([str(shipped_file("eval/gsm8k.py")), *as_flags(options)])


def chance(folder: Path) -> tuple[str, float]:
    """The most common answer of the training problems, and the share of the test problems that it is right on."""
    train, test = (
        [
            json.loads(line)["answer"].rpartition("#### ")[2]
            for line in (folder / name).read_text("utf-8").splitlines()
        ]
        for name in ("train.jsonl", "test.jsonl")
    )
    ((most_common, _),) = Counter(train).most_common(1)
    return most_common, test.count(most_common) / len(test)


def launch(words: list[str]) -> None:
    """`accelerate launch` one process, its output shown as it comes.

    Raises:
        QuickstartError: The process failed.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", *with_defaults(["--cpu"]), *words]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise QuickstartError(
            f"a stage ended with exit code {done.returncode}; to run it by hand:\n  {' '.join(command)}"
        )


def as_flags(options: dict[str, object]) -> list[str]:
    """{"name": value} as command-line words."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def configured_steps(config: Path) -> int:
    """`max_steps` of a recipe's configuration."""
    return int(load_yaml(config.read_text(encoding="utf-8"), str(config))["max_steps"])
