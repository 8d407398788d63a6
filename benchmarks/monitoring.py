"""What each monitoring callback adds to a training step, on and off in one run.

    python benchmarks/monitoring.py --shape 2m --batch 4 --length 256
    python benchmarks/monitoring.py --device cuda --shape 7b --batch 1 --length 4096 --dtype bfloat16 --repeats 5

One `MatrixTrainer` trains throughout; every two steps other callbacks are in force. A callback costs something in
every step and more in the steps in which it has something to do (a log, a measurement of spectra); the second is spread over as
many steps as lie between two of them at the default settings. "Inside" is the time between entering and leaving the
callbacks and the observer in the model's head, device included, against the step without monitoring. "On/off" compares
whole steps, as the median over the rounds of the difference to the step without in the same round; it would also show
what a callback slows down elsewhere, and is as uncertain as two whole steps are.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import DTYPES, device_argument, machine, milliseconds, positive, progress, synchronize, table
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
from mce_llm.lm.training.monitoring.head_sample import HeadSample

LOGGING_STEPS = 10  # as in the recipes; the callbacks that log do so at each
CASES = {
    "off": (),
    "throughput": (ThroughputCallback,),
    "spectra": (SpectraCallback,),
    "lines in the terminal": (PlainLinesCallback,),
    "all": (ThroughputCallback, SpectraCallback, PlainLinesCallback, ChartsCallback),
}
ALL = CASES["all"]
# Optimizer steps between two times that something is due; LOGGING_STEPS for all others.
APART = {"spectra": MatrixSettings.monitor_steps}
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


class Stopwatch:
    """Time spent inside of wrapped functions, however they call one another.

    Args:
        clock: A name in `CLOCKS`.
        device: Which has to be done before either end.
    """

    def __init__(self, clock: str, device: torch.device) -> None:
        self._read, self._device, self._depth, self._inside = CLOCKS[clock], device, 0, 0.0

    def now(self) -> float:
        """The time, when the device is done."""
        synchronize(self._device)
        return self._read()

    def take(self) -> float:
        """Seconds inside since the last call."""
        inside, self._inside = self._inside, 0.0
        return inside

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now() if self._depth == 0 else 0.0
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._inside += self.now() - begin

        return timed


class Switch(TrainerCallback):
    """Puts one case after another in force and times its steps; comes before the callbacks that it switches.

    Each case is in force for two steps: one in which nothing is due, and one in which everything is that can be.
    """

    def __init__(self, trainer: MatrixTrainer, rounds: int, clock: str) -> None:
        self._trainer, self._rounds = trainer, rounds
        self._watch = Stopwatch(clock, trainer.args.device)
        self._callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, ALL)]
        for callback in self._callbacks:
            for event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
                setattr(callback, event, self._watch.around(getattr(callback, event)))
        HeadSample.__call__ = self._watch.around(HeadSample.__call__)  # type: ignore[method-assign]
        # (case, due) → seconds of whole steps, and of those inside the callbacks.
        self.steps: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self.inside: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self._begun: tuple[str, bool, float] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the times of the step before and choose what is in force in this one."""
        now, inside = self._watch.now(), self._watch.take()
        if self._begun is not None:
            name, due, begin = self._begun
            self.steps[name, due].append(now - begin)
            self.inside[name, due].append(inside)
        block, offset = divmod(state.global_step, 2)
        round_number, case = divmod(block, len(CASES))
        name = list(CASES)[case]
        progress(f"round {round_number}/{self._rounds}: {name}")
        handler = self._trainer.callback_handler
        if offset == 0:
            others = [c for c in handler.callbacks if not isinstance(c, ALL)]
            handler.callbacks[:] = others + [c for c in self._callbacks if isinstance(c, CASES[name])]
        # Steps count from 1, and what is logged and measured is due at even ones: see `measure`.
        self._begun = (name, offset == 1, self._watch.now())


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
        trainer = MatrixTrainer(
            model=model, args=args, train_dataset=Rows(model.config.vocab_size, options.length)
        )
        switch = Switch(trainer, options.repeats, options.clock)
        trainer.callback_handler.callbacks.insert(0, switch)
        trainer.train()
    progress("")
    for times in (switch.steps, switch.inside):
        for seconds in times.values():
            del seconds[0]  # the first round warms everything up
    step = statistics.median(switch.steps["off", False])
    rows = []
    for name in CASES:
        if name == "off":
            continue
        inside = [statistics.median(switch.inside[name, due]) for due in (False, True)]
        outside = [
            statistics.median(
                b - a for a, b in zip(switch.steps["off", due], switch.steps[name, due], strict=False)
            )
            for due in (False, True)
        ]
        rows.append({"case": name, "inside": inside, "outside": outside})
    return [{**row, **ratios(row, rows, step)} for row in rows], step


def ratios(row: dict[str, Any], rows: list[dict[str, Any]], step: float) -> dict[str, float]:
    """What a case makes of a step at the default settings, from (nothing due, everything due)."""
    found = {}
    for key in ("inside", "outside"):
        each, due = row[key][0], row[key][1] - row[key][0]
        added = each + due / APART.get(row["case"], LOGGING_STEPS)
        if row["case"] == "all":  # what logs costs little and is due often, the rest is the other way round
            logs = sum(
                other[key][1] - other[key][0] for other in rows if other["case"] not in ("all", "spectra")
            )
            added = each + logs / LOGGING_STEPS + (due - logs) / APART["spectra"]
        found[f"{key}_ratio"] = 1 + added / step
    return found


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
            f"{1e3 * row['inside'][0]:.2f}",
            f"{1e3 * row['inside'][1]:.2f}",
            f"{row['inside_ratio']:.4f}",
            f"{row['outside_ratio']:.3f}",
        ]
        for row in rows
    ]
    print(table(["callback", "ms inside", "ms inside when due", "× step", "× step, on/off"], cells))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        record = {"machine": about, "settings": settings, "step_seconds": step, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
