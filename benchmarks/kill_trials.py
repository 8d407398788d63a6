"""Kill real runs of recipes/finetune.py with SIGKILL, start them again, and compare the weights that they end with.

    python benchmarks/kill_trials.py --trials 20 --engine single
    python benchmarks/kill_trials.py --trials 10 --engine zero2      # two processes; also ddp, zero3

Every trial starts the recipe on a tiny model with dropout, kills all its processes (every other time inside a save, else
at a random moment after the first step), once or twice, and starts the same command until it is through.
The weights must be, bit by bit, those of a run that nothing disturbed. The exit code is 0 when all are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data import generate_problems, train_tokenizer, write_jsonl
from mce_llm.lm.training.manifest import INCOMPLETE, MANIFEST

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "finetune.py"
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]
LAUNCHERS = {
    "single": [sys.executable],
    "ddp": [*LAUNCH, "--config_file", str(RECIPE.parent / "accelerate" / "cpu.yaml")],
    "zero2": [*LAUNCH, "--config_file", str(RECIPE.parent / "accelerate" / "zero2.yaml")],
    "zero3": [*LAUNCH, "--config_file", str(RECIPE.parent / "accelerate" / "zero3.yaml")],
}
# What is trained, and how: each trial takes the next.
KINDS: dict[str, dict[str, object]] = {
    "all weights": {},
    "adapters": {"lora_r": 2, "lora_dropout": 0.2},
    "packed rows": {"packing": "true", "max_length": 256, "per_device_train_batch_size": 1},
    "accumulation": {"gradient_accumulation_steps": 3, "save_total_limit": 1},
}
STEPS = 12
STARTS = 12  # of one trial, before it counts as failed


@dataclass
class Outcome:
    """What happened in one trial."""

    kills: int = 0
    in_a_save: int = 0
    skipped: int = 0  # checkpoints that were recognised as torn
    problem: str | None = None


def make_inputs(folder: Path) -> None:
    """A model of 15,000 weights with dropout, its tokenizer, and 24 problems."""
    rows = generate_problems(24, max_number=10)
    write_jsonl(rows, folder / "data.jsonl")
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            attention_dropout=0.2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def command(inputs: Path, output: Path, engine: str, kind: str) -> list[str]:
    """The command line of a run: several epochs of twelve steps, with a save every other one."""
    settings: dict[str, object] = {
        "model_name_or_path": inputs / "model",
        "dataset": inputs / "data.jsonl",
        "prompt": "plain",
        "output_dir": output,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": "true",
        "dataloader_pin_memory": "false",
        **KINDS[kind],
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [*LAUNCHERS[engine], str(RECIPE), *words]


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    with log.open("wb") as stream:
        return subprocess.Popen(words, stdout=stream, stderr=stream, env=environment, cwd=log.parent)


def processes_of(launcher: int) -> list[int]:
    """A process and its descendants; torch's launcher gives each rank a session of its own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [launcher]
    for pid in found:
        found += children.get(pid, [])
    return found


def kill(processes: list[int]) -> None:
    """SIGKILL, to those that are still there."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], *, one_rank: bool) -> bool:
    """Kill all processes of a run as soon as `ready`, or its last rank alone; False where the run ended before."""
    while not ready():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    every = processes_of(process.pid)
    kill(every[-1:] if one_rank else every)  # of two ranks: the launcher then ends the other
    process.wait()
    return True


def begun(output: Path) -> bool:
    """Whether training has begun and not come to its end."""
    return (output / "_UNFINISHED").exists()


def saves_begun(output: Path) -> set[str]:
    """The checkpoints that are being written."""
    return {folder.parent.name for folder in output.glob(f"checkpoint-*/{INCOMPLETE}")}


def torn(output: Path) -> bool:
    """Whether a save was cut off."""
    return any(
        not folder.with_name(MANIFEST).exists() for folder in output.glob(f"checkpoint-*/{INCOMPLETE}")
    )


def moment(output: Path, log: Path, inside_a_save: bool, chance: random.Random) -> Callable[[], bool]:
    """When to kill: a random time after a save has begun, or after a step has been logged."""
    before = saves_begun(output)
    seen = set(before)
    saves_to_pass = chance.randrange(3)
    step = chance.randint(1, STEPS)
    delay = chance.uniform(0, 0.03 if inside_a_save else 0.4)
    since: list[float] = []

    def ready() -> bool:
        if since:
            return time.monotonic() - since[0] >= delay
        seen.update(saves_begun(output))
        if inside_a_save:
            reached = len(seen - before) > saves_to_pass
        else:
            reached = any(
                int(number) >= step for number in re.findall(r"step (\d+)/", log.read_text(errors="replace"))
            )
        if reached:
            since.append(time.monotonic())
        return False

    return ready


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The final weights."""
    (path,) = output.glob("*.safetensors")
    return load_file(path)


