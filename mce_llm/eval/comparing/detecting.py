"""What a comparison could have found, by McNemar's test, over questions or over seeds; the rest as it was seen."""

from __future__ import annotations

from mce_llm.eval.comparing.comparison_outcome import Detectable
from mce_llm.eval.comparing.power import POWER, questions_needed, smallest_detectable_difference
from mce_llm.eval.comparing.question_spread import QuestionSpread
from mce_llm.eval.comparing.training_seeds import SeedSpread


def detectable_by_mcnemar(n: int, discordance: float, difference: float, confidence: float) -> Detectable:
    """Return what McNemar's exact test could have found with one pair of runs.

    Args:
        n: Questions.
        discordance: Share of them that exactly one answered rightly.
        difference: That was seen.
        confidence: α is 1 − confidence.
    """
    alpha = round(1 - confidence, 12)
    return Detectable(
        difference=smallest_detectable_difference(n, discordance, alpha),
        needed=questions_needed(difference, discordance, alpha),
        unit="questions",
        alpha=alpha,
        power=POWER,
        method="exact McNemar",
    )


def detectable_by_questions(spread: QuestionSpread, confidence: float) -> Detectable:
    """Return what the interval over questions of one pair of runs could have found.

    Args:
        spread: Of the questions' differences.
        confidence: Of the interval.
    """
    return Detectable(
        difference=spread.smallest_detectable_difference(confidence, POWER),
        needed=spread.questions_needed(confidence, POWER),
        unit="questions",
        alpha=round(1 - confidence, 12),
        power=POWER,
        method="the interval over questions",
    )


def detectable_by_seeds(spread: SeedSpread, confidence: float) -> Detectable:
    """Return what the interval over seeds and questions could have found.

    Args:
        spread: Of the table of differences.
        confidence: Of the interval.
    """
    return Detectable(
        difference=spread.smallest_detectable_difference(confidence, POWER),
        needed=spread.seeds_needed(spread.mean, confidence, POWER) if spread.mean else None,
        unit="pairs of seeds",
        alpha=round(1 - confidence, 12),
        power=POWER,
        method="the interval over seeds and questions",
    )
