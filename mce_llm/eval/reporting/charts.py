"""The pictures of evaluations: accuracies with their intervals, the difference, and what became of each question.

All numbers are those of the summaries and of the comparison; nothing is calculated here but places on an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from mce_llm.eval.comparing.comparison import Comparison
from mce_llm.eval.comparing.verdicts import percent, points
from mce_llm.eval.intervals import Interval
from mce_llm.eval.reporting.drawing import COLOURS, Chart, draw, legend_below, short
from mce_llm.eval.reporting.sections import Member, Section
from mce_llm.eval.wording import ACCURACY_DECIMALS, accuracy_text, bounds_text, hundredfold

_ROW = 0.36  # inches of height for each line of a picture
_FRAME = 0.85  # and for title and axis
_NARROW = 0.05  # of a bar: too narrow for its number


def accuracy_chart(section: Section) -> Chart:
    """Dot and whisker: the accuracy of each run with its interval; all of A's above all of B's."""
    members = by_arm(section)
    level = "/".join(sorted({percent(member.run.summary["confidence"]) for member in members}))
    texts = [
        f"{member.look.label}: {accuracy_text(member.accuracy.accuracy)} ({bounds_text(member.accuracy.interval)})"
        for member in members
    ]

    def paint(axes: Axes) -> None:
        for place, member in enumerate(members):
            value = member.accuracy.accuracy
            _whisker(axes, place, value, member.accuracy.interval, COLOURS[member.look.colour], "o")
            _value(axes, place, value, hundredfold(value, ACCURACY_DECIMALS))
        _rows(axes, [f"{member.look.tag}  {short(member.look.name)}" for member in members])
        axes.set_xlabel("right answers (%)")
        axes.set_title(f"{short(section.data)}: accuracy with {level} intervals")

    about = f"Accuracy on {section.title} with {level} intervals. {'; '.join(texts)}."
    return draw(f"{section.key}-accuracy", about, paint, _FRAME + _ROW * len(members))


def difference_chart(section: Section, comparison: Comparison) -> Chart:
    """The difference B − A with its interval, for each pair and over all, against no difference."""
    rows = [
        (f"pair {number}", pair.difference, pair.interval)
        for number, pair in enumerate(comparison.pairs, start=1)
    ]
    a, b = comparison.sides
    minus, together = f"{b} − {a}", None
    several = len(rows) > 1
    if several:
        rows.append(("over all pairs", comparison.difference, comparison.interval))
    else:
        rows = [(minus, comparison.difference, comparison.interval)]
    if section.arm is not None:
        together = len(rows)
        rows.append(("all arms together", comparison.difference, section.arm.simultaneous))

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 2)))
        for place, (_, value, interval) in enumerate(rows):
            last = place == len(rows) - 1 if together is None else place >= together - 1
            _whisker(axes, place, value, interval, COLOURS["ink" if last else "muted"], "D" if last else "o")
            _value(axes, place, value, points(value, sign=True))
        reach = 115 * max(abs(end) for _, _, interval in rows for end in interval)
        axes.set_xlim(-reach, reach)
        _rows(axes, [label for label, _, _ in rows])
        axes.set_xlabel(f"← {a} better · {minus} (points) · {b} better →")
        axes.set_title(
            f"{short(section.data)}: difference with {percent(comparison.confidence)} interval{'s' * several}"
        )

    texts = [
        f"{label}: {points(value, sign=True)} points ({points(low, sign=True)} to {points(high, sign=True)})"
        for label, value, (low, high) in rows
    ]
    about = (
        f"Difference of the accuracies on {section.data}, {b} minus {a}, with intervals. {'; '.join(texts)}."
    )
    return draw(f"{section.key}-difference", about, paint, _FRAME + _ROW * len(rows))


def outcomes_chart(section: Section, comparison: Comparison) -> Chart | None:
    """A bar a pair: questions that both, A alone, B alone and neither got right; None with several samples a question."""
    rows = [(number, pair.counts) for number, pair in enumerate(comparison.pairs, start=1) if pair.counts]
    if not rows:
        return None

    a, b = comparison.sides
    outcomes = (
        ("both", "both right", "both"),
        ("only_a", f"only {a}", section.colours[0]),
        ("only_b", f"only {b}", section.colours[1]),
        ("neither", "both wrong", "neither"),
    )

    def paint(axes: Axes) -> None:
        for place, (_, counts) in enumerate(rows):
            left = 0
            for name, title, colour in outcomes:
                count = getattr(counts, name)
                label = title if place == 0 else None
                axes.barh(place, count, left=left, height=0.5, color=COLOURS[colour], label=label)
                if count > _NARROW * comparison.n:
                    _value(axes, place - 0.15, left + count / 2, f"{count:,}", scale=1)
                left += count
        axes.set_xlim(0, comparison.n)
        axes.grid(axis="y", visible=False)
        _rows(axes, [f"pair {number}" if len(rows) > 1 else f"{a} and {b}" for number, _ in rows])
        axes.set_xlabel("questions")
        axes.set_title(f"{short(section.data)}: who got which questions right")
        legend_below(axes, 4, handlelength=1, columnspacing=1.2)

    texts = [
        f"pair {number}: " + ", ".join(f"{title} {getattr(counts, name)}" for name, title, _ in outcomes)
        for number, counts in rows
    ]
    about = f"Questions of {section.title} answered rightly by both, one or neither. {'; '.join(texts)}."
    return draw(f"{section.key}-outcomes", about, paint, _FRAME + 0.3 + 1.2 * _ROW * len(rows))


def _whisker(
    axes: Axes, place: int, value: float, interval: Interval | tuple[float, float], colour: str, marker: str
) -> None:
    """A dot at a share, with its interval, on an axis of per cent."""
    ends = [100 * end for end in interval]
    axes.plot(ends, [place, place], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot([100 * value], [place], marker, color=colour, markersize=6.5)


def _value(axes: Axes, place: float, value: float, text: str, scale: float = 100) -> None:
    """A number above a mark."""
    axes.annotate(
        text, (scale * value, place), (0, 5.5), textcoords="offset points", ha="center", fontsize=9.5
    )


def by_arm(section: Section) -> list[Member]:
    """All of A's runs, then all of B's."""
    return sorted(section.members, key=lambda member: member.look.arm or "")


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Lines of a picture from top to bottom, each with its label on the left."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
