"""What the pages of the study on a real model and the README show of it: kept lines of its results, and tables made from them.

`keep` writes the lines of a study's results.jsonl small enough to lie beside the page: what each question contributed to some
groups of tokens, to four digits, without the bins of calibration and without this machine's folders. `tables` writes
everything between `<!-- NAME -->` and `<!-- end of NAME -->` in these pages anew from the kept lines, where NAME is that of a
study file in recipes/studies, or that with `_in_short` behind it for a single table; nothing else is touched, and the same
lines make the same pages. `picture` draws a search (the primary measure over the learning rate, a line a loss), or how far
the arms of another study are from its baseline.

    python benchmarks/study_page.py keep runs/studies/X/results.jsonl docs/study/X.jsonl.gz
    python benchmarks/study_page.py tables
    python benchmarks/study_page.py picture smollm2_gsm8k_search docs/study_rates.png
    python benchmarks/study_page.py picture smollm2_gsm8k_repeated docs/study_repeated.png
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from made_pages import INSIDES, LOSSES, markdown_table, rewritten, rounded, write_anew
from matplotlib.figure import Figure
from study_summaries import beside

from mce_llm.eval.comparing.measure_outcome import ArmMeasure, MeasureComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words, value_text
from mce_llm.eval.comparing.measures import ACCURACY
from mce_llm.eval.comparing.verdicts import p_text, percent
from mce_llm.studies.comparing import compare_study
from mce_llm.studies.definition import Study
from mce_llm.studies.notes import notes_of
from mce_llm.studies.pictures import study_charts
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RESULTS, Results, RunResult
from mce_llm.studies.tables import TextTable, study_tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "study.md", ROOT / "docs" / "study-insides.md", ROOT / "README.md")
LINES, STUDIES = ROOT / "docs" / "study", ROOT / "recipes" / "studies"
IN_SHORT = "_in_short"
GROUPS = ("all", "numbers", "results")
DIGITS = 4
STRENGTHS = {"matrix_weight": "λ", "smoothing": "s", "emo_weight": "w"}


def without_folders(value: Any) -> Any:
    """Paths from the root of a file system by their last name alone, in nested lists and mappings."""
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return {name: without_folders(each) for name, each in value.items()} if isinstance(value, dict) else value


def kept(line: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """A line of results.jsonl with what the page needs.

    Args:
        line: The line.
        groups: The groups of tokens whose values stay.
    """
    small = without_folders(dict(line))
    for evaluation in small["evaluations"].values():
        values = evaluation["values"]
        if "groups" in values:
            of_groups = {name: of for name, of in values["groups"].items() if name in groups}
            evaluation["values"] = {"groups": rounded(of_groups, DIGITS), "calibration": {}}
    return small


def keep(source: Path, target: Path, groups: Sequence[str]) -> int:
    """Write the kept lines of a file of results, compressed; equal lines make an equal file.

    Returns:
        How many lines.
    """
    lines = [json.loads(text) for text in source.read_text(encoding="utf-8").splitlines() if text.strip()]
    text = "".join(
        json.dumps(kept(line, groups), ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return len(lines)


def kept_results(study: Study, files: Iterable[Path]) -> dict[tuple[str, int], RunResult]:
    """Read kept lines, with all the checks that a study makes of its results."""
    with tempfile.TemporaryDirectory() as folder:
        text = b"".join(gzip.decompress(file.read_bytes()) for file in files)
        (Path(folder) / RESULTS).write_bytes(text)
        return Results(Path(folder), study.name).read()


def lines_of(name: str, folder: Path) -> list[Path]:
    """The files of a study's kept lines, `NAME.jsonl.gz` and `NAME.*.jsonl.gz`.

    Raises:
        SystemExit: There are none.
    """
    files = sorted([*folder.glob(f"{name}.jsonl.gz"), *folder.glob(f"{name}.*.jsonl.gz")])
    if not files:
        raise SystemExit(f"no kept lines {folder / name}.jsonl.gz")
    return files


def is_search(study: Study, results: Mapping[tuple[str, int], RunResult]) -> bool:
    """Whether a study looks for settings: one evaluation, and one seed that all arms have."""
    return len({seed for _, seed in results}) == 1 and len(study.evaluations) == 1


def _markdown(table: TextTable) -> list[str]:
    title = f"**{table.title[:1].upper()}{table.title[1:]}**"
    below = [f"{table.caption}.", ""] if table.caption else []
    return [title, "", *markdown_table(table.header, table.rows), "", *below]


def comparison(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """The tables of a study with its verdicts, as lines of Markdown."""
    compared = compare_study(study, results, notes_of(study, results, ()))
    lines = [f"{compared.extent}.", ""]
    if compared.primary is not None:
        lines += [f"- {arm.verdict}" for arm in compared.primary.arms]
        lines += [f"- {contrast.result.verdict}" for contrast in compared.contrasts] + [""]
    for table in study_tables(compared, results, every=False):
        lines += _markdown(table)
    lines += beside(study, results)
    return lines + [f"- {note}" for note in compared.notes]


def in_short(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """The primary measure of every arm, and the accuracies beside it, as one table of Markdown.

    Raises:
        SystemExit: No arm can be compared with the baseline by the primary measure.
    """
    compared = compare_study(study, results)
    primary = compared.primary
    if primary is None:
        raise SystemExit(f"{study.name}: {compared.undecided}")
    measure, level = primary.measure, percent(primary.confidence)
    accuracies = {
        item.evaluation.name: found
        for item in compared.evaluations
        for found in item.comparisons
        if found.measure.name == ACCURACY.name and not found.primary
    }
    header = ["trained with", "training seeds", f"{measure.title}, {measure.unit}"]
    header += [f"against `{primary.baseline}` of the same seeds, {level}", "p (Holm)", *accuracies]
    base = fmean(primary.baseline_values.values())
    rows = [[f"`{primary.baseline}`", str(len(primary.baseline_values)), value_text(measure, base), "", ""]]
    for found in accuracies.values():
        rows[0].append(value_text(found.measure, fmean(found.baseline_values.values())))
    for arm in primary.arms:
        told = f"{amount(measure, arm.difference, sign=True)}, {interval_words(measure, arm.interval)}"
        cells = [f"`{arm.name}`", str(len(arm.seeds)), value_text(measure, arm.value), told]
        cells.append(p_text(arm.p_holm).removeprefix("p ").removeprefix("= "))
        for found in accuracies.values():
            of_arm = next((each for each in found.arms if each.name == arm.name), None)
            cells.append("–" if of_arm is None else _points(found, of_arm))
        rows.append(cells)
    return markdown_table(header, rows)


def _points(found: MeasureComparison, arm: ArmMeasure) -> str:
    difference = amount(found.measure, arm.difference, sign=True)
    return f"{difference}, {interval_words(found.measure, arm.interval)} points"


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        loss: One of `LOSSES`.
        strength: Its own setting, as it is written: `λ = 3`; empty for cross-entropy.
        amount: The same as a number.
        rate: The learning rate.
        summary: Of its evaluation.
    """

    loss: str
    strength: str
    amount: float
    rate: float
    summary: Mapping[str, Any]

    @property
    def nats(self) -> float:
        """Nats per token of the numbers."""
        return self.summary["groups"]["numbers"]["nats_per_token"]


