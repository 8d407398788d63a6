"""What each monitoring callback adds to a training step, on and off in one run.

    python benchmarks/monitoring.py --shape 2m --batch 4 --length 256
    python benchmarks/monitoring.py --device cuda --shape 7b --batch 1 --length 4096 --dtype bfloat16 --repeats 5

One `MatrixTrainer` trains throughout; every few steps other callbacks are in force. Each callback has some cost in every step
and some each time that it measures (a log, a measurement of spectra); the second is spread over as many steps
as lie between two of them at the default settings. Ratios are medians over the rounds of (with) / (without, in the
same round), so that a machine whose speed drifts is unfair to none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from measuring import DTYPES, device_argument, machine, milliseconds, positive, progress, table
from torch.utils.data import Dataset
from training_step import SHAPES, build
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.arguments import MatrixSettings
from mce_llm.lm.training.monitoring import (
    ChartsCallback,
    PlainLinesCallback,
    SpectraCallback,
    ThroughputCallback,
)

LOGGING_STEPS = 10  # as in the recipes; the callbacks that log do so at each
CASES = {
    "off": (),
    "throughput": (ThroughputCallback,),
    "spectra": (SpectraCallback,),
    "lines in the terminal": (PlainLinesCallback,),
    "all": (ThroughputCallback, SpectraCallback, PlainLinesCallback, ChartsCallback),
}
ALL = CASES["all"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Rows(Dataset):
    """Random tokens, half of each row trained."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self._ids = torch.randint(vocabulary, (64, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 100_000  # more than any run here draws

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self._ids[index % len(self._ids)]
        labels = ids.clone()
        labels[: len(ids) // 2] = -100
        return {"input_ids": ids, "labels": labels}


class Switch(TrainerCallback):
    """Puts one case after another in force and times its steps; comes before the callbacks that it switches.

    A block of a case has two steps: one in which everything is due that can be, and one in which nothing is. Each is
    timed from its beginning to that of the next one, device included.
    """

    def __init__(self, trainer: MatrixTrainer, rounds: int, clock: str) -> None:
        self._trainer, self._rounds, self._now = trainer, rounds, CLOCKS[clock]
        self._callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, ALL)]
        self.seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self._begun: tuple[str, bool, float] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time of the step before and choose what is in force in this one."""
        if self._trainer.args.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.args.device)
        if self._begun is not None:
            name, due, begin = self._begun
            self.seconds[name, due].append(self._now() - begin)
        block, offset = divmod(state.global_step, 2)
        round_number, case = divmod(block, len(CASES))
        name = list(CASES)[case]
        # Steps count from 1, and measurements are due at even ones: monitor_steps and logging_steps are 2 here.
        due = (state.global_step + 1) % 2 == 0
        progress(f"round {round_number}/{self._rounds}: {name}")
        handler = self._trainer.callback_handler
        if offset == 0:
            others = [c for c in handler.callbacks if not isinstance(c, ALL)]
            wanted = [c for c in self._callbacks if isinstance(c, CASES[name])]
            handler.callbacks[:] = others + wanted
        self._begun = (name, due, self._now())


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """One row for each case, and the median step without monitoring in seconds."""
    model = build(options.shape, DTYPES[options.dtype], options.device)
    with tempfile.TemporaryDirectory() as folder:
        args = MatrixTrainingArguments(
            output_dir=folder,
            use_cpu=options.device.type == "cpu",
            max_steps=2 * len(CASES) * (options.repeats + 1) + 1,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-5,
            optim="adamw_torch" if options.device.type == "cpu" else "adamw_torch_fused",
            logging_steps=2,
            monitor_steps=2,
            save_strategy="no",
            report_to="tensorboard",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = Rows(model.config.vocab_size, options.length)
        trainer = MatrixTrainer(model=model, args=args, train_dataset=rows)
        switch = Switch(trainer, options.repeats, options.clock)
        trainer.callback_handler.callbacks.insert(0, switch)
        trainer.train()
    progress("")
    # The first round warms everything up. What is due beside a step without anything is the trainer's own log.
    seen = {key: times[1:] for key, times in switch.seconds.items()}
    idle, logging = seen["off", False], seen["off", True]
    step = statistics.median(idle)
    found = []
    for name, members in CASES.items():
        if name == "off":
            continue
        every_step = statistics.median(b - a for a, b in zip(idle, seen[name, False], strict=False))
        when_due = (
            statistics.median(b - a for a, b in zip(logging, seen[name, True], strict=False)) - every_step
        )
        # With everything on, most of what is due is the spectra, measured less often than the others log.
        apart = MatrixSettings.monitor_steps if SpectraCallback in members else LOGGING_STEPS
        found.append({"case": name, "every_step": every_step, "when_due": when_due, "apart": apart})
    by_name = {row["case"]: row for row in found}
    logs = sum(by_name[name]["when_due"] for name in ("throughput", "lines in the terminal"))
    for row in found:
        added = row["every_step"] + row["when_due"] / row["apart"]
        if row["case"] == "all":
            added += logs * (1 / LOGGING_STEPS - 1 / row["apart"])
        row["ratio"] = 1 + added / step
    return found, step


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default="2m", help="a Llama of about that size (default 2m)"
    )
    parser.add_argument("--batch", type=positive, default=4, help="sequences (default 4)")
    parser.add_argument("--length", type=positive, default=256, help="tokens of each (default 256)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="wall time (default), or the process's CPU time, which a busy machine disturbs less",
    )
    parser.add_argument("--repeats", type=positive, default=15, help="timed rounds (default 15)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.device.type != "cpu":
        parser.error("--clock cpu does not see what a GPU does; use --clock wall")
    if options.length < 2:
        parser.error("--length must be at least 2: the first token has no label")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    about = machine(options.device)
    rows, step = measure(options)
    print("  ".join(f"{key} {value}" for key, value in about.items()), f" {options.dtype}")
    print(
        f"{options.shape}, batch {options.batch} × {options.length} tokens, {MatrixSettings.monitor_positions} positions in "
        f"a sample; a step without monitoring takes {milliseconds(step)} ms\n"
    )
    cells = [
        [
            row["case"],
            milliseconds(row["every_step"]),
            milliseconds(row["when_due"]),
            str(row["apart"]),
            f"{row['ratio']:.4f}",
        ]
        for row in rows
    ]
    print(table(["callback", "ms every step", "ms when due", "steps apart", "× step"], cells))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        record = {"machine": about, "settings": settings, "step_seconds": step, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
