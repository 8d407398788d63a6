"""The quickstart's table and picture, from the files that its runs left behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mce_llm.eval.wording import accuracy_text, bounds_text

_COLOURS = ("#888888", "#1f77b4", "#d95f02")
_PANELS = (
    ("eval_ce_loss", "held-out CE (nats/token)"),
    ("eval_mce_loss", "held-out MCE (nats/token)"),
    ("eval_hidden_effective_rank", "effective rank of hidden states"),
)


@dataclass(frozen=True)
class RunResult:
    """What one run measured.

    Attributes:
        title: Name in the table.
        correct: Questions answered right.
        n: Questions asked.
        interval: Wilson's 95 % interval of the accuracy.
        cross_entropy: Held-out CE, nats a token.
        matrix_cross_entropy: Held-out MCE, nats a token.
        effective_rank: Of the hidden states that predict held-out tokens.
        step_seconds: Mean wall-clock time of a training step, evaluations left out.
        history: Logged evaluations, step → metrics.
        training: Logged training steps, the same.
    """

    title: str
    correct: int
    n: int
    interval: tuple[float, float]
    cross_entropy: float
    matrix_cross_entropy: float
    effective_rank: float
    step_seconds: float
    history: list[dict[str, Any]]
    training: list[dict[str, Any]]

    @classmethod
    def read(cls, title: str, folder: Path) -> RunResult:
        """Collect one run from its output directory."""
        summary = _read(folder / "eval" / "summary.json")
        final = _read(folder / "eval_results.json")
        state = _read(folder / "trainer_state.json")
        train = _read(folder / "train_results.json")
        history = [entry for entry in state["log_history"] if "eval_ce_loss" in entry]
        within = sum(entry["eval_runtime"] for entry in history[:-1])  # the last one came after training
        return cls(
            title=title,
            correct=summary["correct"],
            n=summary["n"],
            interval=(summary["interval"][0], summary["interval"][1]),
            cross_entropy=final["eval_ce_loss"],
            matrix_cross_entropy=final["eval_mce_loss"],
            effective_rank=final["eval_hidden_effective_rank"],
            step_seconds=(train["train_runtime"] - within) / state["global_step"],
            history=history,
            training=[entry for entry in state["log_history"] if "ce_loss" in entry],
        )


def print_table(results: list[RunResult], console: Console, chance: tuple[str, float]) -> None:
    """One line a run; below it how good guessing would be (`chance`: the guess, and its accuracy)."""
    title = f"accuracy on {results[0].n} unseen problems; CE and MCE on held-out solutions, nats/token"
    table = Table(title=title, title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("accuracy", "95 % interval", "CE", "MCE", "eff. rank", "s/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in results:
        low, high = run.interval
        table.add_row(
            run.title,
            accuracy_text(run.correct / run.n),
            bounds_text((low, high)),
            f"{run.cross_entropy:.4f}",
            f"{run.matrix_cross_entropy:.4f}",
            f"{run.effective_rank:.1f}",
            f"{run.step_seconds:.3f}",
        )
    console.print(table)
    console.print(
        f"Always answering {chance[0]}, the most common answer in training, is right on {accuracy_text(chance[1])}."
    )
    console.print(
        "One seed and a toy task: this run does not tell which loss is better, whatever the accuracies.",
        style="dim",
    )


def draw(results: list[RunResult], path: Path) -> Path:
    """Draw what one run of each loss can show: how losses and effective rank move while it trains.

    Accuracies are left to the table, where their intervals stand beside them: one seed of each does not rank the losses.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    base = results[0]
    for run, colour in list(zip(results, _COLOURS, strict=True))[1:]:
        steps = [entry["step"] for entry in run.training]
        losses = [entry["ce_loss"] for entry in run.training]
        grid[0, 0].plot(steps, losses, label=run.title, color=colour)
        for axis, (name, _) in zip(grid.flatten()[1:], _PANELS, strict=True):
            points = [(0, base.history[-1][name]), *((e["step"], e[name]) for e in run.history)]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=run.title, color=colour)
    for axis, label in zip(
        grid.flatten(), ("training CE (nats/token)", *dict(_PANELS).values()), strict=True
    ):
        axis.set_title(label)
        axis.set_xlabel("fine-tuning step (0: base model)")
        axis.grid(alpha=0.25)
    grid[0, 0].legend(frameon=False)
    figure.suptitle("one seed of each loss", fontsize="medium")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