def trials(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[Trial]:
    """The runs of a search, in the order of losses, strengths and learning rates."""
    found = []
    for result in results.values():
        settings = study.arm(result.key[0]).settings
        name = next((name for name in STRENGTHS if name in settings), None)
        (evaluation,) = result.evaluations.values()
        found.append(
            Trial(
                settings["matrix_kind"] if settings["loss"] == "mce" else settings["loss"],
                "" if name is None else f"{STRENGTHS[name]} = {settings[name]:g}",
                0.0 if name is None else float(settings[name]),
                settings["learning_rate"],
                evaluation["summary"],
            )
        )
    return sorted(found, key=lambda trial: (LOSSES.index(trial.loss), trial.amount, trial.rate))


def search_table(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """Every trial of a search on one seed, as lines of Markdown.

    Trials are single runs, so there is nothing to compare with; the least of the primary group is set in bold within each loss.
    """
    ordered = trials(study, results)
    best = {
        loss: min((trial.nats for trial in ordered if trial.loss == loss), default=0.0) for loss in LOSSES
    }
    rows = [
        "| trial | learning rate | numbers | all tokens | results | words | numbers, first choice right | calibration error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for trial in ordered:
        groups = trial.summary["groups"]
        told = f"{trial.nats:.4f}"
        cells = [
            f"`{trial.loss}`{', ' * bool(trial.strength)}{trial.strength}",
            np.format_float_scientific(trial.rate, trim="-", exp_digits=1),
            f"**{told}**" if trial.nats == best[trial.loss] else told,
            *(f"{groups[name]['nats_per_token']:.4f}" for name in ("all", "results", "words")),
            f"{groups['numbers']['top1']:.2%}".replace("%", " %"),
            f"{trial.summary['calibration_error']['numbers']:.3f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [f"{len(ordered)} of {len(study.arms)} trials.", "", *rows]


def draw_search(study: Study, results: Mapping[tuple[str, int], RunResult], file: Path) -> None:
    """Nats per token of the numbers over the learning rate: each loss at its middle strength, the others as single points."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    found = trials(study, results)
    for number, loss in enumerate(LOSSES):
        of_loss = [trial for trial in found if trial.loss == loss]
        middle = Counter(trial.strength for trial in of_loss).most_common(1)
        line = [trial for trial in of_loss if middle and trial.strength == middle[0][0]]
        label = f"{loss}, {line[0].strength}" if line and line[0].strength else loss
        axes.plot([t.rate for t in line], [t.nats for t in line], "o-", color=f"C{number}", label=label)
        rest = [trial for trial in of_loss if trial not in line]
        axes.plot([t.rate for t in rest], [t.nats for t in rest], "x", color=f"C{number}")
    axes.set_xscale("log")
    rates = sorted(rate for rate, count in Counter(trial.rate for trial in found).items() if count > 1)
    axes.set_xticks(rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate (crosses: other strengths of the same losses)")
    axes.set_ylabel("held-out nats per token of the numbers")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw_primary(study: Study, results: Mapping[tuple[str, int], RunResult], file: Path) -> None:
    """Differences of all arms from the baseline by the primary measure, with their intervals.

    Raises:
        SystemExit: No arm can be compared.
    """
    compared = compare_study(study, results)
    charts = study_charts(compared)
    if compared.primary is None or not charts:
        raise SystemExit(f"{study.name}: {compared.undecided}")
    file.write_bytes(charts[0].png)


def written(page: str, lines: Path, studies: Path) -> str:
    """The page with its tables made anew.

    Args:
        page: Its text.
        lines: The folder of kept lines, `NAME.jsonl.gz` or `NAME.*.jsonl.gz`.
        studies: The folder of study files.

    Raises:
        SystemExit: A table is named that nothing can be made from.
    """

    def made(told: str) -> list[str] | None:
        if told.endswith(INSIDES):
            return None
        name = told.removesuffix(IN_SHORT)
        files = lines_of(name, lines)
        study = read_study(studies / f"{name}.yaml")
        results = kept_results(study, files)
        if told != name:
            return in_short(study, results)
        return search_table(study, results) if is_search(study, results) else comparison(study, results)

    return rewritten(page, made)


def main() -> int:
    """Keep lines, or write tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    keeping = actions.add_parser("keep", help="Write the lines of a results.jsonl small enough to be kept.")
    keeping.add_argument("source", type=Path, help="The results.jsonl of a study.")
    keeping.add_argument("target", type=Path, help="The file of kept lines, *.jsonl.gz.")
    keeping.add_argument("--groups", nargs="+", default=list(GROUPS), help="Groups of tokens (%(default)s).")
    actions.add_parser(
        "tables", help="Write the tables of docs/study.md, docs/study-insides.md and README.md anew."
    )
    drawing = actions.add_parser("picture", help="Draw a search, or the differences of a study.")
    drawing.add_argument("study", help="Name of a study file in recipes/studies whose lines are kept.")
    drawing.add_argument("file", type=Path, help="The picture.")
    options = parser.parse_args()
    if options.action == "keep":
        print(f"{keep(options.source, options.target, options.groups)} lines kept in {options.target}")
        return 0
    if options.action == "picture":
        study = read_study(STUDIES / f"{options.study}.yaml")
        results = kept_results(study, lines_of(options.study, LINES))
        draw = draw_search if is_search(study, results) else draw_primary
        draw(study, results, options.file)
        return 0
    for path in PAGES:
        write_anew(path, lambda page: written(page, LINES, STUDIES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
