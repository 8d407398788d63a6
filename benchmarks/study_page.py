"""What docs/study.md shows of the study on a real model: kept lines of its results, and the tables made from them.

`keep` writes the lines of a study's results.jsonl small enough to lie beside the page: what each question contributed to some
groups of tokens, to four digits, without the bins of calibration and without this machine's folders. `tables` writes
everything between `<!-- NAME -->` and `<!-- end of NAME -->` in the page anew from the kept lines, where NAME is that of a
study file in recipes/studies; nothing else in the page is touched, and the same lines make the same page.

    python benchmarks/study_page.py keep runs/studies/X/results.jsonl docs/study/X.jsonl.gz
    python benchmarks/study_page.py tables
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mce_llm.studies.comparing import compare_study
from mce_llm.studies.definition import Study
from mce_llm.studies.notes import notes_of
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import RESULTS, Results, RunResult
from mce_llm.studies.tables import TextTable, study_tables

ROOT = Path(__file__).resolve().parents[1]
PAGE, LINES, STUDIES = ROOT / "docs" / "study.md", ROOT / "docs" / "study", ROOT / "recipes" / "studies"
GROUPS = ("all", "numbers", "results")
DIGITS = 4
LOSSES = ("ce", "token", "marginal", "expected", "label_smoothing", "emo")
STRENGTHS = {"matrix_weight": "λ", "smoothing": "s", "emo_weight": "w"}


def rounded(value: Any) -> Any:
    """Every float in nested lists and mappings to `DIGITS` digits behind the point."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return {name: rounded(each) for name, each in value.items()} if isinstance(value, dict) else value


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
            evaluation["values"] = {"groups": rounded(of_groups), "calibration": {}}
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


def _markdown(table: TextTable) -> list[str]:
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    text = [f"**{table.title[:1].upper()}{table.title[1:]}**", ""]
    text += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [*text, "", *([f"{table.caption}.", ""] if table.caption else [])]


def comparison(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """The tables of a study with its verdicts, as lines of Markdown."""
    compared = compare_study(study, results, notes_of(study, results, ()))
    lines = [f"{compared.finished} of {compared.planned} runs.", ""]
    if compared.primary is not None:
        lines += [f"- {arm.verdict}" for arm in compared.primary.arms]
        lines += [f"- {contrast.result.verdict}" for contrast in compared.contrasts] + [""]
    for table in study_tables(compared, results, every=False):
        lines += _markdown(table)
    return lines + [f"- {note}" for note in compared.notes]


def search_table(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """Every trial of a search on one seed, in the order of losses, strengths and learning rates.

    Trials are single runs, so there is nothing to compare with; the lowest of the primary group is set in bold within each loss.
    """

    def place(result: RunResult) -> tuple[int, float, float]:
        settings = study.arm(result.key[0]).settings
        kind = settings["matrix_kind"] if settings["loss"] == "mce" else settings["loss"]
        strength = next((float(settings[name]) for name in STRENGTHS if name in settings), 0.0)
        return LOSSES.index(kind), strength, settings["learning_rate"]

    def nats(result: RunResult) -> float:
        (evaluation,) = result.evaluations.values()
        return evaluation["summary"]["groups"]["numbers"]["nats_per_token"]

    ordered = sorted(results.values(), key=place)
    best = {
        number: min(nats(each) for each in ordered if place(each)[0] == number)
        for number in range(len(LOSSES))
        if any(place(each)[0] == number for each in ordered)
    }
    rows = [
        "| trial | learning rate | numbers | all tokens | results | words | numbers, first choice right | calibration error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in ordered:
        settings = study.arm(result.key[0]).settings
        (evaluation,) = result.evaluations.values()
        summary = evaluation["summary"]
        groups = summary["groups"]
        number, _, rate = place(result)
        strength = next(
            (f", {sign} = {settings[name]:g}" for name, sign in STRENGTHS.items() if name in settings), ""
        )
        told = f"{nats(result):.4f}"
        cells = [
            f"`{LOSSES[number]}`{strength}",
            np.format_float_scientific(rate, trim="-", exp_digits=1),
            f"**{told}**" if nats(result) == best[number] else told,
            *(f"{groups[name]['nats_per_token']:.4f}" for name in ("all", "results", "words")),
            f"{groups['numbers']['top1']:.2%}".replace("%", " %"),
            f"{summary['calibration_error']['numbers']:.3f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [f"{len(ordered)} of {len(study.arms)} trials.", "", *rows]


def written(page: str, lines: Path, studies: Path) -> str:
    """The page with its tables made anew.

    Args:
        page: Its text.
        lines: The folder of kept lines, `NAME.jsonl.gz` or `NAME.*.jsonl.gz`.
        studies: The folder of study files.

    Raises:
        SystemExit: A table is named that nothing can be made from.
    """

    def fresh(found: re.Match[str]) -> str:
        name = found["name"]
        files = sorted([*lines.glob(f"{name}.jsonl.gz"), *lines.glob(f"{name}.*.jsonl.gz")])
        if not files:
            raise SystemExit(f"no kept lines {lines / name}.jsonl.gz")
        study = read_study(studies / f"{name}.yaml")
        results = kept_results(study, files)
        single = len({seed for _, seed in results}) == 1 and len(study.evaluations) == 1
        made = search_table(study, results) if single else comparison(study, results)
        return "\n".join([f"<!-- {name} -->", "", *made, "", f"<!-- end of {name} -->"])

    return re.sub(r"<!-- (?P<name>\w+) -->\n.*?<!-- end of (?P=name) -->", fresh, page, flags=re.DOTALL)


def main() -> int:
    """Keep lines, or write tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    keeping = actions.add_parser("keep", help="Write the lines of a results.jsonl small enough to be kept.")
    keeping.add_argument("source", type=Path, help="The results.jsonl of a study.")
    keeping.add_argument("target", type=Path, help="The file of kept lines, *.jsonl.gz.")
    keeping.add_argument("--groups", nargs="+", default=list(GROUPS), help="Groups of tokens (%(default)s).")
    actions.add_parser("tables", help="Write the tables of docs/study.md anew.")
    options = parser.parse_args()
    if options.action == "keep":
        print(f"{keep(options.source, options.target, options.groups)} lines kept in {options.target}")
        return 0
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(after := written(before, LINES, STUDIES), encoding="utf-8")
    print(f"{PAGE}: {'written' if after != before else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
