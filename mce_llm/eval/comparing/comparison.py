"""Comparing saved evaluations of two methods, A and B: one pair, or one pair for each training seed.

`compare_runs` brings together what `paired`, `power` and `training_seeds` compute. It neither prints nor reads files;
`mce-llm compare` and the report do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from mce_llm.eval.comparing.comparability import (
    RunPair,
    check_pairs,
    fallback_share,
    find_notes,
    run_labels,
    truncated_share,
)
from mce_llm.eval.comparing.comparison_outcome import (
    Comparison,
    Detectable,
    PairComparison,
    QuestionOutcome,
    RunAccuracy,
    SeedResult,
)
from mce_llm.eval.comparing.paired import (
    PairedCounts,
    mcnemar_exact,
    mean_interval,
    sign_flip_test,
    tango_interval,
)
from mce_llm.eval.comparing.power import POWER, questions_needed, smallest_detectable_difference
from mce_llm.eval.comparing.training_seeds import SeedSpread, bootstrap_interval
from mce_llm.eval.comparing.verdicts import verdict
from mce_llm.eval.intervals import Interval, check_confidence, wilson_interval
from mce_llm.eval.saved_runs import SavedRun

__all__ = ["Comparison", "compare_runs"]


def compare_runs(
    pairs: Sequence[RunPair],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    allow_differences: bool = False,
) -> Comparison:
    """Compare evaluations of two methods on the same questions.

    Args:
        pairs: (A, B), A the baseline; several pairs are several training seeds, the two of a pair with the same.
        confidence: Coverage of the intervals; tests use 1 − confidence.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        allow_differences: Compare runs whose prompt, decoding or dtype differs, with a warning in the outcome.

    Returns:
        The comparison.

    Raises:
        EvaluationError: The runs cannot be compared.
        IntervalError: The confidence or the number of resamples is out of range, or there is one question where more
            are needed.
    """
    check_confidence(confidence)
    mismatches = check_pairs(pairs, allow_differences=allow_differences)
    labels = run_labels([run for pair in pairs for run in pair])
    compared = tuple(
        _compare_pair(a, b, (labels[2 * place], labels[2 * place + 1]), confidence)
        for place, (a, b) in enumerate(pairs)
    )
    scores_a, scores_b = (np.array([pair[side].scores for pair in pairs]) for side in (0, 1))
    differences_SQ = scores_b - scores_a
    seeds: SeedResult | None = None
    if len(pairs) == 1:
        interval, method = compared[0].interval, compared[0].interval_method
        detectable = _detectable_by_questions(compared[0], differences_SQ[0], confidence)
    else:
        spread = SeedSpread.of(differences_SQ)
        interval, method = spread.interval(confidence), "over seeds (Student's t) and questions"
        detectable = _detectable_by_seeds(spread, confidence)
        seeds = SeedResult(
            seeds=spread.seeds,
            differences=tuple(pair.difference for pair in compared),
            sd=spread.observed_sd,
            sd_by_chance=spread.sd_by_chance,
            mean_squares=(spread.seed_mean_square, spread.question_mean_square, spread.residual_mean_square),
        )
    return Comparison(
        task=pairs[0][0].config["task"],
        n=differences_SQ.shape[1],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        pairs=compared,
        difference=float(differences_SQ.mean()),
        interval=interval,
        interval_method=method,
        bootstrap=bootstrap_interval(differences_SQ, confidence, resamples, seed),
        seeds=seeds,
        detectable=detectable,
        questions=_questions(pairs, scores_a, scores_b),
        mismatches=mismatches,
        notes=find_notes(pairs, mismatches),
        verdict=verdict(
            difference=float(differences_SQ.mean()),
            interval=interval,
            confidence=confidence,
            seeds=len(pairs),
            n=differences_SQ.shape[1],
            test=compared[0].test if seeds is None else None,
            p_value=compared[0].p_value if seeds is None else None,
            discordance=float((differences_SQ != 0).mean()),
            detectable=detectable.difference,
        ),
    )


def _compare_pair(a: SavedRun, b: SavedRun, labels: tuple[str, str], confidence: float) -> PairComparison:
    sides = _accuracy(a, labels[0], confidence), _accuracy(b, labels[1], confidence)
    scores_a, scores_b = a.scores, b.scores
    discordance = sum(x != y for x, y in zip(scores_a, scores_b, strict=True)) / len(scores_a)
    if sides[0].num_samples == sides[1].num_samples == 1:
        counts = PairedCounts.of([bool(score) for score in scores_a], [bool(score) for score in scores_b])
        return PairComparison(
            *sides,
            counts=counts,
            difference=counts.difference,
            interval=tango_interval(counts.only_a, counts.only_b, counts.n, confidence),
            interval_method="Tango's score interval",
            p_value=mcnemar_exact(counts.only_a, counts.only_b),
            test="exact McNemar",
            discordance=discordance,
        )
    # Whole numbers, so that the test need not decide which sums of fractions are equal.
    unit = math.lcm(sides[0].num_samples, sides[1].num_samples)
    whole = [round((y - x) * unit) for x, y in zip(scores_a, scores_b, strict=True)]
    differences = [value / unit for value in whole]
    return PairComparison(
        *sides,
        counts=None,
        difference=sum(whole) / unit / len(whole),
        interval=mean_interval(differences, confidence),
        interval_method="Student's t over questions",
        p_value=sign_flip_test(whole),
        test="exact sign-flip test",
        discordance=discordance,
    )


def _accuracy(run: SavedRun, label: str, confidence: float) -> RunAccuracy:
    n, samples = run.summary["n"], run.summary["num_samples"]
    correct = sum(bool(item["correct"]) for item in run.items)
    if samples == 1:
        interval = wilson_interval(correct, n, confidence)
    else:
        low, high = mean_interval(run.scores, confidence)
        interval = Interval(max(0.0, low), high)
    return RunAccuracy(
        label=label,
        path=str(run.path),
        model=str(run.config["settings"].get("model", "")),
        n=n,
        num_samples=samples,
        correct=correct,
        accuracy=correct / (n * samples),
        interval=interval,
        truncated=truncated_share(run),
        fallback=fallback_share(run),
    )


def _detectable_by_questions(pair: PairComparison, differences: np.ndarray, confidence: float) -> Detectable:
    n, alpha = pair.a.n, round(1 - confidence, 12)
    if pair.counts is not None:
        return Detectable(
            difference=smallest_detectable_difference(n, pair.discordance, alpha),
            needed=questions_needed(pair.difference, pair.discordance, alpha),
            unit="questions",
            alpha=alpha,
            power=POWER,
            method="exact McNemar",
        )
    reach = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) * float(np.std(differences, ddof=1))
    return Detectable(
        difference=reach / math.sqrt(n) if reach else None,
        needed=math.ceil((reach / pair.difference) ** 2) if pair.difference else None,
        unit="questions",
        alpha=alpha,
        power=POWER,
        method="normal approximation",
    )


def _detectable_by_seeds(spread: SeedSpread, confidence: float) -> Detectable:
    return Detectable(
        difference=spread.smallest_detectable_difference(confidence, POWER),
        needed=spread.seeds_needed(spread.mean, confidence, POWER) if spread.mean else None,
        unit="pairs of seeds",
        alpha=round(1 - confidence, 12),
        power=POWER,
        method="the interval over seeds and questions",
    )


def _questions(
    pairs: Sequence[RunPair], scores_a: np.ndarray, scores_b: np.ndarray
) -> tuple[QuestionOutcome, ...]:
    """Where scores differ in a pair at least: most often won first, the rest in the order of the data."""
    firsts = [[run.first_samples for run in pair] for pair in pairs]
    outcomes = []
    for index in np.flatnonzero((scores_a != scores_b).any(axis=0)).tolist():
        a, b = scores_a[:, index], scores_b[:, index]
        item = firsts[0][0][index]
        outcomes.append(
            QuestionOutcome(
                index=index,
                question=item["question"],
                gold=item["gold"],
                won=int((b > a).sum()),
                lost=int((b < a).sum()),
                a=tuple(a.tolist()),
                b=tuple(b.tolist()),
                predicted_a=tuple(side[0][index]["predicted"] for side in firsts),
                predicted_b=tuple(side[1][index]["predicted"] for side in firsts),
            )
        )
    return tuple(sorted(outcomes, key=lambda outcome: outcome.lost - outcome.won))
