"""How often intervals for an accuracy and for a difference of accuracies hold the truth, and how wide they are.

    python benchmarks/interval_coverage.py --repeats 2000 --json coverage.json

Made-up models answer made-up questions. Each question has a probability of being answered rightly, drawn from a beta
distribution with mean 0.7, in two kinds: "noise" (A and B find the same questions hard; 20 % are answered unlike) and
"suited" (for a fifth of the questions B's probability is drawn anew: questions that suit one method). B is better by
3.1 points on average, and every training seed moves the difference by a normal deviate of the given size, most on
questions that can go either way. New questions and new seeds are drawn each time, and the truth is the mean over all
of them. "one pair" is what Tango's interval covers of that truth; "its models" what it covers of the two models that
were trained, which is all that it promises. "Satterthwaite" is the interval with one common t quantile that
`SeedSpread.interval` was chosen over. With 2,000 repeats a coverage of 95 % is known to within a point.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measuring import progress, table
from scipy import stats

from mce_llm.eval.comparing.paired import tango_interval
from mce_llm.eval.comparing.training_seeds import SeedSpread, bootstrap_interval
from mce_llm.eval.intervals import Interval, wilson_interval

METHODS = ("Wilson", "its models", "one pair", "bootstrap", "Satterthwaite", "ours")
KINDS = {"noise": 0.0, "suited": 0.2}
EFFECT = 0.031
ACCURACY, DISCORDANCE = 0.7, 0.2


@dataclass
class Tally:
    """What became of one method's intervals in one setting.

    Attributes:
        held: For each repeat whether the truth was inside.
        widths: Their widths.
    """

    held: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, interval: Interval, truth: float) -> None:
        """Note one interval."""
        self.held.append(interval.low <= truth <= interval.high)
        self.widths.append(interval.high - interval.low)


def draw_answers(
    generator: np.random.Generator, seeds: int, questions: int, seed_sd: float, suited: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Answers of A and B, (S, n) of right and wrong, and the true difference of the two models of the first pair.

    A shift by x multiplies p(1−p) by x over its mean, so that it is x on average and leaves probabilities in [0, 1].
    """
    # Of a beta distribution with a + b = s, the mean of p(1−p) is m(1−m)·s/(s+1); twice that are answered unlike.
    share = DISCORDANCE / 2 / (ACCURACY * (1 - ACCURACY))
    total = share / (1 - share)
    shape = ACCURACY * total, (1 - ACCURACY) * total
    chances_a = generator.beta(*shape, size=questions)
    anew = generator.random(questions) < suited
    chances_b = np.where(anew, generator.beta(*shape, size=questions), chances_a)
    shifts = generator.normal(0.0, seed_sd / np.sqrt(2), size=(2, seeds, 1))
    shifts[1] += EFFECT
    scale = DISCORDANCE / 2
    chances_2SQ = [
        chances + shift * chances * (1 - chances) / scale
        for chances, shift in zip((chances_a, chances_b), shifts, strict=True)
    ]
    a, b = (generator.random((seeds, questions)) < chances for chances in chances_2SQ)
    return a, b, float(shifts[1, 0, 0] - shifts[0, 0, 0])


def satterthwaite(spread: SeedSpread, confidence: float) -> Interval:
    """The variances of seeds and questions added, with one t quantile for their sum."""
    by_seed, by_question = spread.seed_mean_square, spread.question_mean_square
    variance = by_seed + by_question
    freedom = variance**2 / (by_seed**2 / (spread.seeds - 1) + by_question**2 / (spread.questions - 1))
    error = np.sqrt(variance / (spread.seeds * spread.questions))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * error)
    return Interval(spread.mean - half, spread.mean + half)


def simulate(
    *, seeds: int, questions: int, seed_sd: float, suited: float, repeats: int, resamples: int, seed: int
) -> dict[str, Tally]:
    """Draw experiments and count which intervals hold the truth."""
    generator = np.random.default_rng([seed, seeds, questions, round(1e6 * seed_sd), round(1e6 * suited)])
    tallies = {name: Tally() for name in METHODS}
    for repeat in range(repeats):
        a, b, given = draw_answers(generator, seeds, questions, seed_sd, suited)
        if seed_sd == 0:  # otherwise one model's accuracy is not that of its method
            tallies["Wilson"].add(wilson_interval(int(a[0].sum()), questions), ACCURACY)
        only_a, only_b = int((a[0] & ~b[0]).sum()), int((b[0] & ~a[0]).sum())
        pair = tango_interval(only_a, only_b, questions)
        tallies["its models"].add(pair, given)
        tallies["one pair"].add(pair, EFFECT)
        differences = b.astype(float) - a
        tallies["bootstrap"].add(bootstrap_interval(differences, 0.95, resamples, repeat), EFFECT)
        spread = SeedSpread.of(differences)
        tallies["Satterthwaite"].add(satterthwaite(spread, 0.95), EFFECT)
        tallies["ours"].add(spread.interval(0.95), EFFECT)
    return tallies


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2000, help="experiments in each setting, default 2000")
    parser.add_argument("--resamples", type=int, default=500, help="drawings of each bootstrap, default 500")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5], help="default 2 3 5")
    parser.add_argument("--questions", type=int, nargs="+", default=[300, 1319], help="default 300 1319")
    parser.add_argument(
        "--seed-sd", type=float, nargs="+", default=[0, 0.5, 1, 2], help="in points, default 0 0.5 1 2"
    )
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS), help="default both")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers, default 0")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.resamples < 100:
        parser.error(f"--resamples must be at least 100, got {options.resamples}")
    if min(options.seeds) < 2 or min(options.questions) < 2:
        parser.error("--seeds and --questions must be at least 2: one has no spread")
    if not 0 <= min(options.seed_sd) <= max(options.seed_sd) <= 3:
        parser.error("--seed-sd must be between 0 and 3 points: larger shifts leave [0, 1]")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Simulate, print, write."""
    options = parse(arguments)
    rows: list[dict[str, Any]] = []
    for kind in options.kind:
        cells = []
        for questions in options.questions:
            for seeds in options.seeds:
                for points in options.seed_sd:
                    progress(f"{kind}: {questions} questions, {seeds} seeds, sd {points:g}")
                    tallies = simulate(
                        seeds=seeds,
                        questions=questions,
                        seed_sd=points / 100,
                        suited=KINDS[kind],
                        repeats=options.repeats,
                        resamples=options.resamples,
                        seed=options.seed,
                    )
                    line = [f"{questions}", f"{seeds}", f"{points:g}"]
                    for name, tally in tallies.items():
                        held, width = (float(np.mean(x)) if x else None for x in (tally.held, tally.widths))
                        line.append("--" if held is None else f"{100 * held:.1f}, {100 * (width or 0):.1f}")
                        setting = {"kind": kind, "questions": questions, "seeds": seeds, "seed_sd": points}
                        rows.append({**setting, "method": name, "coverage": held, "width": width})
                    cells.append(line)
        progress("")
        print(f"\n{kind}: coverage in %, mean width in points; nominal 95 %")
        print(table(["questions", "seeds", "sd", *METHODS], cells))
    if options.json:
        options.json.write_text(json.dumps({"options": _recorded(options), "rows": rows}, indent=2))


def _recorded(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "json"}


if __name__ == "__main__":
    main()
