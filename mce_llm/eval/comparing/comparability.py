"""Whether the difference of two runs is one of their models: what they must share, and what a reader must know.

Runs with other prompts, data, decoding or dtype are told apart here, and settings that differ are named with both
values. The statistics are in `comparison`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.evaluations import EvaluationPair, SavedEvaluation, comparable_keys
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.notes import Mismatch, Note
from mce_llm.eval.comparing.pairing import RunPair
from mce_llm.eval.comparing.run_accuracy import fallback_share, truncated_share
from mce_llm.eval.comparing.training_differences import TrainingOverview, training_notes
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.wording import share_text

MOST_TRUNCATED = 0.01
"""Share of answers cut off from which on a note is made."""
MOST_FALLBACK = 0.05
"""The same for answers that were found without a marker."""
MOST_COPIES = 0.01
"""Share of the questions that are copies of others from which on that is a warning."""
_UNEQUAL = 0.01
_SHOWN = 60
_DATA_SETTINGS = ("data", "split", "limit")


def find_mismatches(runs: Sequence[SavedEvaluation]) -> tuple[Mismatch, ...]:
    """Hold every run against the first.

    Args:
        runs: Of one kind.

    Returns:
        What differs, run by run.
    """
    labels = run_labels(runs)
    return tuple(
        Mismatch(key, label, labels[0], tuple(_details(key, runs[0], run, labels[0], label)))
        for run, label in zip(runs[1:], labels[1:], strict=True)
        for key in comparable_keys(runs[0])
        if run.identity[key] != runs[0].identity[key]
    )


def check_pairs(pairs: Sequence[EvaluationPair], *, allow_differences: bool) -> tuple[Mismatch, ...]:
    """Refuse pairs of runs that cannot be compared; see `check_runs`."""
    return check_runs([run for pair in pairs for run in pair], allow_differences=allow_differences)


def check_runs(runs: Sequence[SavedEvaluation], *, allow_differences: bool) -> tuple[Mismatch, ...]:
    """Refuse runs that cannot be compared.

    Args:
        runs: Those of all arms; each is held against the first.
        allow_differences: Accept other prompts, decoding and dtypes, and data whose questions are the same.

    Returns:
        The mismatches that were allowed.

    Raises:
        EvaluationError: There is no run, one is there twice, runs differ in what they must share, or the questions
            are not the same.
    """
    if not runs:
        raise EvaluationError("there is nothing to compare; give the folders of two evaluations")
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise EvaluationError(
                f"{path} is given {count} times; a comparison needs a run of its own in each place"
            )
    mismatches = find_mismatches(runs)
    if mismatches and not allow_differences:
        told = []
        for name in dict.fromkeys(mismatch.run for mismatch in mismatches):
            what = ", ".join(str(mismatch) for mismatch in mismatches if mismatch.run == name)
            told.append(f"{name} cannot be compared with {mismatches[0].reference}: they differ in {what}")
        same = all(_same_content(runs[0], run) for run in runs[1:])
        advice = "; --allow-differences compares them all the same" if same else ""
        raise EvaluationError(f"{'. '.join(told)}. Evaluate again with the same settings{advice}")
    labels = run_labels(runs)
    for run, label in zip(runs[1:], labels[1:], strict=True):
        other = _first_other_question(runs[0], run)
        if other is not None:
            raise EvaluationError(
                f"{labels[0]} and {label} did not answer the same questions ({other}), so they cannot be paired; "
                "evaluate both on the same data"
            )
    return mismatches


def _same_content(a: SavedEvaluation, b: SavedEvaluation) -> bool:
    """Whether two runs have the same questions and, where tokens were scored, the same tokens: without that there is no pair."""
    return _first_other_question(a, b) is None and _settings("scoring", a).get("tokens") == _settings(
        "scoring", b
    ).get("tokens")


def find_notes(
    pairs: Sequence[RunPair],
    mismatches: Sequence[Mismatch],
    distinct: DistinctQuestions,
    trainings: TrainingOverview,
    sides: tuple[str, str] = ("A", "B"),
) -> tuple[Note, ...]:
    """What could pass for a difference between the models, warnings first.

    Args:
        pairs: (A, B) of each training seed.
        mismatches: What was allowed to differ.
        distinct: The questions.
        trainings: What is known of the trainings.
        sides: What A and B are called.

    Returns:
        The notes.
    """
    notes = [
        *common_notes(pairs, mismatches, distinct, trainings, sides),
        *_unlike_answers(pairs, sides),
        *two_seeds(len(pairs)),
    ]
    return warnings_first(notes)


def common_notes(
    pairs: Sequence[EvaluationPair],
    mismatches: Sequence[Mismatch],
    distinct: DistinctQuestions,
    trainings: TrainingOverview,
    sides: tuple[str, str],
) -> list[Note]:
    """What can pass for a difference between the models in evaluations of any kind; arguments as for `find_notes`."""
    return [
        *_allowed(mismatches),
        *_same_models(pairs, sides),
        *training_notes(pairs, trainings, sides),
        *_remarks(pairs),
        *_copies(distinct),
        *_other_versions(pairs),
    ]


def warnings_first(notes: Iterable[Note]) -> tuple[Note, ...]:
    """The same notes, each once, warnings before the others."""
    return tuple(sorted(dict.fromkeys(notes), key=lambda note: note.level == "note"))


def two_seeds(seeds: int) -> Iterator[Note]:
    """Say what two training seeds are worth; nothing where there are more, or one."""
    if seeds == 2:
        yield Note(
            "note",
            "two training seeds hardly show how much seeds vary (one degree of freedom, a t quantile of 12.7 at "
            "95 %): a third pair narrows the interval more than anything else would",
        )


def _details(key: str, a: SavedEvaluation, b: SavedEvaluation, label_a: str, label_b: str) -> Iterator[str]:
    sides = [_settings(key, run) for run in (a, b)]
    found = False
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name) for side in sides]
        if values[0] != values[1]:
            found = True
            if (key, name) == ("scoring", "tokens"):
                yield f"the tokens of the solutions: {label_a} and {label_b} have different tokenizers"
                continue
            shown = _shown(*values)
            yield f"{name}: {shown[0]} in {label_a}, {shown[1]} in {label_b}"
    other = _first_other_question(a, b) if key == "data" else None
    if other is not None:
        yield other
    elif not found:
        yield f"hash {a.identity[key][:12]} in {label_a}, {b.identity[key][:12]} in {label_b}"


def _settings(key: str, run: SavedEvaluation) -> dict[str, Any]:
    """The settings behind one part of a run's identity."""
    if key in ("task", "dtype"):
        return {key: run.config[key]}
    settings = {}
    if key == "data":
        settings = {name: run.config["settings"].get(name) for name in _DATA_SETTINGS}
        settings["questions"] = run.summary["n"]
    return {**settings, **_flat(run.config.get(key) or {})}


