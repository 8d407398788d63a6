"""What docs/study-insides.md shows of the inside of models: tables and pictures from the lines of `loss_insides.py`.

Everything between `<!-- NAME_insides -->` and `<!-- end of NAME_insides -->` in the page is written anew from
docs/study/NAME.insides.jsonl, and the pictures docs/study_insides_NAME.png and docs/study_ranks_NAME.png are drawn from the
same lines; nothing else in the page is touched. Differences are from cross-entropy on the same training seeds, with 95 %
intervals over seeds where there are several.

    python benchmarks/insides_page.py
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from loss_insides import BEFORE, RANKS, kept_lines
from made_pages import INSIDES, LOSSES, markdown_table, rewritten, write_anew
from matplotlib.figure import Figure
from measuring import over_seeds

ROOT = Path(__file__).resolve().parents[1]
PAGE, LINES, PICTURES = ROOT / "docs" / "study-insides.md", ROOT / "docs" / "study", ROOT / "docs"
BASELINE = "ce"
TITLES = dict(zip(RANKS, ("hidden states", "predicted density matrices"), strict=True))
Line = Mapping[str, Any]
Value = Callable[[Line], float]


class Insides:
    """The lines of one study.

    Args:
        lines: By name and seed, as `kept_lines` gives them.

    Raises:
        SystemExit: The model before training or cross-entropy is not among them.
    """

    def __init__(self, lines: Mapping[tuple[str, int], Line]) -> None:
        met = dict.fromkeys(name for name, _ in lines if name != BEFORE)
        known = [*LOSSES, *(name for name in met if name not in LOSSES)]
        self.names = [name for name in known if name in met]
        self.colours = {name: f"C{known.index(name)}" for name in self.names}
        if (BEFORE, 0) not in lines or BASELINE not in self.names:
            raise SystemExit(f"the lines need the model {BEFORE!r} and one called {BASELINE!r}")
        self.before = lines[BEFORE, 0]
        self._lines = lines
        self.others = [name for name in self.names if name != BASELINE]
        self.places = list(self.before["positions"])

    def seeds(self, name: str) -> list[int]:
        """Training seeds of a method, in order."""
        return sorted(seed for of, seed in self._lines if of == name)

    def lines(self, name: str) -> list[Line]:
        """The lines of a method, in the order of seeds."""
        return [self._lines[name, seed] for seed in self.seeds(name)]

    def mean(self, name: str, value: Value) -> float:
        """Of a value over the seeds of a method."""
        return float(np.mean([value(line) for line in self.lines(name)]))

    def difference(self, name: str, value: Value) -> tuple[float, float]:
        """Mean difference from cross-entropy on the same seeds, and half the width of its interval."""
        pairs = [
            value(self._lines[name, seed]) - value(self._lines[BASELINE, seed])
            for seed in self.seeds(name)
            if (BASELINE, seed) in self._lines
        ]
        if not pairs:
            raise SystemExit(f"{name} has no seed that {BASELINE} has")
        return over_seeds(pairs)


def at(place: str, what: str) -> Value:
    """A value at a set of positions; NaN where the line has none of them."""
    return lambda line: float(line["positions"].get(place, {}).get(what, math.nan))


def signed(found: tuple[float, float], digits: int = 4) -> str:
    """A difference for a table, with its interval where there is one."""
    mean, half = found
    told = f"{mean:+.{digits}f}".replace("-", "−") if round(mean, digits) else f"{0:.{digits}f}"
    return told + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def tables(found: Insides) -> list[str]:
    """All tables of a study, as lines of Markdown."""
    told = [f"`{name}` {len(found.seeds(name))}" for name in found.names]
    lines = [f"Training seeds: {', '.join(told)}.", ""]
    lines += ["**Nats per token, by how sure the model was before training, against cross-entropy**", ""]
    heads = ["positions", "tokens", "before", "ce", *found.others]
    lines += markdown_table(
        heads,
        [
            [
                place,
                f"{found.before['positions'][place]['tokens']:,}",
                f"{at(place, 'nats')(found.before):.4f}",
                f"{found.mean(BASELINE, at(place, 'nats')):.4f}",
                *(signed(found.difference(name, at(place, "nats"))) for name in found.others),
            ]
            for place in found.places
        ],
    )
    lines += [
        "",
        "**At the tokens of numbers: where the probability goes that is not on the right token**",
        "",
    ]
    heads = [
        "model",
        "on wrong tokens",
        "their mean cosine",
        "share of the 64 nearest",
        "wrong digits are off by",
    ]
    lines += markdown_table(heads, [_wrong(name, found) for name in (BEFORE, *found.names)])
    lines += ["", "**At the tokens of numbers: what one temperature for all of them repairs**", ""]
    heads = [
        "model",
        "nats",
        "confidence",
        "first choice right",
        "best temperature",
        "nats at it",
        "against ce",
    ]
    lines += markdown_table(heads, [_tempered(name, found) for name in (BEFORE, *found.names)])
    lines += ["", "**How far training moved the geometry: similarities of each token to its 64 nearest**", ""]
    moved = [
        [f"`{name}`", *(f"{found.mean(name, _moved(what)):.4f}" for what in ("mean distance", "correlation"))]
        for name in found.names
    ]
    return lines + markdown_table(["model", "mean change", "correlation with those before"], moved)


def _moved(what: str) -> Value:
    return lambda line: float(line["geometry"][what])


def _of(name: str, found: Insides, value: Value) -> float:
    return value(found.before) if name == BEFORE else found.mean(name, value)


def _wrong(name: str, found: Insides) -> list[str]:
    return [
        f"`{name}`",
        f"{_of(name, found, at('numbers', 'wrong')):.4f}",
        f"{_of(name, found, at('numbers', 'cosine')):.4f}",
        f"{_of(name, found, at('numbers', 'near')):.4f}",
        f"{_of(name, found, lambda line: float(line['digits']['distance'])):.3f}",
    ]


def _tempered(name: str, found: Insides) -> list[str]:
    against = name in found.others
    return [
        f"`{name}`",
        f"{_of(name, found, at('numbers', 'nats')):.4f}",
        f"{_of(name, found, at('numbers', 'confidence')):.4f}",
        f"{_of(name, found, at('numbers', 'top1')):.2%}".replace("%", " %"),
        f"{_of(name, found, at('numbers', 'temperature')):.2f}",
        f"{_of(name, found, at('numbers', 'tempered nats')):.4f}",
        signed(found.difference(name, at("numbers", "tempered nats"))) if against else "",
    ]


def draw_positions(found: Insides, file: Path) -> None:
    """Differences from cross-entropy by how sure the model was before, for numbers and for words."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for panel, group in enumerate(("numbers", "words")):
        axes = figure.add_subplot(1, 2, panel + 1)
        spans = [place for place in found.places if place.startswith(f"{group} ")]
        width = 0.8 / max(1, len(found.others))
        for number, name in enumerate(found.others):
            values = np.array([found.difference(name, at(place, "nats")) for place in spans])
            axes.bar(
                np.arange(len(spans)) + width * number,
                values[:, 0],
                width,
                yerr=None if np.isnan(values[:, 1]).any() else values[:, 1],
                error_kw={"linewidth": 0.8},
                color=found.colours[name],
                label=name,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(
            np.arange(len(spans)) + 0.4 - width / 2, [place.removeprefix(f"{group} ") for place in spans]
        )
        axes.set_title(f"{group}: nats per token against {BASELINE}", fontsize=10)
        axes.set_xlabel("largest probability of the model before training")
        axes.grid(axis="y", alpha=0.3)
        if panel == 0:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw_ranks(found: Insides, file: Path) -> bool:
    """Effective ranks over training, a panel a kind; the mean over seeds at the steps that all have.

    Returns:
        Whether any were logged; nothing is drawn otherwise.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    drawn = 0
    for panel, (kind, title) in enumerate(TITLES.items()):
        axes = figure.add_subplot(1, 2, panel + 1)
        for name in found.names:
            over = [line["ranks"].get(kind, {}) for line in found.lines(name)]
            steps = [step for step in over[0] if all(step in one for one in over)]
            if steps:
                means = [float(np.mean([one[step] for one in over])) for step in steps]
                axes.plot([int(step) for step in steps], means, color=found.colours[name], label=name)
                drawn += 1
        axes.set_title(f"effective rank: {title}", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if panel == 0 and drawn:
            axes.legend(fontsize=8)
    if drawn:
        figure.savefig(file, dpi=110)
    return bool(drawn)


def written(page: str, lines: Path, pictures: Path) -> str:
    """The page with its tables made anew; its pictures are drawn beside it.

    Args:
        page: Its text.
        lines: The folder of NAME.insides.jsonl.
        pictures: Where the pictures go.

    Raises:
        SystemExit: A table is named that nothing can be made from.
    """

    def made(told: str) -> list[str] | None:
        if not told.endswith(INSIDES):
            return None
        name = told.removesuffix(INSIDES)
        file = lines / f"{name}.insides.jsonl"
        if not file.is_file():
            raise SystemExit(f"no lines {file}")
        found = Insides(kept_lines(file))
        draw_positions(found, pictures / f"study_insides_{name}.png")
        draw_ranks(found, pictures / f"study_ranks_{name}.png")
        return tables(found)

    return rewritten(page, made)


def main() -> int:
    """Write the tables of the page anew and draw its pictures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    write_anew(PAGE, lambda page: written(page, LINES, PICTURES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
