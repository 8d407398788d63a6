"""The summary of an evaluation, counted from its items, and the table that is printed of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.eval.comparing.paired import mean_interval
from mce_llm.eval.copies import question_key
from mce_llm.eval.intervals import wilson_interval
from mce_llm.eval.items import Item
from mce_llm.eval.tasks import Task
from mce_llm.eval.votes import majority, pass_at
from mce_llm.eval.wording import accuracy_text, bounds_text, share_text
from mce_llm.running.installation import installed_versions
from mce_llm.running.messages import counted
from mce_llm.running.terminal import DataConsole
from mce_llm.running.visible_text import visible

CONFIDENCE = 0.95
PACKAGES = ("mce-llm", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "vllm")
"""What an accuracy can depend on."""
THINKING = "thinking"
"""The form of an answer that ended inside reasoning that was not closed."""
_LABELS = {
    "last_number": "found by last_number (fall-back)",
    "none": "no answer",
    THINKING: "no answer, still thinking",
}
"""Form of an answer → its row in the table, where that is not `found by FORM`."""


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
        skipped: Records of the data that were left out because their references cannot be judged by.
        copies: Questions that repeat the text of another; the interval takes each different question once, with the
            mean over its copies.
        still_thinking: Answers among those of `found_by` that ended inside reasoning that was not closed.
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
    skipped: int = 0
    still_thinking: int = 0
    copies: int = 0

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
    return Summary(
        **counted_from(task, items),
        seconds=seconds,
        tokens_per_second=(sum(item["new_tokens"] for item in items) - before) / max(seconds, 1e-9),
        versions=installed_versions(PACKAGES),
        **settings,
    )


def counted_from(task: Task, items: Sequence[Item]) -> dict[str, Any]:
    """Return the fields of `Summary` that follow from the items alone.

    Args:
        task: What was asked.
        items: The lines of `items.jsonl`, one at least, with as many samples of each question.
    """
    by_question: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_question[item["index"]].append(item)
    questions = list(by_question.values())
    n, num_samples = len(questions), len(questions[0])
    corrects = [sum(item["correct"] for item in question) for question in questions]
    distinct: dict[str, list[float]] = defaultdict(list)  # copies are one observation, with their mean
    for question, right in zip(questions, corrects, strict=True):
        distinct[question_key(question[0]["question"])].append(right / num_samples)
    means = [sum(scores) / len(scores) for scores in distinct.values()]
    several = num_samples > 1
    vote = asdict(majority(questions, task.vote)) if several else None
    if vote is not None:
        vote["interval"] = list(wilson_interval(round(vote["accuracy"] * n), n, CONFIDENCE))
    return {
        "task": task.name,
        "n": n,
        "num_samples": num_samples,
        "correct": sum(corrects),
        "accuracy": sum(corrects) / len(items),
        "confidence": CONFIDENCE,
        "interval": (
            wilson_interval(means.count(1), len(means), CONFIDENCE)
            if set(means) <= {0, 1} and not several
            else _interval_of_means(means)
        ),
        "majority": vote,
        "pass_at": pass_at(corrects, num_samples) if several else None,
        "found_by": dict(Counter(item["found_by"] for item in items).most_common()),
        "correct_by": dict(Counter(item["found_by"] for item in items if item["correct"]).most_common()),
        "truncated": sum(item["finished"] == "length" for item in items) / len(items),
        "copies": n - len(means),
        "still_thinking": sum(item["found_by"] == THINKING for item in items),
        "new_tokens": sum(item["new_tokens"] for item in items),
    }


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
        title=Text(
            visible(f"{title}: {summary.model} on {summary.data} ({summary.split})", one_line=True),
            style="italic",
        ),
        show_header=False,
        title_justify="left",
    )
    of = (
        f"{summary.correct} of {summary.n}"
        if summary.num_samples == 1
        else (f"mean of {summary.n} questions × {summary.num_samples} answers")
    )
    table.add_row("accuracy", f"{accuracy_text(summary.accuracy)}  ({of})")
    table.add_row(f"{summary.confidence:.0%} interval", bounds_text(summary.interval))
    if summary.copies:
        repeated = counted(summary.copies, "question")
        table.add_row("copies", f"{repeated} ask what another asks; the interval takes each once")
    if summary.majority is not None and summary.pass_at is not None:
        vote = summary.majority
        table.add_row(
            f"maj@{vote['k']}",
            f"{accuracy_text(vote['accuracy'])}  ({vote['ties']} ties, by lot; {vote['no_votes']} without an answer)",
        )
        for k, value in summary.pass_at.items():
            table.add_row(f"pass@{k}", accuracy_text(value))
    for form, count in summary.found_by.items():
        label = _LABELS.get(form, f"found by {form}")
        table.add_row(label, f"{count}, {summary.correct_by.get(form, 0)} correct")
    if summary.skipped:
        table.add_row(
            "left out", f"{counted(summary.skipped, 'question')}, for references that cannot be judged by"
        )
    table.add_row("cut off", f"{share_text(summary.truncated)} at {summary.max_new_tokens} new tokens")
    table.add_row(
        "time", f"{summary.seconds:.1f} s, {summary.tokens_per_second:.0f} tokens/s, {summary.batching}"
    )
    if summary.continued:
        table.add_row("kept from before", f"{summary.continued} answers")
    console = console or DataConsole()
    console.print(table)
    console.print(visible(f"written to {path}", one_line=True), soft_wrap=True, highlight=False, markup=False)
