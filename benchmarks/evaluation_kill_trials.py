"""Evaluations killed with SIGKILL at random moments and started again: do they end with the answers of an undisturbed run?

Each trial kills its run one to three times, some seconds in or after some answers, begins again (perhaps with another batch
size), and at the end compares `items.jsonl` with that of a run that nobody disturbed: byte by byte. It counts
answers that were lost or given twice, and half-written lines that were passed over. Greedy and sampled runs take turns.

    python benchmarks/evaluation_kill_trials.py --model runs/quickstart/ce --data runs/quickstart/test.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from measuring import positive, progress, table

SCRIPT = Path(__file__).resolve().parents[1] / "eval" / "gsm8k.py"
KINDS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "num_samples": 3, "seed": 3},
}
MOST_KILLS = 3
WAIT = 300  # seconds for a run to end


@dataclass
class Outcome:
    """What came of the trials of one kind."""

    trials: int = 0
    same: int = 0
    kills: int = 0
    while_answering: int = 0
    torn: int = 0
    problems: list[str] = field(default_factory=list)


def start(options: dict[str, object], output: Path) -> subprocess.Popen[bytes]:
    """Start one evaluation in a process group of its own."""
    words = [f"--{name}={value}" for name, value in {**options, "output": output}.items()]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )


def kill_somewhere(run: subprocess.Popen[bytes], output: Path, chance: random.Random, answers: int) -> bool:
    """Kill a run after so many answers more, or after some seconds; say whether it was still running."""
    rank_file = output / "items.rank0.jsonl"
    wanted = chance.randrange(answers)
    deadline = time.monotonic() + (chance.uniform(2, 12) if chance.random() < 0.2 else WAIT)
    while run.poll() is None and time.monotonic() < deadline:
        if rank_file.exists() and rank_file.read_bytes().count(b"\n") >= wanted:
            time.sleep(chance.uniform(0, 0.02))
            break
        time.sleep(0.001)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    return alive


def torn_lines(output: Path) -> int:
    """Count the half lines that a kill left."""
    return sum(
        bool(content := file.read_bytes()) and not content.endswith(b"\n")
        for file in output.glob("items.rank*.jsonl")
    )


def trial(
    options: dict[str, object], expected: bytes, folder: Path, chance: random.Random, outcome: Outcome
) -> None:
    """Kill, begin again, compare."""
    output = folder / f"trial{outcome.trials}"
    outcome.trials += 1
    answers = expected.count(b"\n")
    for _ in range(chance.randint(1, MOST_KILLS)):
        run = start({**options, "batch_size": chance.choice([3, 8, 16])}, output)
        if not kill_somewhere(run, output, chance, answers):
            break
        outcome.kills += 1
        outcome.while_answering += (output / "items.rank0.jsonl").exists()
        outcome.torn += torn_lines(output)
    run = start(options, output)
    _, errors = run.communicate(timeout=WAIT)
    if run.returncode:
        outcome.problems.append(errors.decode()[-300:])
    elif (output / "items.jsonl").read_bytes() == expected:
        outcome.same += 1
    else:
        with (output / "items.jsonl").open() as lines:
            outcome.problems.append(f"{output}: {sum(1 for _ in lines)} lines, {answers} expected")


def main() -> None:
    """Run the trials and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompt", default="plain")
    parser.add_argument("--limit", type=positive, default=60, help="questions")
    parser.add_argument("--max_new_tokens", type=positive, default=48)
    parser.add_argument("--trials", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    base = {name: getattr(arguments, name) for name in ("model", "data", "prompt", "limit", "max_new_tokens")}
    outcomes = {name: Outcome() for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for name, more in KINDS.items():
            progress(f"undisturbed, {name}")
            run = start({**base, **more}, Path(folder, name, "undisturbed"))
            _, errors = run.communicate(timeout=WAIT)
            if run.returncode:
                sys.exit(errors.decode()[-2000:])
            expected[name] = Path(folder, name, "undisturbed", "items.jsonl").read_bytes()
        for number in range(arguments.trials):
            name = list(KINDS)[number % len(KINDS)]
            progress(f"trial {number + 1}/{arguments.trials}, {name}")
            trial({**base, **KINDS[name]}, expected[name], Path(folder, name), chance, outcomes[name])
    progress("")
    if arguments.json:
        print(json.dumps({name: vars(outcome) for name, outcome in outcomes.items()}))
        return
    rows = [
        [
            name,
            f"{outcome.same} of {outcome.trials}",
            str(outcome.kills),
            str(outcome.while_answering),
            str(outcome.torn),
        ]
        for name, outcome in outcomes.items()
    ]
    print(table(["run", "same items.jsonl", "kills", "of them while answering", "half lines"], rows))
    for outcome in outcomes.values():
        for problem in outcome.problems:
            print(problem)


if __name__ == "__main__":
    main()
