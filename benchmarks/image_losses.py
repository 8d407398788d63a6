"""Self-supervised losses on 5,000 images of CIFAR-10: each searched equally, then several seeds each, and a table.

    python benchmarks/image_losses.py --data data/cifar10 --plan
    python benchmarks/image_losses.py --data data/cifar10 --jobs 2

Everything but what is listed here is `vision/configs/cifar10_cpu.yaml`. Each loss gets six short trainings: four learning
rates, then, at the best of them, two other values of its own setting. They are judged by kNN accuracy on 2,000 training
images that no training of the search sees; no test image is looked at before all settings are chosen. A trial that diverges
is the worst of its loss. Then every loss is
trained with each seed and judged on all test images by kNN and by a linear classifier. Ctrl-C or SIGTERM saves; the same
command goes on. Intervals are over seeds, by Student's t; with three seeds it has two degrees of freedom.

On a CPU with instructions for bfloat16 `--mixed_precision bf16` takes 0.7 times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import machine, over_seeds, positive, table

from mce_llm.studies.child import Child, last_lines

REPOSITORY = Path(__file__).parents[1]
CONFIG = REPOSITORY / "vision/configs/cifar10_cpu.yaml"
SEARCH_SEED = 101
KNN = "monitor/knn_top1"
# The exit code of a script whose loss or features are not finite any more, among other errors.
BAD_SETTINGS = 2
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """What is searched of one loss.

    Attributes:
        rates: Base learning rates, for 256 images.
        middle: The loss's own setting while they are compared.
        others: What it is compared with at the best of them.
    """

    rates: Sequence[float]
    middle: Settings
    others: Sequence[Settings]


SPACES = {
    "matrix_ssl": Space(
        (0.25, 0.5, 1.0, 2.0),
        {"loss_options": "{mu: 0.2, log: exact}"},
        ({"loss_options": "{mu: 0.05, log: exact}"}, {"loss_options": "{mu: 1.0, log: exact}"}),
    ),
    # A sum over 256² entries, a hundred times as large as the others.
    "barlow_twins": Space(
        (0.03, 0.06, 0.12, 0.24),
        {"loss_options": "{lam: 0.0051}"},
        ({"loss_options": "{lam: 0.002}"}, {"loss_options": "{lam: 0.0125}"}),
    ),
    "sim_siam": Space(
        (0.25, 0.5, 1.0, 2.0), {"weight_decay": 1e-4}, ({"weight_decay": 2e-5}, {"weight_decay": 5e-4})
    ),
}


@dataclass(frozen=True)
class Job:
    """One program and the folder whose summary.json says that it is done.

    Attributes:
        script: Of vision/.
        folder: Where it writes.
        words: Its arguments.
        is_trial: Of the search, which goes on where one diverges.
    """

    script: str
    folder: Path
    words: tuple[str, ...]
    is_trial: bool = False

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.parent / f"{self.folder.name}.log"

    @property
    def diverged(self) -> Path:
        """Says that it ended because something was not finite."""
        return self.folder.parent / f"{self.folder.name}.diverged"

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the program left behind; None before it is done."""
        if self.diverged.is_file():
            return {KNN: 0.0}
        file = self.folder / "summary.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @property
    def command(self) -> list[str]:
        """Its words."""
        return [
            sys.executable,
            str(REPOSITORY / "vision" / self.script),
            *self.words,
            "--output_dir",
            str(self.folder),
        ]


