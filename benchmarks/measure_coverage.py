"""How often intervals for differences of real-valued measures hold the truth: nats of a question, calibration errors.

    python benchmarks/measure_coverage.py --repeats 1000 --json measure_coverage.json

Three parts. "difference": a table of differences d_sq = μ + a_s + b_q + e_sq of S seeds on n questions; b and e have equal
variances, 1 together, and one of these forms: normal; skewed (lognormal, σ = 1); outliers on both sides (5 % of the
questions with ten times the spread); outliers on one side (5 % with an exponential tail of mean 8 on top). Seeds are
normal, with a standard deviation of so many standard errors of one seed's mean over questions. "pooled t" takes all S·n
differences for independent; "Student" is ours without the bootstrap of questions. With one seed the truth is the mean
of its two models over all questions (μ + a₁), which is all that is promised; the column "μ" says how often μ is held.

"holm": five arms equal to their common baseline, with the errors of all runs of one form; how often any of them is
found different, uncorrected and after Holm's correction.

"ece": made-up models of which the true gaps of the bins of confidence are known; confidences spread around the middle
of a bin, and right answers correlated within a question. Coverage of the true difference of the calibration errors, plain
(signs of the bins taken as given, which is wrong where the true gap is 0) and debiased.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import progress, table
from scipy import stats

from mce_llm.eval.comparing.measures import MEASURES
from mce_llm.eval.comparing.p_values import holm
from mce_llm.eval.comparing.question_spread import QuestionSpread
from mce_llm.eval.comparing.question_tails import QuestionTails
from mce_llm.eval.comparing.question_values import TokenSums
from mce_llm.eval.comparing.training_seeds import SeedSpread
from mce_llm.eval.intervals import Interval

PARTS = ("difference", "holm", "ece")
TRUTH = 0.3
ARMS = 5
BINS, TOKENS = 15, 40


def _outliers_one_side(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rare = generator.random(shape) < 0.05
    values = generator.normal(size=shape) + rare * generator.exponential(8.0, shape) - 0.4
    return np.asarray(values / np.sqrt(1 + 0.05 * 2 * 64 - 0.4**2))


def _outliers_both_sides(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    spread = np.where(generator.random(shape) < 0.05, 10.0, 1.0)
    return np.asarray(generator.normal(size=shape) * spread / np.sqrt(0.95 + 0.05 * 100))


def _skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = generator.lognormal(0.0, 1.0, shape) - np.exp(0.5)
    return np.asarray(values / np.sqrt((np.e - 1) * np.e))


FORMS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed": _skewed,
    "outliers, both sides": _outliers_both_sides,
    "outliers, one side": _outliers_one_side,
}
"""Draw numbers with mean 0 and variance 1."""
GAPS = {
    "far": (0.10, 0.06),
    "near": (0.02, 0.01),
    "one calibrated": (0.06, 0.0),
    "both calibrated": (0.0, 0.0),
}
"""True gaps of A and B between confidence and accuracy in every bin."""
QUANTITIES = ("ece", "ece_debiased")


def pooled(differences: np.ndarray) -> Interval:
    """The t interval that takes the differences of all seeds and questions for independent."""
    values = differences.ravel()
    half = float(stats.t.ppf(0.975, values.size - 1)) * values.std(ddof=1) / np.sqrt(values.size)
    return Interval(values.mean() - half, values.mean() + half)


def spread_of(differences: np.ndarray, tails: QuestionTails | None) -> SeedSpread | QuestionSpread:
    """What `compare_measure` makes of a table of differences without bounds."""
    if len(differences) == 1:
        return QuestionSpread.of(differences[0], bound=None, step=0.0, tails=tails)
    return SeedSpread.of(differences, bound=None, step=0.0, tails=tails)


def differences_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Coverage of intervals for a difference, a row for each form, n, S, spread of seeds and method."""
    rows = []
    for form, draw in FORMS.items():
        for n in options.questions:
            generator = np.random.default_rng([options.seed, list(FORMS).index(form), n])
            held: dict[tuple[int, float, str], list[tuple[bool, float]]] = {}
            for repeat in range(options.repeats):
                progress(f"{form}, {n} questions: {repeat}")
                most = max(options.seeds)
                rest = (draw(generator, (1, n)) + draw(generator, (most, n))) / np.sqrt(2)
                drawn = generator.normal(size=(most, 1)) / np.sqrt(n)
                for seeds in options.seeds:
                    # A shift of a seed moves all its questions: the tails of the questions' means are the same.
                    tails = QuestionTails.of(rest[:seeds].mean(axis=0), options.resamples)
                    for size in options.seed_sd:
                        table_SQ = TRUTH + size * drawn[:seeds] + rest[:seeds]
                        found = {
                            "pooled t": pooled(table_SQ),
                            "Student": spread_of(table_SQ, None).interval(),
                            "ours": spread_of(table_SQ, tails).interval(),
                        }
                        truth = TRUTH + size * float(drawn[0, 0]) if seeds == 1 else TRUTH
                        if seeds == 1:
                            found["μ"] = found["ours"]
                        for name, (low, high) in found.items():
                            here = TRUTH if name == "μ" else truth
                            held.setdefault((seeds, size, name), []).append((low <= here <= high, high - low))
            for (seeds, size, name), outcomes in held.items():
                coverage, width = np.mean(outcomes, axis=0)
                setting = {
                    "part": "difference",
                    "form": form,
                    "questions": n,
                    "seeds": seeds,
                    "seed_sd": size,
                }
                rows.append({**setting, "method": name, "coverage": coverage, "width": width * np.sqrt(n)})
    progress("")
    return rows


