"""The summary of an evaluation, counted from its items, and the table that is printed of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mce_llm.eval.comparing.paired import mean_interval
from mce_llm.eval.intervals import wilson_interval
from mce_llm.eval.items import Item
from mce_llm.eval.tasks import Task
from mce_llm.eval.votes import majority, pass_at
from mce_llm.running.installation import installed_versions

CONFIDENCE = 0.95
PACKAGES = ("mce-llm", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "vllm")
"""What an accuracy can depend on."""


@dataclass(frozen=True)
class Summary:
    """The outcome of an evaluation; `summary.json` holds these fields.

    Attributes:
        task: gsm8k or math.
        n: Questions.
        num_samples: Answers to each.
        correct: Right answers, those found by the fall-back included.
        accuracy: correct / (n · num_samples).
        confidence: The coverage of `interval`.
        interval: For the accuracy on questions like these: Wilson's with one sample a question; with several, Student's
            for the mean over questions.
        majority: With several samples, the vote of all of them: `votes.Majority` and its `interval`; else None.
        pass_at: With several samples, k → pass@k; else None.
        found_by: Form of the answer → how many were found by it.
        correct_by: Form of the answer → how many of these were right.
        truncated: The share of answers cut off at `max_new_tokens`.
        new_tokens: Tokens of all answers.
        continued: Answers that earlier launches had left.
        seconds: Wall-clock time of this launch's generation, the slowest process included.
        tokens_per_second: Tokens of this launch a second.
        model: The model that was evaluated.
        data: Where the questions came from.
        split: The split of the data.
        prompt: The name of the prompt.
        dtype: The precision that the weights had.
        max_new_tokens: The limit on an answer.
        backend: hf or vllm.
        batching: How batches were filled.
        batch_size: Prompts at a time on each process.
        processes: How many processes shared the work.
        hashes: Of prompt, data, decoding and model.
        versions: Package → version.
    """

    task: str
    n: int
    num_samples: int
    correct: int
    accuracy: float
    confidence: float
    interval: tuple[float, float]
    majority: dict[str, Any] | None
    pass_at: dict[str, float] | None
    found_by: dict[str, int]
    correct_by: dict[str, int]
    truncated: float
    new_tokens: int
    continued: int
    seconds: float
    tokens_per_second: float
    model: str
    data: str
    split: str
    prompt: str
    dtype: str
    max_new_tokens: int
    backend: str
    batching: str
    batch_size: int
    processes: int
    hashes: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """Make a summary of what `summary.json` holds."""
        return cls(**{**content, "interval": tuple(content["interval"])})


def summarize(
    task: Task, items: Sequence[Item], seconds: float, before: int, settings: Mapping[str, Any]
) -> Summary:
    """Count the right answers.

    Args:
        task: What was asked.
        items: The lines of `items.jsonl`, one at least.
        seconds: How long the generation took.
        before: Tokens that earlier launches had generated.
        settings: The fields of `Summary` that are not counted: model, data, split, and so on.

    Returns:
        The summary.
    """
    by_question: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_question[item["index"]].append(item)
    questions = list(by_question.values())
    n, num_samples = len(questions), len(questions[0])
    corrects = [sum(item["correct"] for item in question) for question in questions]
    tokens = sum(item["new_tokens"] for item in items)
    several = num_samples > 1
    vote = asdict(majority(questions, task.vote)) if several else None
    if vote is not None:
        vote["interval"] = list(wilson_interval(round(vote["accuracy"] * n), n, CONFIDENCE))
    return Summary(
        task=task.name,
        n=n,
        num_samples=num_samples,
        correct=sum(corrects),
        accuracy=sum(corrects) / len(items),
        confidence=CONFIDENCE,
        interval=(
            _interval_of_means([correct / num_samples for correct in corrects])
            if several
            else wilson_interval(corrects.count(1), n, CONFIDENCE)
        ),
        majority=vote,
        pass_at=pass_at(corrects, num_samples) if several else None,
        found_by=dict(Counter(item["found_by"] for item in items).most_common()),
        correct_by=dict(Counter(item["found_by"] for item in items if item["correct"]).most_common()),
        truncated=sum(item["finished"] == "length" for item in items) / len(items),
        new_tokens=tokens,
        seconds=seconds,
        tokens_per_second=(tokens - before) / max(seconds, 1e-9),
        versions=installed_versions(PACKAGES),
        **settings,
    )


def _interval_of_means(means: Sequence[float]) -> tuple[float, float]:
    """Samples of one question are not independent of each other: the questions' means are."""
    if len(means) == 1:
        return 0.0, 1.0
    low, high = mean_interval(means, CONFIDENCE)
    return max(0.0, low), min(1.0, high)


def print_summary(summary: Summary, title: str, path: Path, console: Console | None = None) -> None:
    """Print a small table of an outcome and where it was written.

    Args:
        summary: The outcome.
        title: What the task is called.
        path: The output directory.
        console: Where to print; by default stdout.
    """
    table = Table(
        title=f"{title}: {summary.model} on {summary.data} ({summary.split})",
        show_header=False,
        title_justify="left",
    )
    low, high = summary.interval
    of = (
        f"{summary.correct} of {summary.n}"
        if summary.num_samples == 1
        else (f"mean of {summary.n} questions × {summary.num_samples} answers")
    )
    table.add_row("accuracy", f"{summary.accuracy:.2%}  ({of})")
    table.add_row(f"{summary.confidence:.0%} interval", f"{low:.2%} to {high:.2%}")
    if summary.majority is not None and summary.pass_at is not None:
        vote = summary.majority
        table.add_row(
            f"maj@{vote['k']}",
            f"{vote['accuracy']:.2%}  ({vote['ties']} ties, by lot; {vote['no_votes']} without an answer)",
        )
        for k, value in summary.pass_at.items():
            table.add_row(f"pass@{k}", f"{value:.2%}")
    for form, count in summary.found_by.items():
        name = f"{form} (fall-back)" if form == "last_number" else form
        table.add_row(f"found by {name}", f"{count}, {summary.correct_by.get(form, 0)} correct")
    table.add_row("cut off", f"{summary.truncated:.1%} at {summary.max_new_tokens} new tokens")
    table.add_row(
        "time", f"{summary.seconds:.1f} s, {summary.tokens_per_second:.0f} tokens/s, {summary.batching}"
    )
    if summary.continued:
        table.add_row("kept from before", f"{summary.continued} answers")
    console = console or Console()
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True, highlight=False)
