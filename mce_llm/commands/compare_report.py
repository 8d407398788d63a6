"""A comparison of evaluations as people read it at a terminal: tables, notes, and at the end what may be concluded."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.commands.tables import plain_table, print_heading
from mce_llm.eval.comparing.comparison_outcome import Comparison, PairComparison, QuestionOutcome
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.eval.intervals import Interval
from mce_llm.eval.items import TASK_TITLES


def print_comparison(comparison: Comparison, console: Console, *, listed: int = 5) -> None:
    """Print a comparison.

    Args:
        comparison: The outcome of `compare_runs`.
        console: Where to.
        listed: Questions won and lost to show, of each so many.
    """
    for note in comparison.notes:
        if note.level == "warning":
            console.print(Text(f"WARNING: {note.text}", style="bold red"))
    console.print(_accuracies(comparison))
    if comparison.seeds:
        print_heading(console, "B minus A, pair by pair")
        console.print(_pairs_table(comparison))
        print_heading(console, f"B minus A over {comparison.seeds.seeds} training seeds")
        console.print(_seeds_table(comparison))
    else:
        print_heading(console, "B minus A")
        console.print(_pair_table(comparison))
    print_heading(console, "what this could have found")
    console.print(_detectable_table(comparison))
    if listed and comparison.questions:
        _print_questions(comparison, console, listed)
    notes = [note for note in comparison.notes if note.level == "note"]
    if notes:
        print_heading(console, "notes")
        for note in notes:
            console.print(Text(f"- {note.text}"))
    console.print()
    console.print(Text(comparison.verdict, style="bold"))


def _accuracies(comparison: Comparison) -> Table:
    samples = max(run.num_samples for pair in comparison.pairs for run in (pair.a, pair.b))
    sampled = f", up to {samples} samples each" if samples > 1 else ""
    table = Table(
        title=f"{TASK_TITLES.get(comparison.task, comparison.task)}, {comparison.n:,} questions{sampled}",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("run", overflow="fold")
    table.add_column("right", justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column(f"{percent(comparison.confidence)} interval", justify="right", no_wrap=True)
    for place, pair in enumerate(comparison.pairs, start=1):
        for side, run in (("A", pair.a), ("B", pair.b)):
            name = f"{side}{place}" if comparison.seeds else side
            low, high = run.interval
            right = f"{run.correct:,}/{run.n * run.num_samples:,}"
            interval = f"{100 * low:.1f} to {100 * high:.1f} %"
            last = side == "B" and place < len(comparison.pairs)
            table.add_row(name, Text(run.label), right, f"{run.accuracy:.2%}", interval, end_section=last)
    table.caption = "Wilson's intervals" if samples == 1 else "Student's intervals, over questions"
    table.caption_justify = "left"
    return table


def _pair_table(comparison: Comparison) -> Table:
    (pair,) = comparison.pairs
    table = plain_table()
    table.add_row("difference", _difference(pair.difference, pair.interval, comparison.confidence))
    table.add_row("", Text(f"{pair.interval_method}, for these two trained models", style="dim"))
    table.add_row(
        "bootstrap", f"{_bounds(comparison.bootstrap)} ({comparison.resamples:,} drawings of questions)"
    )
    table.add_row(pair.test, p_text(pair.p_value))
    if pair.counts is None:
        table.add_row("scores differ", f"on {round(pair.discordance * pair.a.n):,} questions")
    else:
        for name, count in _counts(pair):
            table.add_row(name, f"{count:,}")
    return table


def _pairs_table(comparison: Comparison) -> Table:
    """One line for each pair."""
    test, method = comparison.pairs[0].test, comparison.pairs[0].interval_method
    table = Table()
    table.add_column("pair", justify="right", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column(f"{percent(comparison.confidence)} interval", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for name in [name for name, _ in _counts(comparison.pairs[0])] or ["scores differ"]:
        table.add_column(name, justify="right")
    for number, pair in enumerate(comparison.pairs, start=1):
        counts = [count for _, count in _counts(pair)] or [round(pair.discordance * pair.a.n)]
        table.add_row(
            str(number),
            points(pair.difference, sign=True),
            _bounds(pair.interval),
            p_text(pair.p_value).removeprefix("p ").removeprefix("= "),
            *(f"{count:,}" for count in counts),
        )
    table.caption = f"{method} and {test}, each for its two trained models alone"
    table.caption_justify = "left"
    return table


def _counts(pair: PairComparison) -> list[tuple[str, int]]:
    if pair.counts is None:
        return []
    counts = pair.counts
    return [
        ("both right", counts.both),
        ("only A right", counts.only_a),
        ("only B right", counts.only_b),
        ("both wrong", counts.neither),
    ]


def _seeds_table(comparison: Comparison) -> Table:
    seeds = comparison.seeds
    assert seeds is not None
    table = plain_table()
    each = ", ".join(points(value, sign=True) for value in seeds.differences)
    table.add_row("each seed", f"{each} points")
    table.add_row(
        "seed to seed",
        f"sd {points(seeds.sd)} points; single answers alone give {points(seeds.sd_by_chance)}",
    )
    table.add_row(
        "mean difference", _difference(comparison.difference, comparison.interval, comparison.confidence)
    )
    table.add_row("", Text(comparison.interval_method, style="dim"))
    table.add_row("plain bootstrap", _bounds(comparison.bootstrap))
    count = seeds.seeds
    explained = (
        f"seeds and questions drawn anew, {comparison.resamples:,} times; too narrow where seeds differ: {count} "
        f"drawn from {count} show {count - 1}/{count} of their variance, and percentiles know no t quantile"
    )
    table.add_row("", Text(explained, style="dim"))
    table.add_row(
        "pairing", Text("by position: A1 with B1, A2 with B2, …, the same seed in each", style="dim")
    )
    return table


def _detectable_table(comparison: Comparison) -> Table:
    found, power = comparison.detectable, percent(comparison.detectable.power)
    table = plain_table()
    least = (
        "none: too few questions are answered unlike"
        if found.difference is None
        else f"{points(found.difference)} points, found with probability {power}"
    )
    table.add_row("least difference", least)
    if comparison.difference:
        have = comparison.seeds.seeds if comparison.seeds else comparison.n
        needed = (
            f"no number of {found.unit}" if found.needed is None else f"about {found.needed:,} {found.unit}"
        )
        size = points(abs(comparison.difference))
        table.add_row("needed", f"{needed} (here: {have:,}) to find a true difference of {size} points")
    table.add_row(
        "by", Text(f"{found.method}, α = {found.alpha:g}; the rest as it was seen here", style="dim")
    )
    return table


def _print_questions(comparison: Comparison, console: Console, listed: int) -> None:
    for what, questions in (("won", comparison.won), ("lost", comparison.lost)):
        shown = questions[:listed]
        more = f" (the first {len(shown)})" if len(shown) < len(questions) else ""
        print_heading(console, f"{len(questions):,} question{'s' * (len(questions) != 1)} {what} by B{more}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("no.", justify="right", no_wrap=True)
        if comparison.seeds:
            table.add_column("won, lost", no_wrap=True)
        table.add_column("A", no_wrap=True)
        table.add_column("B", no_wrap=True)
        table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        for outcome in shown:
            tally = [f"{outcome.won}, {outcome.lost}"] if comparison.seeds else []
            text = Text(" ".join(outcome.question.split()))
            table.add_row(str(outcome.index + 1), *tally, *_answers(outcome), text)
        if shown:
            console.print(table)


def _answers(outcome: QuestionOutcome) -> list[Text]:
    """What A and B answered in the first pair in which their scores differ."""
    place = next(n for n, (a, b) in enumerate(zip(outcome.a, outcome.b, strict=True)) if a != b)
    answers = (outcome.predicted_a[place], outcome.predicted_b[place])
    return [
        Text("none" if text is None else text if len(text) <= 12 else f"{text[:11]}…") for text in answers
    ]


def _bounds(interval: Interval) -> str:
    return f"{points(interval.low, sign=True)} to {points(interval.high, sign=True)}"


def _difference(difference: float, interval: Interval, confidence: float) -> str:
    bounds = f"{percent(confidence)} interval {_bounds(interval)}"
    return f"{points(difference, sign=True)} points, {bounds}"
