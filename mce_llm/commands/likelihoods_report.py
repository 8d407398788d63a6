"""A comparison of likelihoods as people read it at a terminal: every measure, the seeds, the questions, what may be concluded."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.commands.compare_report import print_trainings
from mce_llm.commands.tables import plain_table, print_heading, print_notes, print_warnings
from mce_llm.eval.comparing.likelihood_outcome import (
    LikelihoodArm,
    LikelihoodComparison,
    QuestionLikelihood,
)
from mce_llm.eval.comparing.likelihoods import WITHOUT_PRIMARY
from mce_llm.eval.comparing.measure_outcome import MeasureComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words, value_text
from mce_llm.eval.comparing.measures import measure_named
from mce_llm.eval.comparing.verdicts import p_text, percent
from mce_llm.running.messages import counted
from mce_llm.running.visible_text import visible


def print_likelihoods(comparison: LikelihoodComparison, console: Console, *, listed: int = 5) -> None:
    """Print a comparison of likelihoods.

    Args:
        comparison: The outcome of `compare_likelihoods`.
        console: Where to.
        listed: Questions to show of either end, of each so many.
    """
    print_warnings(comparison.notes, console)
    console.print(_runs(comparison))
    print_trainings(comparison.trainings, console)
    for place, arm in enumerate(comparison.arms):
        print_heading(console, f"{_shown(arm.name)} minus {_shown(comparison.baseline)}")
        console.print(_measures(comparison, place))
    decides = _decides(comparison)
    print_heading(console, f"{decides.measure.name}, in detail")
    console.print(_detail(comparison, decides))
    for arm in comparison.arms:
        if listed:
            _print_questions(comparison, arm, console, listed)
    print_notes(comparison.notes, console)
    console.print()
    console.print(Text(_shown(comparison.verdict), style="bold"))


def _decides(comparison: LikelihoodComparison) -> MeasureComparison:
    name = comparison.primary or WITHOUT_PRIMARY
    return next(measure for measure in comparison.measures if measure.measure.name == name)


def _shown(text: str) -> str:
    return visible(text, one_line=True)


def _runs(comparison: LikelihoodComparison) -> Table:
    copies = f" ({comparison.asked:,} with copies)" if comparison.asked > comparison.n else ""
    questions = counted(comparison.n, "different question" if copies else "question")
    title = f"{_shown(comparison.title)}, likelihood of reference solutions, {questions}{copies}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    table.add_column("run", overflow="fold")
    decides = _decides(comparison).measure
    names = list(
        dict.fromkeys(
            [decides.name, *(n for n in ("all.nats", "numbers.nats") if n in comparison.runs[0].values)]
        )
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    arms = 1 + len(comparison.arms)
    for place, run in enumerate(comparison.runs, start=1):
        cells = [value_text(measure_named(name), run.values[name]) for name in names]
        last = place % arms == 0 and place < len(comparison.runs)
        table.add_row(run.tag, Text(_shown(run.label)), *cells, end_section=last)
    return table


def _measures(comparison: LikelihoodComparison, place: int) -> Table:
    """A line for each measure of one arm, narrow enough for 80 columns."""
    several = len(comparison.arms) > 1
    letter = comparison.arms[place].letter
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("measure", overflow="fold")
    level = f"{percent(comparison.confidence)} interval"
    for name in ("A", letter, f"{letter} − A", level, "p (Holm)" if several else "p"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("")
    for measured in comparison.measures:
        arm, measure = measured.arms[place], measured.measure
        table.add_row(
            f"{measure.name}{' *' * measured.primary}",
            value_text(measure, arm.baseline_value).removesuffix(" %"),
            value_text(measure, arm.value).removesuffix(" %"),
            amount(measure, arm.difference, sign=True),
            interval_words(measure, arm.interval),
            _p(arm.p_holm),
            arm.finding if arm.found else "",
            style="bold" if measured.primary else "",
        )
    held = (
        "over seeds and questions"
        if comparison.pairs > 1
        else "over questions, for these trained models alone"
    )
    table.caption = (
        "nats and entropy in nats per token; top1 and ece in per cent, their differences in points. Intervals alone, "
        f"{held}{f'; p corrected for {len(comparison.arms)} arms' if several else ''}"
        f"{'; * the primary measure' if comparison.primary else ''}"
    )
    table.caption_justify = "left"
    return table


def _p(value: float) -> str:
    return p_text(value).removeprefix("p ").removeprefix("= ")


def _detail(comparison: LikelihoodComparison, decides: MeasureComparison) -> Table:
    measure, table = decides.measure, plain_table()
    table.add_row("measure", f"{measure.title}; {measure.unit}")
    for arm, side in zip(decides.arms, comparison.arms, strict=True):
        if comparison.pairs > 1:
            each = ", ".join(amount(measure, value, sign=True) for value in arm.seed_differences)
            spread, chance = (amount(measure, value or 0.0) for value in (arm.seed_sd, arm.seed_sd_by_chance))
            table.add_row(
                f"{side.letter} − A, each seed", f"{each}; sd {spread}, by single questions alone {chance}"
            )
        if len(comparison.arms) > 1:
            table.add_row(
                f"{side.letter} − A, all arms",
                f"simultaneous interval {interval_words(measure, arm.simultaneous)}",
            )
        found = arm.detectable
        least = (
            "nothing" if found.difference is None else f"{amount(measure, found.difference)} {measure.unit}"
        )
        have = comparison.pairs if comparison.pairs > 1 else comparison.n
        needed = (
            f"; what was seen would take about {found.needed:,} {found.unit} (here: {have:,})"
            if found.needed
            else ""
        )
        table.add_row(
            f"{side.letter}: could have found",
            f"{least}, with probability {percent(found.power)} at α = {found.alpha:.2g}{needed}",
        )
        table.add_row("", Text(arm.interval_method, style="dim"))
    table.add_row("pairing", Text(_shown(comparison.pairing), style="dim"))
    return table


def _print_questions(
    comparison: LikelihoodComparison, arm: LikelihoodArm, console: Console, listed: int
) -> None:
    ends: tuple[tuple[str, Sequence[QuestionLikelihood]], ...] = (
        ("more", [question for question in arm.questions if question.difference < 0]),
        ("less", [question for question in reversed(arm.questions) if question.difference > 0]),
    )
    for how, questions in ends:
        shown = questions[:listed]
        more = f" (the first {len(shown)})" if len(shown) < len(questions) else ""
        title = f"{counted(len(questions), 'question')} whose {comparison.listed_by} {arm.letter} finds {how} likely{more}"
        print_heading(console, title)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name in ("no.", "tokens", "A, nats", f"{arm.letter}, nats"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)
        for question in shown:
            copies = f"({question.copies}×) " if question.copies > 1 else ""
            table.add_row(
                str(question.index + 1),
                f"{question.tokens:g}",
                f"{question.a:.2f}",
                f"{question.b:.2f}",
                Text(copies + visible(" ".join(question.question.split()), one_line=True)),
            )
        if shown:
            console.print(table)
