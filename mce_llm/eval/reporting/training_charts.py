"""The pictures of trainings: losses and effective ranks over the steps, and spectra at a few of them.

The quantities are those that `mce_llm.lm.training` logs. A picture without a single point is not drawn; what is missing
is for the page to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mce_llm.eval.reporting.collect import Training
from mce_llm.eval.reporting.drawing import COLOURS, Chart, draw, legend_below, power_of_ten, short
from mce_llm.eval.reporting.looks import Look

Subject = tuple[Look, Training]
"""A training and how it is drawn."""

_STEP_COLOURS = [name for name in COLOURS if name.startswith("step-")]
_SMALLEST_SHARE = 1e-9  # of the trace: less is rounding of float32, and would stretch the axis
_MANY = 6  # names in a legend beyond which it would cover the picture


@dataclass(frozen=True)
class Quantity:
    """Something that is logged while a model trains.

    Attributes:
        name: Of the picture.
        title: Above it.
        unit: On its axis.
        held_out: Name in the log of its value on held-out data, drawn in bold with a dot at each evaluation.
        training: Name in the log of its value on training data, drawn thin.
        note: What to know when reading it.
        optional: Only some losses have it: without a word where nobody logged it.
    """

    name: str
    title: str
    unit: str
    held_out: str | None
    training: str | None
    note: str
    optional: bool = False

    @property
    def logged(self) -> list[tuple[str, str]]:
        """Name in the log and on which data, of what there is."""
        kinds = ((self.held_out, "held out"), (self.training, "training"))
        return [(name, kind) for name, kind in kinds if name is not None]

    def titled(self, kind: str) -> str:
        """The title with the kind of data behind it, which some titles name themselves."""
        return self.title if kind in self.title else f"{self.title}, {kind}"


QUANTITIES = (
    Quantity(
        "ce",
        "Cross-entropy (CE)",
        "CE (nats/token)",
        "eval_ce_loss",
        "ce_loss",
        "Bold with dots: held-out data. Thin: training batches, the mean since the last entry of the log.",
    ),
    Quantity(
        "mce",
        "Matrix cross-entropy (MCE)",
        "MCE (nats/token)",
        "eval_mce_loss",
        "mce_loss",
        "Bold with dots: held-out data. Thin: training batches; a training without it in its loss does not log it there.",
    ),
    Quantity(
        "smoothing",
        "Cross-entropy against uniform targets",
        "S (nats/token)",
        "eval_smoothing_loss",
        "smoothing_loss",
        "The part of label smoothing. Bold with dots: held-out data. Thin: training batches.",
        optional=True,
    ),
    Quantity(
        "emo-distance",
        "Earth mover's distance (EMO)",
        "1 − cosine",
        "eval_emo_distance",
        "emo_distance",
        "Between the predicted distribution and the target. Bold with dots: held-out data. Thin: training batches.",
        optional=True,
    ),
    Quantity(
        "effective-rank",
        "Effective rank, held out",
        "effective rank (dimensions)",
        "eval_hidden_effective_rank",
        None,
        "Of the covariance of hidden states: exp of the entropy of its eigenvalues, over every held-out position.",
    ),
    Quantity(
        "hidden-rank",
        "Effective rank, training sample",
        "effective rank (dimensions)",
        None,
        "hidden_effective_rank",
        "Of hidden states at a sample of training positions: lower than over all of them, so not comparable with held out.",
    ),
    Quantity(
        "density-rank",
        "Effective rank of predictions",
        "effective rank (dimensions)",
        None,
        "density_effective_rank",
        "Of the predicted density matrices at the same sample; 1 where every prediction is certain.",
    ),
)
SPECTRA = {
    "hidden": "hidden states",
    "density": "predicted density matrices",
}
"""Kind of spectrum in `spectra.jsonl` → of what it is."""


def quantities_of(trainings: Iterable[Training]) -> list[Quantity]:
    """What is shown of these trainings: every quantity, but those of some losses only where one logged them."""
    known = list(trainings)
    return [
        quantity
        for quantity in QUANTITIES
        if not quantity.optional or any(one.curve(name) for one in known for name, _ in quantity.logged)
    ]


def curve_chart(quantity: Quantity, subjects: Sequence[Subject]) -> Chart | None:
    """One quantity over the steps of all trainings; None where nobody logged it."""
    drawn = [
        (look, kind, points)
        for look, training in subjects
        for name, kind in quantity.logged
        if (points := training.curve(name))
    ]
    if not drawn:
        return None

    def paint(axes: Axes) -> None:
        labelled = set()
        for look, kind, points in drawn:
            bold = kind == "held out" or quantity.held_out is None
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[look.colour],
                linestyle=look.line,
                linewidth=1.7 if bold else 0.9,
                alpha=1 if bold else 0.55,
                marker="o" if bold or len(points) == 1 else None,
                markersize=3.2,
                label=f"{look.tag}  {short(look.name)}" if look.tag not in labelled else None,
            )
            labelled.add(look.tag)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(quantity.unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_title(quantity.title)
        _legend(axes, len(labelled))

    texts = [f"{look.label}, {kind}: {_ends(points)}" for look, kind, points in drawn]
    about = f"{quantity.title} over optimizer steps, {quantity.unit}. {'; '.join(texts)}."
    return draw(f"training-{quantity.name}", about, paint)


def last_spectra_chart(kind: str, subjects: Sequence[Subject]) -> Chart | None:
    """The spectra of all trainings at the last step that each of them measured; None for fewer than two trainings."""
    found = [(look, records[-1]) for look, training in subjects if (records := _records(training, kind))]
    if len(found) < 2:
        return None

    def paint(axes: Axes) -> None:
        for look, record in found:
            label = f"{look.tag}  step {record['step']:,}"
            _spectrum(axes, record[kind], color=COLOURS[look.colour], linestyle=look.line, label=label)
        axes.set_title(f"Last spectra: {SPECTRA[kind]}")
        _legend(axes, len(found))

    return draw(
        f"spectra-{kind}", _about_spectra(kind, [(look.label, record) for look, record in found]), paint
    )


def spectra_chart(kind: str, place: int, subject: Subject) -> Chart | None:
    """The spectra of one training at up to five steps; None where it measured none."""
    look, training = subject
    records = _records(training, kind)
    if not records:
        return None
    chosen = sorted(
        {round(n) for n in np.linspace(0, len(records) - 1, min(len(records), len(_STEP_COLOURS)))}
    )
    picked = [records[n] for n in chosen]

    def paint(axes: Axes) -> None:
        for record, colour in zip(picked, _STEP_COLOURS[-len(picked) :], strict=True):
            label = f"step {record['step']:,}: rank {record[kind]['effective_rank']:.1f}"
            _spectrum(axes, record[kind], color=COLOURS[colour], linestyle="-", label=label)
        axes.set_title(f"{look.tag}  {short(look.name)}\n{SPECTRA[kind]}")
        _legend(axes, len(picked))

    about = _about_spectra(kind, [(f"{look.label}, step {record['step']}", record) for record in picked])
    return draw(f"spectra-{kind}-{place + 1}", about, paint)


def _records(training: Training, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in training.spectra if kind in record]


def _spectrum(axes: Axes, spectrum: Mapping[str, Any], **look: Any) -> None:
    """Eigenvalues as shares of their sum, the largest first; those that are all alike (`rest`) follow as one plateau."""
    others = spectrum["width"] - len(spectrum["eigenvalues"])
    values = np.array([*spectrum["eigenvalues"], *[spectrum["rest"]] * others])
    shares = values / values.sum()
    shown = shares > _SMALLEST_SHARE
    axes.loglog(1 + np.flatnonzero(shown), shares[shown], **look)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(power_of_ten)
    axes.minorticks_off()
    axes.set_xlabel("eigenvalue, from the largest")
    axes.set_ylabel("share of the sum, λᵢ/Σλ")


def _about_spectra(kind: str, labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    ranks = "; ".join(
        f"{label}: effective rank {record[kind]['effective_rank']:.1f} of {record[kind]['width']}"
        for label, record in labelled
    )
    return f"Eigenvalues of {SPECTRA[kind]} as shares of their sum, logarithmic axes. {ranks}."


def _legend(axes: Axes, entries: int) -> None:
    if entries > _MANY:
        legend_below(axes, 3, fontsize=7.5, handlelength=2.6)
    else:
        axes.legend(handlelength=2.6)


def _ends(points: Sequence[tuple[int, float]]) -> str:
    (first, start), (last, end) = points[0], points[-1]
    bad = sum(not math.isfinite(value) for _, value in points)
    broken = f", {bad} values are not finite" if bad else ""
    return f"{start:.4g} at step {first}, {end:.4g} at step {last}{broken}"