def difference(expected: Path, output: Path) -> str | None:
    """The first weight that is not the same to the last bit."""
    ours, theirs = weights(output), weights(expected)
    if ours.keys() != theirs.keys():
        return "other weights"
    for name, value in theirs.items():
        if not torch.equal(ours[name].view(torch.uint8), value.view(torch.uint8)):
            return f"{name} differs by up to {(ours[name] - value).abs().max():.3g}"
    return None


def undisturbed(folder: Path, kind: str) -> Path:
    """Where the run that nothing disturbs goes."""
    return folder / f"{kind.replace(' ', '-')}-undisturbed"


def trial(engine: str, kind: str, output: Path, chance: random.Random, inside: bool) -> Outcome:
    """Kill a run, start it until it is through, and compare."""
    outcome = Outcome()
    expected, words = undisturbed(output.parent, kind), command(output.parent, output, engine, kind)
    kills = chance.choice((1, 1, 2))
    for attempt in range(STARTS):
        log = output.with_suffix(f".{attempt}.log")
        process = start(words, log)
        try:
            ready = moment(output, log, inside, chance)
            one_rank = len(LAUNCHERS[engine]) > 1 and chance.random() < 0.25
            killed = outcome.kills < kills and kill_when(process, ready, one_rank=one_rank)
            code = process.wait()
        finally:
            if process.poll() is None:
                kill(processes_of(process.pid))
        text = log.read_text(errors="replace")
        outcome.skipped += text.count("is not whole, so it is skipped")
        if killed:
            outcome.kills += 1
            outcome.in_a_save += torn(output)
        through = code == 0 or (killed and not begun(output) and (output / "train_results.json").exists())
        if through and not outcome.kills:  # it was quicker than the moment
            shutil.rmtree(output)
        elif through:
            outcome.problem = difference(expected, output)
            return outcome
        elif not killed:
            outcome.problem = f"exit code {code}: {text[-600:]}"
            return outcome
    outcome.problem = f"not through after {STARTS} starts"
    return outcome


def main() -> int:
    """Run the trials; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--engine", choices=LAUNCHERS, default="single")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--folder", type=Path, help="where the runs go and stay; by default a temporary folder"
    )
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_inputs(folder)
        outcomes: list[Outcome] = []
        for index in range(options.trials):
            kind = list(KINDS)[index % len(KINDS)]
            expected = undisturbed(folder, kind)
            if not expected.exists():
                log = expected.with_suffix(".log")
                if start(command(folder, expected, options.engine, kind), log).wait():
                    print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
                    return 2
            output = folder / f"trial-{index}"
            # Both ways for each kind of training: kinds take turns, and so do rounds of them.
            inside = (index + index // len(KINDS)) % 2 == 0
            outcome = trial(options.engine, kind, output, chance, inside)
            outcomes.append(outcome)
            print(
                f"trial {index + 1}/{options.trials}  {kind:12}  kills {outcome.kills}, in a save {outcome.in_a_save}, "
                f"torn checkpoints skipped {outcome.skipped}: {outcome.problem or 'same weights'}",
                flush=True,
            )
    good = sum(outcome.problem is None for outcome in outcomes)
    print(
        f"{options.engine}: {good}/{options.trials} ended with the weights of the undisturbed run; "
        f"{sum(o.kills for o in outcomes)} kills, {sum(o.in_a_save for o in outcomes)} of them in a save, "
        f"{sum(o.skipped for o in outcomes)} torn checkpoints skipped"
    )
    return 0 if good == options.trials else 1


if __name__ == "__main__":
    sys.exit(main())