def holm_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How often any of five arms that equal their baseline is found different."""
    rows = []
    for form, draw in FORMS.items():
        for n in options.questions:
            for seeds in options.seeds:
                generator = np.random.default_rng([options.seed, 1, list(FORMS).index(form), n, seeds])
                found = []
                for repeat in range(options.holm_repeats):
                    progress(f"holm: {form}, {n} questions, {seeds} seeds: {repeat}")
                    shared = draw(generator, (1, n))
                    runs = [
                        shared
                        + draw(generator, (seeds, n))
                        + (generator.normal(size=(seeds, 1)) / np.sqrt(n) if seeds > 1 else 0.0)
                        for _ in range(ARMS + 1)
                    ]
                    p_values = []
                    for arm in runs[1:]:
                        table_SQ = arm - runs[0]
                        tails = QuestionTails.of(table_SQ.mean(axis=0), options.resamples)
                        p_values.append(spread_of(table_SQ, tails).p_value())
                    found.append((min(p_values) <= 0.05, min(holm(p_values)) <= 0.05))
                alone, corrected = np.mean(found, axis=0)
                setting = {"part": "holm", "form": form, "questions": n, "seeds": seeds}
                rows.append({**setting, "uncorrected": alone, "corrected": corrected})
    progress("")
    return rows


def draw_calibration(
    generator: np.random.Generator, n: int, gap: float, hardness: np.ndarray
) -> dict[str, np.ndarray]:
    """Bins of one model on n questions whose true gap is the same in every bin (but 0 or 1 bounds none of them).

    Bins of high confidence hold most tokens, as in language models. `hardness` (n,) shifts a question's chances up and
    down by up to a tenth, with mean 0: right answers within a question are correlated.
    """
    shares = np.arange(1, BINS + 1) ** 2.0
    counts = generator.multinomial(TOKENS, shares / shares.sum(), n)
    middles = (np.arange(BINS) + 0.5) / BINS
    chances = np.clip(0.12 + 0.76 * middles[None, :] + hardness[:, None], 0, 1)
    right = generator.binomial(counts, chances)
    # The mean of chances over questions is 0.12 + 0.76·middle, so confidences lie `gap` above that.
    confidence = counts * (0.12 + 0.76 * middles + gap)
    return {"tokens": counts.astype(float), "confidence": confidence, "top1": right.astype(float)}


def calibration_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Coverage of the true difference of expected calibration errors, plain and debiased."""
    rows = []
    for kind, gaps in GAPS.items():
        for n in options.questions:
            for seeds in options.seeds:
                generator = np.random.default_rng([options.seed, 2, list(GAPS).index(kind), n, seeds])
                outcomes: dict[str, list[tuple[bool, float, float]]] = {name: [] for name in QUANTITIES}
                for repeat in range(options.ece_repeats):
                    progress(f"ece: {kind}, {n} questions, {seeds} seeds: {repeat}")
                    hardness = generator.uniform(-0.1, 0.1, n)
                    runs = [
                        [
                            TokenSums({}, {"numbers": draw_calibration(generator, n, gap, hardness)})
                            for _ in range(seeds)
                        ]
                        for gap in gaps
                    ]
                    for name in QUANTITIES:
                        measure = MEASURES[f"numbers.{name}"]
                        a, b = (np.array([run.contributions(measure) for run in side]) for side in runs)
                        spread = (
                            QuestionSpread.of((b - a)[0], step=0.0)
                            if seeds == 1
                            else SeedSpread.of(b - a, step=0.0)
                        )
                        low, high = spread.interval()
                        outcomes[name].append(
                            (low <= gaps[1] - gaps[0] <= high, high - low, b.mean() - gaps[1])
                        )
                for name, found in outcomes.items():
                    coverage, width, bias = np.mean(found, axis=0)
                    setting = {"part": "ece", "kind": kind, "questions": n, "seeds": seeds, "method": name}
                    rows.append({**setting, "coverage": coverage, "width": width, "bias_of_b": bias})
    progress("")
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The tables as they stand in eval/README.md."""
    by_part = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    if by_part["difference"]:
        cells: dict[tuple[Any, ...], dict[str, str]] = {}
        for row in by_part["difference"]:
            key = row["form"], row["questions"], row["seeds"], row["seed_sd"]
            told = f"{100 * row['coverage']:.1f}, {row['width']:.1f}"
            cells.setdefault(key, {})[row["method"]] = told
        methods = ("pooled t", "Student", "ours", "μ")
        print("\ndifference: coverage in %, mean width in standard errors of one seed; nominal 95 %")
        lines = [
            [*map(str, key), *(found.get(name, "--") for name in methods)] for key, found in cells.items()
        ]
        print(table(["form", "questions", "seeds", "sd", *methods], lines))
    if by_part["holm"]:
        print(f"\nholm: any false finding among {ARMS} equal arms in %; nominal 5 %")
        lines = [
            [
                *(str(row[name]) for name in ("form", "questions", "seeds")),
                *(f"{100 * row[name]:.1f}" for name in ("uncorrected", "corrected")),
            ]
            for row in by_part["holm"]
        ]
        print(table(["form", "questions", "seeds", "uncorrected", "Holm"], lines))
    if by_part["ece"]:
        print(
            "\nece: coverage of the true difference in %, mean width, mean error of B's own in points; nominal 95 %"
        )
        cells = {}
        for row in by_part["ece"]:
            told = ", ".join(
                [
                    f"{100 * row['coverage']:.1f}",
                    *(f"{100 * row[name]:.2f}" for name in ("width", "bias_of_b")),
                ]
            )
            cells.setdefault((row["kind"], row["questions"], row["seeds"]), {})[row["method"]] = told
        lines = [[*map(str, key), *(found[name] for name in QUANTITIES)] for key, found in cells.items()]
        print(table(["kind", "questions", "seeds", *QUANTITIES], lines))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="default all three")
    parser.add_argument("--repeats", type=int, default=1000, help="experiments in each setting, default 1000")
    parser.add_argument("--holm-repeats", type=int, default=500, help="the same for holm, default 500")
    parser.add_argument("--ece-repeats", type=int, default=500, help="the same for ece, default 500")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="drawings of each bootstrap, default 1000"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 5], help="default 1 2 3 5")
    parser.add_argument(
        "--questions", type=int, nargs="+", default=[50, 200, 1319], help="default 50 200 1319"
    )
    parser.add_argument(
        "--seed-sd",
        type=float,
        nargs="+",
        default=[0, 1, 10],
        help="in standard errors of one seed's mean over questions, default 0 1 10",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers, default 0")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.holm_repeats, options.ece_repeats) < 1:
        parser.error("--repeats, --holm-repeats and --ece-repeats must be at least 1")
    if options.resamples < 100:
        parser.error(f"--resamples must be at least 100, got {options.resamples}")
    if min(options.seeds) < 1 or min(options.questions) < 2:
        parser.error("--seeds must be at least 1, --questions at least 2")
    if min(options.seed_sd) < 0:
        parser.error("--seed-sd must be at least 0")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Simulate, print, write."""
    options = parse(arguments)
    parts = {"difference": differences_part, "holm": holm_part, "ece": calibration_part}
    rows = [row for part in options.part for row in parts[part](options)]
    print_rows(rows)
    if options.json:
        recorded = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"options": recorded, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