class Comparison:
    """The programs of the whole comparison, in stages of which each needs the results of the ones before.

    Args:
        arguments: The command line.
        config: What its configuration file says.
    """

    def __init__(self, arguments: argparse.Namespace, config: Mapping[str, Any]) -> None:
        self._given = arguments
        self.output: Path = arguments.output
        self.precision: str = arguments.mixed_precision
        self._config = config
        self._data = ("--dataset", str(arguments.data), "--cpu", "true")

    def training(self, method: str, settings: Settings, name: str, *more: str, is_trial: bool = False) -> Job:
        """A pretraining."""
        words = [w for item in settings.items() for w in (f"--{item[0]}", str(item[1]))]
        common = ("--config", str(self._given.config), *self._data, "--method", method)
        precision = ("--mixed_precision", self.precision)
        return Job("pretrain.py", self.output / name, (*common, *precision, *words, *more), is_trial)

    def trial(self, method: str, settings: Settings) -> Job:
        """A short training of the search; judged once, at its end."""
        values = "_".join(
            str(value).strip("{}").replace(": ", "").replace(", ", "-") for value in settings.values()
        )
        epochs = str(self._given.search_epochs)
        more: tuple[str, ...] = ("--seed", str(SEARCH_SEED), "--epochs", epochs, "--monitor_every", epochs)
        more = (*more, "--eval_from_train", str(self._given.held_out))
        return self.training(method, settings, f"search/{method}_{values}", *more, is_trial=True)

    def rates(self, method: str) -> list[tuple[Settings, Job]]:
        """The trials of learning rates."""
        space = SPACES[method]
        settings: list[Settings] = [{"base_learning_rate": rate, **space.middle} for rate in space.rates]
        return [(one, self.trial(method, one)) for one in settings]

    def others(self, method: str) -> list[tuple[Settings, Job]]:
        """The trials of the loss's own setting, at the best learning rate so far."""
        rate = best(self.rates(method))["base_learning_rate"]
        settings: list[Settings] = [{"base_learning_rate": rate, **other} for other in SPACES[method].others]
        return [(one, self.trial(method, one)) for one in settings]

    def chosen(self, method: str) -> Settings:
        """The best settings of all trials."""
        return best([*self.rates(method), *self.others(method)])

    def final(self, method: str, seed: int) -> Job:
        """A training with the chosen settings."""
        return self.training(method, self.chosen(method), f"final/{method}/{seed}", "--seed", str(seed))

    def judging(self, method: str, seed: int) -> list[Job]:
        """KNN and linear classifier of a final training, on all test images."""
        run = self.final(method, seed)
        same = [w for name in ("limit", "image_size") for w in (f"--{name}", str(self._config[name]))]
        common = ("--encoder", str(run.folder), *self._data, *same)
        linear = ("--config", str(REPOSITORY / "vision/configs/linear_cifar10.yaml"))
        return [
            Job("knn.py", run.folder / "knn", (*common, "--k", "20")),
            Job("linear_probe.py", run.folder / "linear", (*linear, *common)),
        ]

    def stages(self) -> list[tuple[str, Any]]:
        """Name of each stage, and a function that gives its programs once the stages before are done."""
        pairs = [(method, seed) for seed in range(1, self._given.seeds + 1) for method in SPACES]
        return [
            ("learning rates", lambda: [job for method in SPACES for _, job in self.rates(method)]),
            ("settings of the losses", lambda: [job for method in SPACES for _, job in self.others(method)]),
            ("final trainings", lambda: [self.final(*pair) for pair in pairs]),
            ("judging", lambda: [job for pair in pairs for job in self.judging(*pair)]),
        ]


def best(trials: Sequence[tuple[Settings, Job]]) -> Settings:
    """The settings whose trial has the highest kNN accuracy; of equal ones the first."""
    return max(trials, key=lambda trial: _summary(trial[1])[KNN])[0]


def _summary(job: Job) -> dict[str, Any]:
    if (summary := job.summary) is None:
        raise RuntimeError(f"{job.folder} is not finished")
    return summary


def run_all(jobs: Sequence[Job], at_once: int, threads: int, stop: Sequence[int]) -> int:
    """Run what is missing, so many at once.

    Args:
        jobs: In order.
        at_once: How many.
        threads: Of each.
        stop: Empty, until a signal has come.

    Returns:
        0, or the exit code of the first that did not end well.
    """
    waiting = [job for job in jobs if job.summary is None]
    running: list[tuple[Job, Child]] = []
    code = 0
    while running or (waiting and not code and not stop):
        while waiting and len(running) < at_once and not code and not stop:
            job = waiting.pop(0)
            print(f"{time.strftime('%H:%M')} {job.folder}, {len(waiting)} after it", flush=True)
            running.append((job, Child(job.command, None, job.log, {"OMP_NUM_THREADS": str(threads)})))
        time.sleep(1)
        for job, child in list(running):
            if (stop or code) and not child.asked:
                child.ask_to_stop()
            if (ended := child.poll()) is None:
                continue
            running.remove((job, child))
            if not ended or (child.asked and ended == 128 + signal.SIGTERM):
                continue
            said = last_lines(child.log, 15, child.begins)
            print(*said, sep="\n", file=sys.stderr)
            if job.is_trial and ended == BAD_SETTINGS and "not finite" in " ".join(said):
                job.diverged.write_text("\n".join(said) + "\n")
            else:
                code = code or ended
    return code or (128 + stop[0] if stop else 0)


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval over seeds, in per cent."""
    mean, half = over_seeds(values)
    return f"{mean:.1%} ± {100 * half:.1f}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean difference of runs with the same seeds, with its interval, in points."""
    mean, half = over_seeds([100 * (a - b) for a, b in zip(values, others, strict=True)])
    return f"{mean:+.1f} ± {half:.1f}"


