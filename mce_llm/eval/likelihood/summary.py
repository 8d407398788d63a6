"""The summary of a likelihood evaluation, pooled from its items, and the table that is printed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.eval.copies import question_key
from mce_llm.eval.items import Item
from mce_llm.eval.likelihood.items import calibration_errors, pooled_groups
from mce_llm.eval.wording import share_text
from mce_llm.running.messages import counted
from mce_llm.running.terminal import DataConsole
from mce_llm.running.visible_text import visible

TASK = "likelihood"


@dataclass(frozen=True)
class LikelihoodSummary:
    """The outcome of a likelihood evaluation; `summary.json` holds these fields.

    Attributes:
        task: likelihood.
        n: Questions.
        groups: As `items.pooled_groups` gives them: group → tokens, nats, nats_per_token, perplexity, top1, entropy.
        calibration_error: Group → expected calibration error of its tokens.
        copies: Questions that repeat the text of another.
        continued: Questions that earlier launches had scored.
        seconds: Wall-clock time of this launch's scoring, the slowest process included.
        tokens_per_second: Scored tokens of this launch a second.
        model: The model that was evaluated.
        data: Where the questions came from.
        split: The split of the data.
        prompt: The name of the prompt.
        dtype: The precision that the weights had.
        batch_tokens: The most tokens of a batch on each process.
        processes: How many processes shared the work.
        hashes: Of prompt, data, scoring and model.
        versions: Package → version.
        skipped: Records that were left out: references without a final answer, or too long.
    """

    task: str
    n: int
    groups: dict[str, dict[str, Any]]
    calibration_error: dict[str, float | None]
    copies: int
    continued: int
    seconds: float
    tokens_per_second: float
    model: str
    data: str
    split: str
    prompt: str
    dtype: str
    batch_tokens: int
    processes: int
    hashes: dict[str, str]
    versions: dict[str, str]
    skipped: int = 0


def pooled_from(items: Sequence[Item]) -> dict[str, Any]:
    """Return the fields of `LikelihoodSummary` that follow from the items alone.

    Args:
        items: The lines of `items.jsonl`, one at least.
    """
    return {
        "task": TASK,
        "n": len(items),
        "groups": pooled_groups(items),
        "calibration_error": calibration_errors(items),
        "copies": len(items) - len({question_key(item["question"]) for item in items}),
    }


def summarize_likelihood(
    items: Sequence[Item], seconds: float, before: Sequence[Item], settings: Mapping[str, Any]
) -> LikelihoodSummary:
    """Pool the questions.

    Args:
        items: The lines of `items.jsonl`, one at least.
        seconds: How long the scoring took.
        before: The lines that earlier launches had left.
        settings: The fields of the summary that are not counted: model, data, split, and so on.

    Returns:
        The summary.
    """
    done = sum(item["groups"]["all"]["tokens"] for item in items) - sum(
        item["groups"]["all"]["tokens"] for item in before
    )
    return LikelihoodSummary(
        **pooled_from(items), seconds=seconds, tokens_per_second=done / max(seconds, 1e-9), **settings
    )


def print_likelihood(
    summary: LikelihoodSummary, title: str, path: Path, console: Console | None = None
) -> None:
    """Print a small table of an outcome and where it was written.

    Args:
        summary: The outcome.
        title: What the data are called.
        path: The output directory.
        console: Where to print; by default stdout.
    """
    table = Table(
        title=Text(
            visible(f"{title}: {summary.model} on {summary.data} ({summary.split})", one_line=True),
            style="italic",
        ),
        title_justify="left",
        caption=Text(_caption(summary)),
        caption_justify="left",
    )
    table.add_column("tokens")
    for name in ("count", "nats each", "perplexity", "top-1", "entropy", "ECE"):
        table.add_column(name, justify="right")
    for name, group in summary.groups.items():
        table.add_row(name, *_cells(group, summary.calibration_error.get(name)))
    console = console or DataConsole()
    console.print(table)
    console.print(visible(f"written to {path}", one_line=True), soft_wrap=True, highlight=False, markup=False)


def _cells(group: Mapping[str, Any], calibration_error: float | None) -> list[str]:
    if not group["tokens"]:
        return ["0"]
    return [
        f"{group['tokens']:,}",
        f"{group['nats_per_token']:.4f}",
        "–" if group["perplexity"] is None else f"{group['perplexity']:.4g}",
        share_text(group["top1"], 2),
        f"{group['entropy']:.4f}",
        "" if calibration_error is None else share_text(calibration_error, 2),
    ]


def _caption(summary: LikelihoodSummary) -> str:
    parts = [
        counted(summary.n, "question"),
        f"{summary.seconds:.1f} s, {summary.tokens_per_second:.0f} tokens/s",
    ]
    if summary.continued:
        parts.append(f"{summary.continued} kept from before")
    if summary.skipped:
        parts.append(f"{summary.skipped} left out")
    if summary.copies:
        parts.append(f"{summary.copies} ask what another asks")
    return "; ".join(parts)
