"""Comparing saved evaluations of two methods, A and B: one pair, or one pair for each training seed.

`compare_runs` brings together what `paired`, `power` and `training_seeds` compute. It neither prints nor reads files;
`mce-llm compare` and the report do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import stats

from mce_llm.eval.comparing.comparability import check_pairs, find_notes
from mce_llm.eval.comparing.comparison_outcome import (
    Comparison,
    Detectable,
    PairComparison,
    QuestionOutcome,
    SeedResult,
)
from mce_llm.eval.comparing.detecting import detectable_by_mcnemar, detectable_by_seeds
from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.notes import Note
from mce_llm.eval.comparing.paired import (
    PairedCounts,
    in_whole_units,
    mcnemar_exact,
    mean_interval,
    sign_flip_test,
    tango_interval,
)
from mce_llm.eval.comparing.pairing import RunPair
from mce_llm.eval.comparing.power import POWER
from mce_llm.eval.comparing.run_accuracy import is_all_or_nothing, run_accuracy
from mce_llm.eval.comparing.training_differences import training_overview
from mce_llm.eval.comparing.training_seeds import SeedSpread, bootstrap_interval
from mce_llm.eval.comparing.verdicts import verdict
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import check_confidence
from mce_llm.eval.saved_runs import SavedRun

__all__ = ["Comparison", "compare_runs"]


def compare_runs(
    pairs: Sequence[RunPair],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    allow_differences: bool = False,
    pairing: str = "by position: the first A with the first B, and so on",
    doubts: Sequence[str] = (),
    sides: tuple[str, str] = ("A", "B"),
    name: str | None = None,
) -> Comparison:
    """Compare evaluations of two methods on the same questions.

    Args:
        pairs: (A, B), A the baseline; several pairs are several training seeds, the two of a pair with the same.
        confidence: Coverage of the intervals; tests use 1 − confidence.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        allow_differences: Compare runs whose prompt, decoding or dtype differs, with a warning in the outcome.
        pairing: By what they were paired, in words, as `pairing` found it.
        doubts: What speaks against this pairing, in words: warnings in the outcome.
        sides: What A and B are called in words.
        name: What people call B beside that.

    Returns:
        The comparison.

    Raises:
        EvaluationError: The runs cannot be compared.
        IntervalError: The confidence or the number of resamples is out of range, or there is one question where more
            are needed.
    """
    check_confidence(confidence)
    mismatches = check_pairs(pairs, allow_differences=allow_differences)
    distinct = DistinctQuestions.of(pairs[0][0])
    labels = run_labels([run for pair in pairs for run in pair])
    compared = tuple(
        _compare_pair(a, b, (labels[2 * place], labels[2 * place + 1]), distinct, confidence)
        for place, (a, b) in enumerate(pairs)
    )
    scores_a, scores_b = (
        np.array([[float(score) for score in distinct.scores(pair[side])] for pair in pairs])
        for side in (0, 1)
    )
    differences_SQ = scores_b - scores_a
    seeds: SeedResult | None = None
    if len(pairs) == 1:
        interval, method = compared[0].interval, compared[0].interval_method
        p_value = compared[0].p_value
        detectable = _detectable_by_questions(compared[0], differences_SQ[0], confidence)
    else:
        if distinct.n == 1:
            raise EvaluationError(
                "an interval over training seeds and questions needs two different questions at least, and all of "
                f"{distinct.asked:,} are copies of one"
            )
        spread = SeedSpread.of(differences_SQ)
        interval, method = spread.interval(confidence), "over seeds (Student's t) and questions"
        p_value = spread.p_value()
        detectable = detectable_by_seeds(spread, confidence)
        seeds = SeedResult(
            seeds=spread.seeds,
            differences=tuple(pair.difference for pair in compared),
            sd=spread.observed_sd,
            sd_by_chance=spread.sd_by_chance,
            mean_squares=(spread.seed_mean_square, spread.question_mean_square, spread.residual_mean_square),
        )
    trainings = training_overview([run for pair in pairs for run in pair])
    return Comparison(
        task=pairs[0][0].config["task"],
        title=pairs[0][0].data_title,
        sides=sides,
        name=name,
        n=distinct.n,
        asked=distinct.asked,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        pairs=compared,
        difference=float(differences_SQ.mean()),
        interval=interval,
        interval_method=method,
        p_value=p_value,
        bootstrap=bootstrap_interval(differences_SQ, confidence, resamples, seed),
        seeds=seeds,
        detectable=detectable,
        questions=_questions(pairs, scores_a, scores_b, distinct),
        pairing=pairing,
        trainings=trainings,
        mismatches=mismatches,
        notes=(
            *(Note("warning", f"compared all the same: {doubt}") for doubt in doubts),
            *find_notes(pairs, mismatches, distinct, trainings, sides),
        ),
        verdict=verdict(
            difference=float(differences_SQ.mean()),
            interval=interval,
            confidence=confidence,
            seeds=len(pairs),
            n=distinct.n,
            test=compared[0].test if seeds is None else None,
            p_value=p_value if seeds is None else None,
            discordance=float((differences_SQ != 0).mean()),
            detectable=detectable.difference,
            sides=sides,
        ),
    )


def _compare_pair(
    a: SavedRun, b: SavedRun, labels: tuple[str, str], distinct: DistinctQuestions, confidence: float
) -> PairComparison:
    side_a, side_b = (
        run_accuracy(run, label, distinct, confidence) for run, label in zip((a, b), labels, strict=True)
    )
    scores_a, scores_b = distinct.scores(a), distinct.scores(b)
    discordance = sum(x != y for x, y in zip(scores_a, scores_b, strict=True)) / distinct.n
    plain = side_a.num_samples == side_b.num_samples == 1
    if plain and is_all_or_nothing([*scores_a, *scores_b]):
        counts = PairedCounts.of([score == 1 for score in scores_a], [score == 1 for score in scores_b])
        return PairComparison(
            side_a,
            side_b,
            counts=counts,
            difference=counts.difference,
            interval=tango_interval(counts.only_a, counts.only_b, counts.n, confidence),
            interval_method="Tango's score interval",
            p_value=mcnemar_exact(counts.only_a, counts.only_b),
            test="exact McNemar",
            discordance=discordance,
        )
    if distinct.n == 1:
        raise EvaluationError(
            f"there is one question ({distinct.asked:,} copies of it), and it is right in parts: an interval needs two "
            "different questions at least"
        )
    differences = [y - x for x, y in zip(scores_a, scores_b, strict=True)]
    return PairComparison(
        side_a,
        side_b,
        counts=None,
        difference=float(sum(differences, Fraction()) / distinct.n),
        interval=mean_interval([float(difference) for difference in differences], confidence),
        interval_method="Student's t over questions",
        p_value=sign_flip_test(in_whole_units(differences)),
        test="exact sign-flip test",
        discordance=discordance,
    )


def _detectable_by_questions(pair: PairComparison, differences: np.ndarray, confidence: float) -> Detectable:
    n, alpha = pair.a.n, round(1 - confidence, 12)
    if pair.counts is not None:
        return detectable_by_mcnemar(n, pair.discordance, pair.difference, confidence)
    reach = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) * float(np.std(differences, ddof=1))
    return Detectable(
        difference=reach / math.sqrt(n) if reach else None,
        needed=math.ceil((reach / pair.difference) ** 2) if pair.difference else None,
        unit="questions",
        alpha=alpha,
        power=POWER,
        method="normal approximation",
    )


def _questions(
    pairs: Sequence[RunPair], scores_a: np.ndarray, scores_b: np.ndarray, distinct: DistinctQuestions
) -> tuple[QuestionOutcome, ...]:
    """Where scores differ in a pair at least: most often won first, the rest in the order of the data."""
    firsts = [[run.first_samples for run in pair] for pair in pairs]
    outcomes = []
    for unit in np.flatnonzero((scores_a != scores_b).any(axis=0)).tolist():
        a, b = scores_a[:, unit], scores_b[:, unit]
        index, *copies = distinct.places[unit]
        item = firsts[0][0][index]
        outcomes.append(
            QuestionOutcome(
                index=index,
                copies=1 + len(copies),
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
