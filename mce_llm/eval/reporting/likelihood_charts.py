"""The pictures of likelihoods: differences of the measures with their intervals, and how well confidence fits what is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mce_llm.eval.comparing.likelihood_outcome import LikelihoodComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words
from mce_llm.eval.comparing.measures import Unit
from mce_llm.eval.comparing.verdicts import percent
from mce_llm.eval.reporting.drawing import COLOURS, Chart, draw, legend_below, short
from mce_llm.eval.reporting.likelihood_sections import LikelihoodMember, LikelihoodSection

_ROW = 0.3  # inches of height for each line of a picture
_FRAME = 1.15  # and for title, axis and legend
_GROUP = "numbers"


def measures_chart(section: LikelihoodSection, comparison: LikelihoodComparison, unit: Unit) -> Chart | None:
    """Forest plot: the difference of each measure of one unit with its interval, arm by arm, against no difference.

    Args:
        section: The runs.
        comparison: Their comparison.
        unit: Of the measures; those of other units have a scale of their own.

    Returns:
        The picture; None where there is no such measure.
    """
    measured = [each for each in comparison.measures if each.measure.unit == unit]
    if not measured:
        return None
    scale = 100 if unit == "points" else 1
    looks = [side[0].look for side in section.sides[1:]]
    rows = [(each, arm, look) for each in measured for arm, look in zip(each.arms, looks, strict=True)]
    arms = len(comparison.arms)
    minus = f"{comparison.arms[0].letter} − A" if arms == 1 else "arm − A"

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 2)))
        for place, (each, arm, look) in enumerate(rows):
            colour = COLOURS[look.colour]
            axes.plot(
                [scale * end for end in arm.interval],
                [place, place],
                color=colour,
                linewidth=2,
                solid_capstyle="round",
                label=short(arm.name) if place < arms and arms > 1 else None,
            )
            marker = "D" if each.primary else "o"
            filled = colour if arm.found else COLOURS["grid"]
            axes.plot(
                [scale * arm.difference], [place], marker, color=colour, markerfacecolor=filled, markersize=6
            )
        names = [each.measure.name if k == 0 else "" for each in measured for k in range(arms)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.45, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        reach = 1.1 * scale * max(abs(end) for _, arm, _ in rows for end in arm.interval)
        axes.set_xlim(-reach or -1, reach or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"{minus} ({unit})")
        axes.set_title(
            f"{short(section.data)}: differences with {percent(comparison.confidence)} intervals\nfilled: found"
            f"{' after Holm' if arms > 1 else ''}"
        )
        if arms > 1:
            legend_below(axes, min(arms, 3), handlelength=1.2, columnspacing=1.2)

    texts = [
        f"{each.measure.title}, {arm.name}: {amount(each.measure, arm.difference, sign=True)} "
        f"({interval_words(each.measure, arm.interval)})"
        for each, arm, _ in rows
    ]
    about = f"Differences on {section.title} in {unit}, arms minus {comparison.baseline}. {'; '.join(texts)}."
    name = f"{section.key}-{'points' if unit == 'points' else 'nats'}"
    return draw(name, about, paint, _FRAME + _ROW * len(rows))


def reliability_chart(section: LikelihoodSection) -> Chart | None:
    """Reliability diagram of number tokens: the share that is right against the confidence, bin by bin, pooled over runs of an arm.

    Returns:
        The picture; None where calibration was not measured or there is no number.
    """
    lines = [(side[0], bins) for side in section.sides if (bins := _pooled(side)) is not None]
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 2)))
        for member, (confidence, right, share) in lines:
            colour, name = COLOURS[member.look.colour], _called(section, member)
            axes.plot(confidence, right, color=colour, linestyle=member.look.line, label=name)
            axes.scatter(confidence, right, s=8 + 220 * share, color=colour, alpha=0.75, linewidths=0)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("confidence in the first choice (%)")
        axes.set_ylabel("first choices that are right (%)")
        axes.set_title(
            f"{short(section.data)}: reliability on tokens of numbers\ndots as large as their share of tokens"
        )
        axes.legend(loc="upper left")

    texts = [
        f"{_called(section, member)}: "
        + ", ".join(
            f"{right:.0f} % right at {confidence:.0f} % ({100 * share:.0f} % of tokens)"
            for confidence, right, share in zip(*bins, strict=True)
        )
        for member, bins in lines
    ]
    about = f"Reliability of the first choice on tokens of numbers, {section.title}. {'; '.join(texts)}."
    return draw(f"{section.key}-reliability", about, paint, 4.2)


def _called(section: LikelihoodSection, member: LikelihoodMember) -> str:
    """An arm where runs are compared, else the run."""
    if section.comparison is None:
        return member.look.label
    names = {"A": section.comparison.baseline, **{arm.letter: arm.name for arm in section.comparison.arms}}
    return short(names[member.look.tag[0]])


def _pooled(side: Sequence[LikelihoodMember]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Mean confidence and share right of each bin that is used, in per cent, and its share of the tokens."""
    tables = [member.sums.calibration[_GROUP] for member in side if _GROUP in member.sums.calibration]
    if not tables:
        return None
    tokens, confidence, right = (
        sum(table[name].sum(axis=0) for table in tables) for name in ("tokens", "confidence", "top1")
    )
    used = np.asarray(tokens) > 0
    if not used.any():
        return None
    tokens = np.asarray(tokens)[used]
    return (
        100 * np.asarray(confidence)[used] / tokens,
        100 * np.asarray(right)[used] / tokens,
        tokens / tokens.sum(),
    )
