"""Whether the difference of two runs is one of their models: what they must share, and what a reader must know.

Runs with other prompts, data, decoding or dtype are told apart here, and settings that differ are named with both
values. The statistics are in `comparison`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_runs import COMPARABLE, SavedRun

RunPair = tuple[SavedRun, SavedRun]

MOST_TRUNCATED = 0.01
"""Share of answers cut off from which on a note is made."""
MOST_FALLBACK = 0.05
"""The same for answers that were found without a marker."""
_UNEQUAL = 0.01
_SHOWN = 60
_DATA_SETTINGS = ("data", "split", "limit")


@dataclass(frozen=True)
class Mismatch:
    """Something that two runs should share and do not.

    Attributes:
        key: One of `COMPARABLE`.
        run: Label of the run that differs.
        reference: Label of the run that it was compared with, the first A.
        details: The settings that differ, with both values.
    """

    key: str
    run: str
    reference: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key} ({'; '.join(self.details)})"


@dataclass(frozen=True)
class Note:
    """Something that a reader of the comparison must know.

    Attributes:
        level: warning where the difference may not be one of the models, note for what is worth a look.
        text: What it is, and what to do about it.
    """

    level: Literal["warning", "note"]
    text: str


def run_labels(runs: Sequence[SavedRun]) -> list[str]:
    """Short names that tell runs apart: the ends of their paths, without gsm8k, math and eval where that suffices.

    Args:
        runs: The runs.

    Returns:
        One label for each.
    """
    all_parts = [run.name_parts for run in runs]
    lengths = [1] * len(runs)

    def labels() -> list[str]:
        return ["/".join(parts[-n:]) for parts, n in zip(all_parts, lengths, strict=True)]

    for _ in range(max(map(len, all_parts), default=0)):
        counts = Counter(labels())
        lengths = [n + (counts[label] > 1) for n, label in zip(lengths, labels(), strict=True)]
    short = labels()
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def find_mismatches(pairs: Sequence[RunPair]) -> tuple[Mismatch, ...]:
    """Hold every run against the first A.

    Args:
        pairs: (A, B) of each training seed.

    Returns:
        What differs, run by run.
    """
    runs = [run for pair in pairs for run in pair]
    labels = run_labels(runs)
    return tuple(
        Mismatch(key, label, labels[0], tuple(_details(key, runs[0], run, labels[0], label)))
        for run, label in zip(runs[1:], labels[1:], strict=True)
        for key in COMPARABLE
        if run.identity[key] != runs[0].identity[key]
    )


def check_pairs(pairs: Sequence[RunPair], *, allow_differences: bool) -> tuple[Mismatch, ...]:
    """Refuse runs that cannot be compared.

    Args:
        pairs: (A, B) of each training seed.
        allow_differences: Accept other prompts, decoding and dtypes, and data whose questions are the same.

    Returns:
        The mismatches that were allowed.

    Raises:
        EvaluationError: There is no pair, a run is there twice, runs differ in what they must share, or the questions
            are not the same.
    """
    runs = [run for pair in pairs for run in pair]
    if not runs:
        raise EvaluationError("there is nothing to compare; give the folders of two evaluations")
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise EvaluationError(
                f"{path} is given {count} times; a comparison needs a run of its own in each place, in the order "
                "A B A2 B2 …"
            )
    mismatches = find_mismatches(pairs)
    if mismatches and not allow_differences:
        told = []
        for name in dict.fromkeys(mismatch.run for mismatch in mismatches):
            what = ", ".join(str(mismatch) for mismatch in mismatches if mismatch.run == name)
            told.append(f"{name} cannot be compared with {mismatches[0].reference}: they differ in {what}")
        raise EvaluationError(
            f"{'. '.join(told)}. Evaluate again with the same settings; --allow-differences compares them all the same"
        )
    labels = run_labels(runs)
    for run, label in zip(runs[1:], labels[1:], strict=True):
        other = _first_other_question(runs[0], run)
        if other is not None:
            raise EvaluationError(
                f"{labels[0]} and {label} did not answer the same questions ({other}), so they cannot be paired; "
                "evaluate both on the same data"
            )
    return mismatches


def find_notes(pairs: Sequence[RunPair], mismatches: Sequence[Mismatch]) -> tuple[Note, ...]:
    """What could pass for a difference between the models, warnings first.

    Args:
        pairs: (A, B) of each training seed.
        mismatches: What was allowed to differ.

    Returns:
        The notes.
    """
    notes = [*_allowed(mismatches), *_same_models(pairs), *_unlike_answers(pairs), *_other_versions(pairs)]
    if len(pairs) == 2:
        notes.append(
            Note(
                "note",
                "two training seeds hardly show how much seeds vary (one degree of freedom, a t quantile of 12.7 at "
                "95 %): a third pair narrows the interval more than anything else would",
            )
        )
    return tuple(sorted(notes, key=lambda note: note.level == "note"))


def fallback_share(run: SavedRun) -> float:
    """Share of the answers that were found without a marker, as the last number or expression."""
    return sum(item["found_by"] == "last_number" for item in run.items) / len(run.items)


def truncated_share(run: SavedRun) -> float:
    """Share of the answers that were cut off at the limit on new tokens."""
    return sum(item["finished"] == "length" for item in run.items) / len(run.items)


def _details(key: str, a: SavedRun, b: SavedRun, label_a: str, label_b: str) -> Iterator[str]:
    sides = [_settings(key, run) for run in (a, b)]
    found = False
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name) for side in sides]
        if values[0] != values[1]:
            found = True
            shown = _shown(*values)
            yield f"{name}: {shown[0]} in {label_a}, {shown[1]} in {label_b}"
    other = _first_other_question(a, b) if key == "data" else None
    if other is not None:
        yield other
    elif not found:
        yield f"hash {a.identity[key][:12]} in {label_a}, {b.identity[key][:12]} in {label_b}"


def _settings(key: str, run: SavedRun) -> dict[str, Any]:
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


def _first_other_question(a: SavedRun, b: SavedRun) -> str | None:
    """Where the questions or their gold answers begin to differ, or None where they are the same."""
    if a.summary["n"] != b.summary["n"]:
        return f"{a.summary['n']:,} and {b.summary['n']:,} questions"
    for one, other in zip(a.first_samples, b.first_samples, strict=True):
        for name in ("question", "gold"):
            if one[name] != other[name]:
                x, y = _shown(one[name], other[name])
                return f"{name} {one['index']} is {x} and {y}"
    return None


def _allowed(mismatches: Sequence[Mismatch]) -> Iterator[Note]:
    for mismatch in mismatches:
        yield Note(
            "warning",
            f"{mismatch.run} and {mismatch.reference} differ in {mismatch}: the difference may be one of the settings, "
            "not of the models",
        )


def _same_models(pairs: Sequence[RunPair]) -> Iterator[Note]:
    for number, (a, b) in enumerate(pairs, start=1):
        if a.identity["model"] == b.identity["model"]:
            yield Note("warning", f"pair {number}: A and B are the same model, evaluated twice")
    for side, name in enumerate("AB"):
        counts = Counter(pair[side].identity["model"] for pair in pairs)
        if any(count > 1 for count in counts.values()):
            yield Note(
                "warning",
                f"{len(pairs)} runs of {name} are of {len(counts)} model{'s' * (len(counts) > 1)}: the same model twice "
                "is not another training seed, and the interval over seeds is too narrow",
            )


def _unlike_answers(pairs: Sequence[RunPair]) -> Iterator[Note]:
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
                    f"{pair}{shares[0]:.1%} of A's answers and {shares[1]:.1%} of B's {what}, which can hide or feign "
                    f"a difference in skill; {remedy}",
                )


def _other_versions(pairs: Sequence[RunPair]) -> Iterator[Note]:
    runs = [run for pair in pairs for run in pair]
    versions = [run.config.get("versions", {}) for run in runs]
    for package in dict.fromkeys(name for each in versions for name in each):
        seen = dict.fromkeys(str(each.get(package, "not recorded")) for each in versions)
        if len(seen) > 1:
            yield Note("note", f"the runs were made with different versions of {package}: {', '.join(seen)}")
    for name in ("batch_size", "batching"):
        settings = dict.fromkeys(str(run.summary.get(name, "not recorded")) for run in runs)
        if len(settings) > 1:
            yield Note(
                "note",
                f"the runs used different {name} ({', '.join(settings)}), which can change single answers by rounding",
            )
