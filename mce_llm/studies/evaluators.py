"""The evaluations that a study can ask for: their scripts, options, data, and what is kept of their results.

torch and datasets are loaded where options or data are looked at, so that the tables of a study need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.comparing.measures import ACCURACY, MEASURES
from mce_llm.eval.copies import question_key
from mce_llm.eval.fingerprints import fingerprint
from mce_llm.running.settings import parse_settings, setting_words

_SUMS = ("tokens", "nats", "top1", "entropy")
_BINS = ("tokens", "confidence", "top1")


@dataclass(frozen=True)
class Outcome:
    """What is kept of a finished evaluation.

    Attributes:
        hashes: Of task, prompt, data, decoding (or scoring), dtype and model.
        summary: The numbers of `summary.json`.
        questions: How many different questions there are, and a hash of them in their order.
        values: Of each of them in this order: `score`, or `groups` and `calibration` as columns.
        versions: Package → version.
        remarks: What a reader must know of the files.
    """

    hashes: dict[str, str]
    summary: dict[str, Any]
    questions: dict[str, Any]
    values: dict[str, Any]
    versions: dict[str, str]
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As a line of results.jsonl holds it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Evaluator:
    """A script that evaluates a model.

    Attributes:
        script: Its place below the folder of the scripts that come along.
        measures: What its results can be compared by.
        options: Returns the class of its options.
        task: Returns what is asked, whose `load` reads questions.
        read: Reads a finished evaluation.
    """

    script: str
    measures: tuple[str, ...]
    options: Callable[[], type]
    task: Callable[[], Any]
    read: Callable[[Path], Outcome]

    def parse(self, settings: Mapping[str, Any]) -> Any:
        """Return the options as the script would make them, for some model.

        Args:
            settings: Those of the study.

        Raises:
            MceLlmError: They cannot be used.
        """
        words = option_words({"model": "-", "output": "-", **settings})
        (options,), _ = parse_settings((self.options(),), words)
        return options

    def load(self, options: Any) -> Sequence[Mapping[str, Any]]:
        """Read the questions that options ask for.

        Args:
            options: As `parse` returns them.

        Returns:
            The questions.

        Raises:
            MceLlmError: They cannot be asked: data that cannot be read, references that cannot be judged by.
        """
        task = self.task()
        task.check_ready()
        questions = task.load(
            options.data,
            options.split,
            options.limit,
            name=options.data_name,
            columns=options.column_mapping,
            unreadable=options.unreadable_references,
        )
        return questions.rows

    def lacks(self, rows: Sequence[Mapping[str, Any]], measure: str | None) -> list[str]:
        """Say what questions lack for a comparison, before anything is trained for it.

        Args:
            rows: As `load` returns them.
            measure: The primary measure, where it is this evaluation's.
        """
        if len({question_key(row["question"]) for row in rows}) < 2:
            return [
                f"{len(rows)} question{'s' * (len(rows) != 1)}; an interval needs 2 different ones at least"
            ]
        group = MEASURES[measure].group if measure in MEASURES else None
        if group is None or measure not in self.measures or ACCURACY.name in self.measures:
            return []
        from mce_llm.eval.likelihood.references import groups_of_text

        if any(group in groups_of_text(row) for row in rows):
            return []
        return [
            f"no solution of its data has tokens of {group!r}, so the primary measure {measure} would be of nothing"
        ]


def option_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line, as people write them."""
    words = []
    for name, value in settings.items():
        for word in setting_words(name, value):
            flag, equals, text = word.partition("=")
            plain = equals and flag == f"--{name}" and not text.startswith("-")
            words += [flag, text] if plain else [word]
    return words


def _gsm8k_options() -> type:
    from mce_llm.eval.gsm8k import Gsm8kConfig

    return Gsm8kConfig


def _math_options() -> type:
    from mce_llm.eval.math import MathConfig

    return MathConfig


def _likelihood_options() -> type:
    from mce_llm.eval.likelihood.settings import LikelihoodConfig

    return LikelihoodConfig


def _answers_task(name: str) -> Callable[[], Any]:
    def task() -> Any:
        from mce_llm.eval.saved_items import TASKS

        return TASKS[name]

    return task


def _likelihood_task() -> Any:
    from mce_llm.eval.likelihood.evaluation import LIKELIHOOD

    return LIKELIHOOD


def read_answers(folder: Path) -> Outcome:
    """Read an evaluation of answers: a score for every different question, copies put together.

    Args:
        folder: Its output folder.

    Raises:
        EvaluationError: It is not finished, or its files contradict each other.
    """
    from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
    from mce_llm.eval.saved_runs import SavedRun

    run = SavedRun.read(folder)
    distinct = DistinctQuestions.of(run)
    first = {item["index"]: item["question"] for item in run.first_samples}
    keys = [question_key(first[places[0]]) for places in distinct.places]
    return Outcome(
        hashes=run.identity,
        summary=_numbers(run.summary),
        questions={"count": distinct.n, "asked": distinct.asked, "hash": fingerprint(keys)},
        values={"score": [_compact(float(score)) for score in distinct.scores(run)]},
        versions=dict(run.config.get("versions", {})),
        remarks=list(run.remarks),
    )


def read_likelihoods(folder: Path) -> Outcome:
    """Read an evaluation of likelihoods: sums over the tokens of every different question, copies put together.

    Args:
        folder: Its output folder.

    Raises:
        EvaluationError: It is not finished, or its files contradict each other.
    """
    from mce_llm.eval.likelihood.saved import SavedLikelihood

    run = SavedLikelihood.read(folder)
    items = run.items
    places: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        places.setdefault(question_key(item["question"]), []).append(number)

    def columns(part: str, fields: tuple[str, ...]) -> dict[str, dict[str, list[Any]]]:
        return {
            group: {
                field: [_mean([items[at][part][group][field] for at in found]) for found in places.values()]
                for field in fields
            }
            for group in items[0].get(part) or {}
        }

    return Outcome(
        hashes=dict(run.identity),
        summary=_numbers(run.summary),
        questions={"count": len(places), "asked": len(items), "hash": fingerprint(list(places))},
        values={"groups": columns("groups", _SUMS), "calibration": columns("calibration", _BINS)},
        versions=dict(run.config.get("versions", {})),
        remarks=list(run.remarks),
    )


def _mean(values: list[Any]) -> Any:
    """The mean over copies of numbers, or of lists of numbers."""
    if isinstance(values[0], list):
        return [_mean(list(column)) for column in zip(*values, strict=True)]
    return _compact(sum(values) / len(values))


def _compact(value: float) -> float | int:
    """A number with six significant digits, whole ones without a point."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


def _numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says in numbers; settings, hashes and versions are kept elsewhere."""
    return {
        name: value
        for name, value in summary.items()
        if (isinstance(value, (int, float, list, dict)) and name not in ("hashes", "versions", "continued"))
    }


EVALUATORS: dict[str, Evaluator] = {
    "gsm8k": Evaluator(
        "eval/gsm8k.py", (ACCURACY.name,), _gsm8k_options, _answers_task("gsm8k"), read_answers
    ),
    "hendrycks_math": Evaluator(
        "eval/hendrycks_math.py", (ACCURACY.name,), _math_options, _answers_task("math"), read_answers
    ),
    "likelihood": Evaluator(
        "eval/likelihood.py",
        tuple(name for name in MEASURES if name != ACCURACY.name),
        _likelihood_options,
        _likelihood_task,
        read_likelihoods,
    ),
}
"""Name of a script → what it is."""