def _flat(content: Mapping[str, Any] | str, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {prefix or "value": content}
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _shown(a: Any, b: Any) -> tuple[str, str]:
    """Two values, both cut around the place where they begin to differ when they are long."""
    texts = (a, b) if isinstance(a, str) and isinstance(b, str) else (repr(a), repr(b))
    place = next((n for n, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), min(map(len, texts)))
    start = max(0, place - _SHOWN // 3) if max(map(len, texts)) > _SHOWN else 0
    shown = []
    for value, text in zip((a, b), texts, strict=True):
        part = text[start : start + _SHOWN]
        part = repr(part) if isinstance(value, str) and text is value else part
        shown.append(f"{'…' * (start > 0)}{part}{'…' * (start + _SHOWN < len(text))}")
    return shown[0], shown[1]


def _first_other_question(a: SavedEvaluation, b: SavedEvaluation) -> str | None:
    """Where the questions or their gold answers begin to differ, or None where they are the same."""
    if a.summary["n"] != b.summary["n"]:
        return f"{a.summary['n']:,} and {b.summary['n']:,} questions"
    for one, other in zip(a.first_samples, b.first_samples, strict=True):
        for name in ("question", "gold"):
            if one[name] != other[name]:
                x, y = _shown(one[name], other[name])
                return (
                    f"{'the reference of ' * (name == 'gold')}question no. {one['index'] + 1} is {x} and {y}"
                )
    return None


def _allowed(mismatches: Sequence[Mismatch]) -> Iterator[Note]:
    for mismatch in mismatches:
        yield Note(
            "warning",
            f"{mismatch.run} and {mismatch.reference} differ in {mismatch}: the difference may be one of the settings, "
            "not of the models",
        )


def _same_models(pairs: Sequence[EvaluationPair], sides: tuple[str, str]) -> Iterator[Note]:
    for number, (a, b) in enumerate(pairs, start=1):
        if a.identity["model"] == b.identity["model"]:
            yield Note(
                "warning", f"pair {number}: {sides[0]} and {sides[1]} are the same model, evaluated twice"
            )
    for side, name in enumerate(sides):
        counts = Counter(pair[side].identity["model"] for pair in pairs)
        if any(count > 1 for count in counts.values()):
            yield Note(
                "warning",
                f"{len(pairs)} runs of {name} are of {len(counts)} model{'s' * (len(counts) > 1)}: the same model twice "
                "is not another training seed, and the interval over seeds is too narrow",
            )


def _remarks(pairs: Sequence[EvaluationPair]) -> Iterator[Note]:
    """What reading the files has found: verdicts and counts that were others."""
    runs = [run for pair in pairs for run in pair]
    for label, run in zip(run_labels(runs), runs, strict=True):
        for remark in run.remarks:
            yield Note("warning", f"{label}: {remark}")


def _copies(distinct: DistinctQuestions) -> Iterator[Note]:
    told = distinct.told()
    if told is not None:
        many = distinct.asked - distinct.n > MOST_COPIES * distinct.asked or distinct.disagreeing
        yield Note("warning" if many else "note", told)


def _unlike_answers(pairs: Sequence[RunPair], sides: tuple[str, str]) -> Iterator[Note]:
    kinds = (
        ("were cut off", truncated_share, MOST_TRUNCATED, "raise max_new_tokens"),
        ("were found without a marker", fallback_share, MOST_FALLBACK, "read them in items.jsonl"),
    )
    for number, (a, b) in enumerate(pairs, start=1):
        for what, share, most, remedy in kinds:
            shares = share(a), share(b)
            if max(shares) > most or abs(shares[1] - shares[0]) > _UNEQUAL:
                pair = f"pair {number}: " if len(pairs) > 1 else ""
                yield Note(
                    "note",
                    f"{pair}{share_text(shares[0])} of {sides[0]}'s answers and {share_text(shares[1])} of {sides[1]}'s "
                    f"{what}, which can hide or feign a difference in skill; {remedy}",
                )


def _other_versions(pairs: Sequence[EvaluationPair]) -> Iterator[Note]:
    runs = [run for pair in pairs for run in pair]
    versions = [run.config.get("versions", {}) for run in runs]
    for package in dict.fromkeys(name for each in versions for name in each):
        seen = dict.fromkeys(str(each.get(package, "not recorded")) for each in versions)
        if len(seen) > 1:
            yield Note("note", f"the runs were made with different versions of {package}: {', '.join(seen)}")
    for name in ("batch_size", "batching", "batch_tokens"):
        if not any(name in run.summary for run in runs):
            continue
        settings = dict.fromkeys(str(run.summary.get(name, "not recorded")) for run in runs)
        if len(settings) > 1:
            yield Note(
                "note",
                f"the runs used different {name} ({', '.join(settings)}), which can change single answers by rounding",
            )
