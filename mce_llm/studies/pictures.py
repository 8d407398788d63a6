"""The pictures of a study: how far each arm is from the baseline, by the primary measure and by all others."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mce_llm.eval.comparing.measure_outcome import ArmMeasure, MeasureComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words
from mce_llm.eval.comparing.verdicts import percent
from mce_llm.eval.reporting.drawing import COLOURS, Chart, draw, short
from mce_llm.studies.comparing import StudyComparison

_HEIGHT, _FRAME = 0.3, 1.0  # inches of height of a line, and of title and axis
_ARM_COLOURS = ("arm-b", "run-1", "run-2", "run-3", "run-4", "run-6")
_POINTS = 100


def study_charts(compared: StudyComparison) -> list[Chart]:
    """Draw the differences of all arms: the primary measure by itself, then those of one quantity of each evaluation.

    Args:
        compared: The comparison.

    Returns:
        The pictures.
    """
    charts = []
    for item in compared.evaluations:
        for found in item.comparisons:
            if found.primary:
                title = f"{item.evaluation.name}: {found.measure.title}, against {found.baseline}"
                charts.append(_forest(f"{item.evaluation.name}-primary", title, [found]))
        for quantity in ("accuracy", "nats", "top1", "ece"):
            others = [
                found
                for found in item.comparisons
                if found.measure.quantity == quantity and not found.primary
            ]
            if others:
                title = f"{item.evaluation.name}: {quantity}, differences from {others[0].baseline}"
                charts.append(_forest(f"{item.evaluation.name}-{quantity}", title, others))
    return charts


def _forest(name: str, title: str, comparisons: Sequence[MeasureComparison]) -> Chart:
    """For each measure a line an arm: the difference, its interval alone, and that of all arms together."""
    first = comparisons[0]
    arms = len(first.arms)
    scale = _POINTS if first.measure.unit == "points" else 1
    level = percent(first.confidence)
    smallest = first.smallest_difference if first.primary else None

    def paint(axes: Axes) -> None:
        if smallest is not None:
            axes.axvspan(-smallest * scale, smallest * scale, color=COLOURS["grid"], zorder=0)
        axes.axvline(0, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 2)))
        labels: list[tuple[float, str]] = []
        for row, found in enumerate(comparisons):
            top = row * (arms + 0.7)
            for number, arm in enumerate(found.arms):
                _whisker(
                    axes, top + number, arm, scale, _colour(number), label=arm.name if row == 0 else None
                )
                if len(comparisons) == 1:
                    labels.append((top + number, short(arm.name)))
            if len(comparisons) > 1:
                labels.append((top + (arms - 1) / 2, found.measure.group or found.measure.name))
        axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
        axes.set_ylim((len(comparisons) - 1) * (arms + 0.7) + arms - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(_axis(comparisons))
        if len(comparisons) > 1 and arms > 1:
            axes.figure.legend(loc="outside lower center", ncols=2)
        intervals = f"{level} alone (thick), all arms together (thin)" if arms > 1 else f"{level} intervals"
        band = "; grey: too small to matter" if smallest is not None else ""
        axes.set_title(f"{title}\n{intervals}{band}")

    texts = [
        f"{found.measure.name}, {arm.name}: {amount(found.measure, arm.difference, sign=True)} "
        f"({interval_words(found.measure, arm.interval)})"
        for found in comparisons
        for arm in found.arms
    ]
    about = f"{title}, in {first.measure.unit}, with {level} intervals. {'; '.join(texts)}."
    height = _FRAME + _HEIGHT * len(comparisons) * (arms + 0.7)
    return draw(
        name, about, paint, height + (0.25 * ((arms + 1) // 2) if len(comparisons) > 1 and arms > 1 else 0)
    )


def _whisker(
    axes: Axes, place: float, arm: ArmMeasure, scale: float, colour: str, *, label: str | None
) -> None:
    for interval, width in ((arm.simultaneous, 1.2), (arm.interval, 3.0)):
        ends = [interval.low * scale, interval.high * scale]
        axes.plot(ends, [place, place], color=colour, linewidth=width, solid_capstyle="butt")
    axes.plot(
        [arm.difference * scale], [place], "o", color=colour, markersize=6, label=label and short(label)
    )


def _colour(number: int) -> str:
    return COLOURS[_ARM_COLOURS[number % len(_ARM_COLOURS)]]


def _axis(comparisons: Sequence[MeasureComparison]) -> str:
    """The unit, and on which side arms are better, where that is one side for all."""
    sides = {found.measure.lower_is_better for found in comparisons}
    unit = comparisons[0].measure.unit
    if sides == {True}:
        return f"← better · {unit} · worse →"
    return f"← worse · {unit} · better →" if sides == {False} else unit