def report(comparison: Comparison, seeds: int) -> None:
    """Print what was searched, chosen and found, and write it to results.json."""
    searched = [
        [
            method,
            ", ".join(f"{name} {value}" for name, value in settings.items()),
            "diverged" if job.diverged.is_file() else f"{accuracy:.1%}",
        ]
        for method in SPACES
        for settings, job in (*comparison.rates(method), *comparison.others(method))
        for accuracy in [_summary(job)[KNN]]
    ]
    print(table(["loss", "settings", "kNN on held-out images"], searched))
    found: dict[str, dict[str, list[float]]] = {}
    for method in SPACES:
        knn, linear = zip(
            *(
                [_summary(job)["top1"] for job in comparison.judging(method, seed)]
                for seed in range(1, seeds + 1)
            ),
            strict=True,
        )
        rank = [_summary(comparison.final(method, s))["monitor/effective_rank"] for s in range(1, seeds + 1)]
        found[method] = {"knn": list(knn), "linear": list(linear), "effective_rank": rank}
    first = found["matrix_ssl"]
    rows = [
        [
            method,
            ", ".join(f"{name} {value}" for name, value in comparison.chosen(method).items()),
            interval(values["knn"]),
            interval(values["linear"]),
            f"{statistics.mean(values['effective_rank']):.1f}",
            *(
                ["", ""]
                if values is first
                else [difference(first[measure], values[measure]) for measure in ("knn", "linear")]
            ),
        ]
        for method, values in found.items()
    ]
    heads = ["loss", "chosen", "kNN", "linear", "effective rank", "Matrix-SSL better by, kNN", "linear"]
    print(table(heads, rows))
    results = {
        "search": searched,
        "chosen": {method: dict(comparison.chosen(method)) for method in SPACES},
        "final": found,
        "seeds": seeds,
        "mixed_precision": comparison.precision,
        "machine": machine(torch.device("cpu")),
    }
    (comparison.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def begun_otherwise(arguments: argparse.Namespace, config: Mapping[str, Any], *, keep: bool) -> list[str]:
    """What the output folder was begun with and is given otherwise now; a new folder keeps what is given if `keep`."""
    now = {
        "data": str(arguments.data.resolve()),
        "config": config,
        **{name: getattr(arguments, name) for name in ("search_epochs", "held_out", "mixed_precision")},
    }
    file = arguments.output / "given.json"
    if not file.is_file():
        if keep:
            arguments.output.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(now, indent=1) + "\n")
        return []
    before = json.loads(file.read_text())
    return [f"{name}: {before[name]!r} → {now[name]!r}" for name in now if before[name] != now[name]]


def checked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration, where it and the images can be used.

    Raises:
        ValueError: They cannot; says why.
    """
    for split in ("train", "test"):
        if not any((arguments.data / split).glob("*/*")):
            raise ValueError(f"--data {arguments.data} has no images at {split}/CLASS/")
    try:
        config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {arguments.config} cannot be read: {error}") from error
    if not isinstance(config, dict) or (lacking := {"limit", "image_size"} - set(config)):
        named = ", ".join(sorted(lacking)) if isinstance(config, dict) else "settings"
        raise ValueError(f"--config {arguments.config} has no {named}")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"--output {arguments.output} is no folder")
    return config


def main() -> int:
    """Run what is missing and print the tables; the exit code is that of the program that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as train/CLASS/ and test/CLASS/")
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="of all trainings; has limit and image_size"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/image-losses"))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--search_epochs", type=positive, default=15)
    parser.add_argument(
        "--held_out", type=positive, default=2000, help="training images that the search judges by"
    )
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="no", help="of all trainings (%(default)s)"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="programs at a time, which share the cores")
    parser.add_argument("--plan", action="store_true", help="say what is done and what is missing")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval over seeds needs two at least")
    try:
        config = checked(arguments)
    except ValueError as error:
        parser.error(str(error))
    if other := begun_otherwise(arguments, config, keep=not arguments.plan):
        parser.error(
            f"{arguments.output} was begun with other settings; {'; '.join(other)}. Give them again, or another --output"
        )
    comparison = Comparison(arguments, config)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    for name, programs in comparison.stages():
        jobs = programs()
        missing = sum(job.summary is None for job in jobs)
        print(f"{name}: {len(jobs) - missing} of {len(jobs)} done")
        if arguments.plan and missing:
            return 0
        if code := run_all(jobs, arguments.jobs, threads, stop):
            return code
    report(comparison, arguments.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
