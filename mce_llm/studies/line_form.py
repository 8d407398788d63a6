"""The form of a line of results.jsonl: every field that tables are made from, checked when a line is written and when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mce_llm.eval.comparing.measures import ACCURACY
from mce_llm.studies.evaluators import EVALUATORS

FORMAT = 1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "study": str,
    "arm": str,
    "seed": int,
    "changes": dict,
    "settings": dict,
    "code": list,
    "versions": dict,
    "launch": dict,
    "training": dict,
    "evaluations": dict,
}
_EVALUATION_FIELDS: dict[str, type | tuple[type, ...]] = {
    "script": str,
    "options": dict,
    "hashes": dict,
    "summary": dict,
    "questions": dict,
    "values": dict,
    "versions": dict,
    "code": list,
}
_GROUP_COLUMNS = ("tokens", "nats", "top1", "entropy")
_BIN_COLUMNS = ("tokens", "confidence", "top1")
_LARGEST = (
    1e12  # of a count, a sum of nats or a number of seconds; squares of it and their sums are still finite
)


def wrong_fields(line: Any, study: str) -> list[str]:
    """Find what a line cannot be.

    Args:
        line: A line of results.jsonl, as JSON is read.
        study: The name of the study that it should be of.

    Returns:
        What is wrong, in words; empty for a line that tables can be made from.
    """
    if not isinstance(line, dict):
        return [f"must be a JSON object, got {line!r}"]
    if line.get("format") != FORMAT:
        return [f"has the format {line.get('format')!r}; this version of mce-llm reads format {FORMAT}"]
    if line.get("study") != study:
        return [
            f"is of the study {line.get('study')!r}, not of {study!r}; take it out, or choose another output"
        ]
    if problems := list(_of_other_types(line, _FIELDS)):
        return problems
    problems = [*_wrong_codes(line["code"]), *_wrong_training(line["training"])]
    if line["seed"] < 0:
        problems.append(f"seed cannot be {line['seed']}")
    if not isinstance(line.get("declared", {}), dict):
        problems.append(f"declared cannot be {line['declared']!r}")
    problems += [
        f"launch: {stage} cannot be {words!r}"
        for stage, words in line["launch"].items()
        if not isinstance(words, list)
    ]
    for name, evaluation in line["evaluations"].items():
        if not isinstance(evaluation, dict):
            problems.append(f"evaluation {name} cannot be {evaluation!r}")
            continue
        problems += [f"evaluation {name}: {problem}" for problem in _wrong_evaluation(evaluation)]
    return problems


def is_number(value: Any, upper: float = _LARGEST) -> bool:
    """Whether a value is a number from 0 to a bound, and neither true, false nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= upper


def _of_other_types(
    content: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]
) -> Iterator[str]:
    for name, kind in fields.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"{name} cannot be {value!r}"


def _wrong_codes(codes: list[Any]) -> Iterator[str]:
    yield from (f"code cannot be {code!r}" for code in codes if not isinstance(code, dict))


def _wrong_training(training: Mapping[str, Any]) -> Iterator[str]:
    if not is_number(seconds := training.get("seconds")):
        yield f"training: seconds cannot be {seconds!r}"
    loss = training.get("train_loss")
    if loss is not None and (
        isinstance(loss, bool) or not isinstance(loss, (int, float)) or not abs(loss) <= _LARGEST
    ):
        yield f"training: train_loss cannot be {loss!r}"


def _wrong_evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    if problems := list(_of_other_types(evaluation, _EVALUATION_FIELDS)):
        return problems
    script = evaluation["script"]
    if script not in EVALUATORS:
        return [f"script cannot be {script!r}; it is one of {', '.join(EVALUATORS)}"]
    problems = list(_wrong_codes(evaluation["code"]))
    if not is_number(seconds := evaluation.get("seconds")):
        problems.append(f"seconds cannot be {seconds!r}")
    if not isinstance(model := evaluation["hashes"].get("model"), str):
        problems.append(f"hashes: model cannot be {model!r}")
    remarks = evaluation.get("remarks", [])
    if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        problems.append(f"remarks cannot be {remarks!r}")
    questions = evaluation["questions"]
    count, asked = questions.get("count"), questions.get("asked")
    if type(count) is not int or type(asked) is not int or not 1 <= count <= asked:
        return [*problems, f"questions cannot be {questions!r}"]
    values = evaluation["values"]
    if ACCURACY.name in EVALUATORS[script].measures:
        return [*problems, *_wrong_column("score", values.get("score"), count, 1.0)]
    return [*problems, *_wrong_sums(count, values)]


def _wrong_sums(count: int, values: Mapping[str, Any]) -> list[str]:
    """Columns that are not there, not as long as there are questions, or hold what are no numbers in their range."""
    problems = []
    for part, names in (("groups", _GROUP_COLUMNS), ("calibration", _BIN_COLUMNS)):
        tables = values.get(part)
        if not isinstance(tables, dict) or (part == "groups" and not tables):
            problems.append(f"{part} cannot be {tables!r}")
            continue
        for group, columns in tables.items():
            if not isinstance(columns, dict) or set(columns) != set(names):
                told = list(columns) if isinstance(columns, dict) else columns
                problems.append(f"{part} {group} must have {', '.join(names)}, got {told!r}")
                continue
            binned = part == "calibration"
            wrong = [
                problem
                for name in names
                for problem in _wrong_column(
                    f"{part} {group} {name}", columns[name], count, _LARGEST, of_bins=binned
                )
            ]
            if (
                binned
                and not wrong
                and len({_bins(value) for column in columns.values() for value in column}) > 1
            ):
                wrong.append(f"{part} {group} has values of different lengths")
            problems += wrong or _more_than_tokens(f"{part} {group}", columns)
    return problems


def _more_than_tokens(name: str, columns: Mapping[str, Any]) -> Iterator[str]:
    """Hits, or confidences, of more tokens than there are."""
    for field in ("top1", "confidence"):
        for number, (value, tokens) in enumerate(
            zip(columns.get(field, []), columns["tokens"], strict=False)
        ):
            pairs = zip(value, tokens, strict=True) if isinstance(value, list) else [(value, tokens)]
            # Means over copies of a question are kept to six digits.
            if any(part > whole * (1 + 1e-5) for part, whole in pairs):
                yield f"{name} {field} of question {number + 1} is {value!r}, of {tokens!r} tokens"
                break


def _bins(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _wrong_column(
    name: str, column: Any, count: int, upper: float, *, of_bins: bool = False
) -> Iterator[str]:
    if not isinstance(column, list) or len(column) != count:
        yield f"{name} must have a value for each of {count} questions"
        return
    flat = [item for value in column for item in (value if of_bins and isinstance(value, list) else [value])]
    bad = [item for item in flat if not is_number(item, upper)]
    if bad:
        yield f"{name} has {bad[0]!r}"
