"""A comparison of evaluations as people read it at a terminal: tables, notes, and at the end what may be concluded."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.commands.tables import plain_table, print_heading, print_notes, print_warnings
from mce_llm.eval.comparing.comparison_outcome import Comparison, PairComparison, QuestionOutcome
from mce_llm.eval.comparing.training_differences import TrainingOverview
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.eval.intervals import Interval
from mce_llm.eval.wording import accuracy_text, bounds_text
from mce_llm.running.messages import counted
from mce_llm.running.visible_text import visible

_COUNTS = ("both right", "only {0} right", "only {1} right", "both wrong")


def print_comparison(comparison: Comparison, console: Console, *, listed: int = 5) -> None:
    """Print a comparison.

    Args:
        comparison: The outcome of `compare_runs`.
        console: Where to.
        listed: Questions won and lost to show, of each so many.
    """
    print_warnings(comparison.notes, console)
    console.print(_accuracies(comparison))
    print_trainings(comparison.trainings, console)
    named = f" ({visible(comparison.name, one_line=True)})" if comparison.name else ""
    minus = f"{comparison.sides[1]}{named} minus {comparison.sides[0]}"
    if comparison.seeds:
        print_heading(console, f"{minus}, pair by pair")
        console.print(_pairs_table(comparison))
        print_heading(console, f"{minus} over {comparison.seeds.seeds} training seeds")
        console.print(_seeds_table(comparison))
    else:
        print_heading(console, minus)
        console.print(_pair_table(comparison))
    print_heading(console, "what this could have found")
    console.print(_detectable_table(comparison))
    if listed and comparison.questions:
        _print_questions(comparison, console, listed)
    print_notes(comparison.notes, console)
    console.print()
    console.print(Text(comparison.verdict, style="bold"))


def print_trainings(overview: TrainingOverview, console: Console) -> None:
    """Print in what the trainings differ, a column a run, and which are not known."""
    print_heading(console, "in what the trainings differ")
    if overview.missing is not None:
        console.print(Text(visible(overview.missing, one_line=True)))
    if len(overview.runs) < 2:
        return
    if not overview.settings:
        console.print("in nothing that was recorded")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    table.add_column("", no_wrap=True)
    for label in overview.runs:
        table.add_column(Text(visible(label, one_line=True)), overflow="fold")
    for setting in overview.settings:
        cells = [Text(visible(value, one_line=True)) for value in setting.values]
        name = Text(visible(setting.name, one_line=True))
        kind = Text("beside the method", style="bold red") if setting.kind == "other" else Text(setting.kind)
        table.add_row(name, kind, *cells)
    console.print(table)


def _accuracies(comparison: Comparison) -> Table:
    samples = max(run.num_samples for pair in comparison.pairs for run in (pair.a, pair.b))
    sampled = f", up to {samples} samples each" if samples > 1 else ""
    copies = f" ({comparison.asked:,} with copies)" if comparison.asked > comparison.n else ""
    questions = counted(comparison.n, "different question" if copies else "question")
    title = f"{visible(comparison.title, one_line=True)}, {questions}{copies}{sampled}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    table.add_column("run", overflow="fold")
    table.add_column("right", justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column(f"{percent(comparison.confidence)} interval", justify="right", no_wrap=True)
    for place, pair in enumerate(comparison.pairs, start=1):
        for side, run in zip(comparison.sides, (pair.a, pair.b), strict=True):
            name = f"{side}{place}" if comparison.seeds else side
            last = run is pair.b and place < len(comparison.pairs)
            table.add_row(
                name,
                Text(visible(run.label, one_line=True)),
                run.right.replace(" of ", "/"),
                accuracy_text(run.accuracy),
                bounds_text(run.interval),
                end_section=last,
            )
    wilson = all(pair.counts is not None for pair in comparison.pairs)
    table.caption = "Wilson's intervals" if wilson else "Student's intervals, over questions"
    table.caption_justify = "left"
    return table


def _pair_table(comparison: Comparison) -> Table:
    (pair,) = comparison.pairs
    table = plain_table()
    table.add_row("difference", difference_text(pair.difference, pair.interval, comparison.confidence))
    table.add_row("", Text(f"{pair.interval_method}, for these two trained models", style="dim"))
    table.add_row(
        "bootstrap", f"{interval_text(comparison.bootstrap)} ({comparison.resamples:,} drawings of questions)"
    )
    table.add_row(pair.test, p_text(pair.p_value))
    if pair.counts is None:
        table.add_row("scores differ", f"on {round(pair.discordance * pair.a.n):,} questions")
    else:
        for name, count in _counts(pair, comparison.sides):
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
    counted_all = all(pair.counts is not None for pair in comparison.pairs)
    for name in _COUNTS if counted_all else ["scores differ"]:
        name = name.format(*comparison.sides)
        table.add_column(name, justify="right")
    for number, pair in enumerate(comparison.pairs, start=1):
        counts = (
            [count for _, count in _counts(pair, comparison.sides)]
            if counted_all
            else [round(pair.discordance * pair.a.n)]
        )
        table.add_row(
            str(number),
            points(pair.difference, sign=True),
            interval_text(pair.interval),
            p_text(pair.p_value).removeprefix("p ").removeprefix("= "),
            *(f"{count:,}" for count in counts),
        )
    table.caption = f"{method} and {test}, each for its two trained models alone"
    table.caption_justify = "left"
    return table


def _counts(pair: PairComparison, sides: tuple[str, str]) -> list[tuple[str, int]]:
    if pair.counts is None:
        return []
    counts = pair.counts
    values = (counts.both, counts.only_a, counts.only_b, counts.neither)
    return [(name.format(*sides), count) for name, count in zip(_COUNTS, values, strict=True)]


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
        "mean difference", difference_text(comparison.difference, comparison.interval, comparison.confidence)
    )
    table.add_row("", Text(comparison.interval_method, style="dim"))
    table.add_row("plain bootstrap", interval_text(comparison.bootstrap))
    count = seeds.seeds
    explained = (
        f"seeds and questions drawn anew, {comparison.resamples:,} times; too narrow where seeds differ: {count} "
        f"drawn from {count} show {count - 1}/{count} of their variance, and percentiles know no t quantile"
    )
    table.add_row("", Text(explained, style="dim"))
    table.add_row("p", p_text(comparison.p_value))
    table.add_row("", Text("the least α whose interval leaves out 0", style="dim"))
    table.add_row("pairing", Text(visible(comparison.pairing, one_line=True), style="dim"))
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
        print_heading(console, f"{counted(len(questions), 'question')} {what} by {comparison.sides[1]}{more}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("no.", justify="right", no_wrap=True)
        if comparison.seeds:
            table.add_column("won, lost", no_wrap=True)
        for side in comparison.sides:
            table.add_column(side, no_wrap=True)
        table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        for outcome in shown:
            tally = [f"{outcome.won}, {outcome.lost}"] if comparison.seeds else []
            copies = f"({outcome.copies}×) " if outcome.copies > 1 else ""
            text = Text(copies + visible(" ".join(outcome.question.split()), one_line=True))
            table.add_row(str(outcome.index + 1), *tally, *_answers(outcome), text)
        if shown:
            console.print(table)


def _answers(outcome: QuestionOutcome) -> list[Text]:
    """What A and B answered in the first pair in which their scores differ."""
    place = next(n for n, (a, b) in enumerate(zip(outcome.a, outcome.b, strict=True)) if a != b)
    answers = (outcome.predicted_a[place], outcome.predicted_b[place])
    shown = ["none" if text is None else visible(text, one_line=True) for text in answers]
    return [Text(text if len(text) <= 12 else f"{text[:11]}…") for text in shown]


def interval_text(interval: Interval) -> str:
    """`+0.7 to +5.5`, in points."""
    return f"{points(interval.low, sign=True)} to {points(interval.high, sign=True)}"


def difference_text(difference: float, interval: Interval, confidence: float) -> str:
    """`+3.1 points, 95 % interval +0.7 to +5.5`."""
    bounds = f"{percent(confidence)} interval {interval_text(interval)}"
    return f"{points(difference, sign=True)} points, {bounds}"
