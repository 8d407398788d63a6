"""Where examples come from: a known data set, a hub id, a saved data set, or local files.

`load_examples` gives the same columns whatever the source; what the records look like is known in
`mce_llm.data.formats`. Nothing is tokenised here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq

from mce_llm.data.errors import DataError
from mce_llm.data.files import ENDINGS, TABLES, files_of, is_pattern, looks_local
from mce_llm.data.formats import MEANINGFUL, RecordFormat, check_records, detect_format, keys_of
from mce_llm.data.questions import QuestionFormat, detect_questions, with_inner
from mce_llm.data.records import Record, kind_of, read_records
from mce_llm.data.requests import ONLY, Reading, Request
from mce_llm.data.splits import chosen_rows
from mce_llm.running.hub import hub_problem
from mce_llm.running.messages import cause, nearest_hint

KNOWN_SOURCES: dict[str, tuple[str, str | None]] = {
    "gsm8k": ("openai/gsm8k", "main"),
    # All 7,500 training and 5,000 test problems in one configuration; hendrycks/competition_math is withdrawn.
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default"),
    "metamathqa": ("meta-math/MetaMathQA", None),
}
"""Alias → (hub id, configuration name)."""

_SAMPLE = 100
# Names under which `datasets` loads files of a kind in place of a repository.
_LOADERS = (
    "json",
    "csv",
    "parquet",
    "arrow",
    "text",
    "pandas",
    "sql",
    "xml",
    "webdataset",
    "imagefolder",
    "audiofolder",
)


def load_examples(
    source: str,
    *,
    split: str | None = None,
    default_split: str = ONLY,
    name: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str = "auto",
    limit: int | None = None,
    seed: int | None = None,
) -> datasets.Dataset:
    r"""Load examples with the columns ``question``, ``response`` (and ``answer``), or ``messages``.

    Recognised records: GSM8K (``question`` and ``answer`` ending in ``#### X``: the response loses its
    ``<<…>>`` calculator notes and keeps the ``####`` line, ``answer`` is X), MATH (``problem``, ``solution``;
    ``answer`` is the column of that name, or what the last ``\boxed{}`` holds), MetaMathQA (``query``,
    ``response``; ``answer`` is what follows the last "The answer is:", or null), pairs (``question``,
    ``response``, perhaps ``answer``), Alpaca (``instruction``, ``output``; a filled ``input`` follows the instruction on
    a line of its own), prompts (``prompt``, ``completion``) and conversations (``messages``, or ``conversations`` with from
    and value; ``tools``, a ``system`` prompt and ``chat_template_kwargs`` beside them). Alpaca's ``system`` and
    ``history`` make a conversation of the pair, and so do prompts and completions that are lists of messages.

    Conversations have ``messages``, each with ``role`` and ``content`` and, where any message needs them, ``trained`` and
    ``fields`` (JSON of what else the chat template may read); beside them ``tools`` and ``chat_template_kwargs`` as JSON.

    Args:
        source: ``"gsm8k"``, ``"math"``, ``"metamathqa"``, a hub id, a directory (from ``save_to_disk``, or with data
            files), a .json, .jsonl, .csv, .tsv (each perhaps .gz, .bz2 or .xz), .parquet or .arrow file, or a pattern such
            as ``data/*.jsonl``. Write ``./gsm8k`` for a directory that has the name of a known data set.
        split: The split or a slice of it, ``train[:75%]``. A file has one split, ``train``.
        default_split: The split where none is given and there are several.
        name: The configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        columns: Role (of `mce_llm.data.formats`) → column, for other records; None leaves a role out.
        format: ``"auto"``, or ``"gsm8k"``, ``"math"``, ``"metamath"``, ``"plain"``, ``"alpaca"``, ``"prompt"``, ``"chat"``
            to say it outright.
        limit: Take this many examples at most, after shuffling.
        seed: Shuffle with this seed; ``None`` keeps the order.

    Returns:
        The examples. None is dropped but by ``limit``.

    Raises:
        DataError: The source cannot be found, reached or read, or some records cannot be used.
    """
    request = Request(split, default_split, name, revision, columns, format, limit, seed)
    return read_examples(source, request)[0]


def read_examples(source: str, asked: Request) -> tuple[datasets.Dataset, Reading]:
    """As `load_examples`, and what was made of the source's records.

    Args:
        source: Where the examples are.
        asked: What is wanted of it.

    Raises:
        DataError: The source cannot be found, reached or read, or some records cannot be used.
    """
    if asked.limit is not None and asked.limit < 1:
        raise DataError(f"limit must be at least 1, got {asked.limit}; leave it out for all examples")
    path = Path(source).expanduser()
    if source in KNOWN_SOURCES:
        hub_id, default_name = KNOWN_SOURCES[source]
        return _from_dataset(source, _from_hub(hub_id, asked.name or default_name, asked), asked)
    if path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
        if asked.name is not None or asked.revision is not None:
            raise DataError(f"{path}: a saved data set has neither configurations nor revisions")
        return _from_dataset(source, _saved(path, asked), asked)
    if path.exists() or is_pattern(source) or looks_local(source):
        return _from_files(source, files_of(source, asked.name, asked.revision), asked)
    return _from_dataset(source, _from_hub(source, asked.name, asked), asked)


def _chosen(count: int, asked: Request) -> Sequence[int]:
    order: Sequence[int] = range(count)
    if asked.seed is not None:
        order = np.random.default_rng(asked.seed).permutation(count).tolist()
    return order[: asked.limit]


def _split_of(asked: Request, sizes: Mapping[str, int]) -> str:
    """The split that is meant; without a name, the only one, or the default among several."""
    return asked.split or (next(iter(sizes)) if len(sizes) == 1 else asked.default_split)


def _from_files(
    source: str, files: dict[str, list[Path]], asked: Request
) -> tuple[datasets.Dataset, Reading]:
    kinds = {kind_of(path) for paths in files.values() for path in paths}
    if kinds & set(TABLES):
        tables = {name: _table(source, paths) for name, paths in files.items()}
        return _from_dataset(source, _select(source, tables, asked), asked)
    # A folder's other splits are not read, but for the names of one file's own.
    wanted = {part.partition("[")[0].strip() for part in (asked.split or asked.default_split).split("+")}
    if len(files) > 1 and wanted <= set(files):
        files = {name: paths for name, paths in files.items() if name in wanted}
    found: dict[str, list[tuple[Record, str]]] = {}
    several = sum(map(len, files.values())) > 1
    for name, paths in files.items():
        for path in paths:
            for inner, (records, places) in read_records(path).items():
                key = inner if name == ONLY and len(files) == 1 else name
                if inner != ONLY and key != inner:
                    raise DataError(
                        f"{path}: it holds several lists ({inner}, …), which would be splits, and is one of several files; "
                        "give it by itself"
                    )
                placed = (f"{path}, {place}" if several else place for place in places)
                found.setdefault(key, []).extend(zip(records, placed, strict=True))
    sizes = {name: len(rows) for name, rows in found.items()}
    spec = _split_of(asked, sizes)
    taken = [found[name][n] for name, places in chosen_rows(source, spec, sizes) for n in places]
    if asked.evaluation:
        taken = [(with_inner(record, asked.columns), place) for record, place in taken]
    records = [record for record, _ in taken]
    available = list(dict.fromkeys(key for record in records for key in record))

    def values(column: str) -> Iterable[Any]:
        return (record.get(column) for record in records)

    layout = _layout(source, available, records[:_SAMPLE], asked, values)
    indices = _chosen(len(taken), asked)
    places = [taken[index][1] for index in indices]
    converted = list(check_records(source, ((taken[i][1], taken[i][0]) for i in indices), layout))
    features = layout.features(set().union(*map(keys_of, converted)))
    rows = [{name: example.get(name) for name in features} for example in converted]
    dataset = datasets.Dataset.from_list(rows, features=features)
    inside = "" if several else f"{source}, "
    unused, ignored = _left(source, layout, available, asked, values)
    return dataset, Reading(layout, unused, ignored, lambda number: f"{inside}{places[number]}")


def _layout(
    source: str,
    available: Sequence[str],
    sample: Iterable[Mapping[str, Any]],
    asked: Request,
    values: Callable[[str], Iterable[Any]],
    *,
    table: bool = False,
    single: Sequence[str] = (),
) -> RecordFormat | QuestionFormat:
    """What the records are: examples to train on, or questions with reference answers."""

    def filled(column: str) -> bool:
        return _filled(values(column))

    if asked.evaluation:
        return detect_questions(
            source,
            available,
            list(sample),
            columns=asked.columns,
            filled=filled,
            single=single,
            table=table,
            solutions=asked.solutions,
        )
    return detect_format(
        source, available, sample, format=asked.format, columns=asked.columns, filled=filled, table=table
    )


def _says_something(value: Any) -> bool:
    """Whether a value is more than an empty place: false and 0 say something."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    return value is not None and value != [] and value != {}


def _filled(values: Iterable[Any]) -> bool:
    return any(map(_says_something, values))


def _left(
    source: str,
    layout: RecordFormat | QuestionFormat,
    available: Sequence[str],
    asked: Request,
    values: Callable[[str], Iterable[Any]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that play no part, and those of them whose content would change what is trained."""
    used = set(layout.columns.values())
    # Of a column that a path leads into (`reward_model.ground_truth`) a part is used.
    unused = tuple(
        column
        for column in available
        if column not in used and not any(name.startswith(f"{column}.") for name in used)
    )
    if asked.evaluation:
        return unused, ()  # `questions` has refused what would be missed
    meant = {role for role, column in (asked.columns or {}).items() if column is None}  # left out on purpose
    ignored = tuple(
        column
        for column in unused
        if column.lower() in MEANINGFUL and column not in meant and _filled(values(column))
    )
    if {"chosen", "rejected"} <= set(ignored):
        raise DataError(
            f"{source}: the records have chosen and rejected answers, which are no completions; train on the chosen ones with "
            "columns: {messages: chosen}, or columns: {question: …, response: chosen}"
        )
    if "label" in ignored and any(value is False for value in values("label")):
        raise DataError(
            f"{source}: records have label: false, which marks answers that are not to be learnt; leave those records out, and "
            "the column with them"
        )
    return unused, ignored


def _table(source: str, paths: list[Path]) -> datasets.Dataset:
    kind = kind_of(paths[0])
    try:
        if kind == ".parquet" and not sum(pq.read_metadata(path).num_rows for path in paths):
            raise DataError(f"{source}: the data set has no record")
        return datasets.load_dataset(kind[1:], data_files=[str(path) for path in paths], split=ONLY)
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets raise many types for a broken file
        raise DataError(f"{source}: not a readable {kind[1:]} file: {cause(error)}") from error


def _select(source: str, splits: Mapping[str, datasets.Dataset], asked: Request) -> datasets.Dataset:
    sizes = {name: len(dataset) for name, dataset in splits.items()}
    spec = _split_of(asked, sizes)
    if spec in splits:
        return splits[spec]
    return datasets.concatenate_datasets(
        [splits[name].select(places) for name, places in chosen_rows(source, spec, sizes)]
    )


def _from_dataset(source: str, dataset: datasets.Dataset, asked: Request) -> tuple[datasets.Dataset, Reading]:
    if len(dataset) == 0:
        raise DataError(f"{source}: the data set has no record")
    if asked.evaluation and with_inner(dataset[0], asked.columns).keys() - set(dataset.column_names):
        dataset = dataset.flatten()
    available, whole = dataset.column_names, dataset

    def values(column: str) -> Iterable[Any]:
        return whole[column]

    single = [
        name
        for name, kind in dataset.features.items()
        if getattr(kind, "dtype", "") in ("float16", "float32")
    ]
    layout = _layout(
        source, available, itertools.islice(dataset, _SAMPLE), asked, values, table=True, single=single
    )
    unused, ignored = _left(source, layout, available, asked, values)
    dataset = dataset.select_columns(sorted(set(layout.columns.values())))
    indices = _chosen(len(dataset), asked)
    if len(indices) < len(dataset) or asked.seed is not None:
        dataset = dataset.select(indices)
    placed = ((f"record {index + 1}", record) for index, record in zip(indices, dataset, strict=True))
    where = Reading(layout, unused, ignored, lambda number: f"{source}, record {indices[number] + 1}")
    if asked.evaluation:
        rows = list(check_records(source, placed, layout))
        return datasets.Dataset.from_list(rows, features=layout.features()), where
    keys: set[str] = set()
    for example in check_records(source, placed, layout):
        keys |= keys_of(example)  # made again below, on disk and from the cache where there is one
    features = layout.features(keys)
    converted = dataset.map(
        _convert,
        fn_kwargs={"layout": layout, "names": list(features)},
        remove_columns=dataset.column_names,
        features=features,
        desc=f"Reading {source}",
    )
    return converted, where


def _convert(
    record: dict[str, Any], layout: RecordFormat | QuestionFormat, names: list[str]
) -> dict[str, Any]:
    converted = layout.convert(record)
    return {name: converted.get(name) for name in names}


def _saved(path: Path, asked: Request) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a half-copied directory fails in many ways
        raise DataError(f"{path}: a saved data set that cannot be loaded: {cause(error)}") from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {ONLY: saved}
    return _select(str(path), splits, asked)


def _from_hub(hub_id: str, name: str | None, asked: Request) -> datasets.Dataset:
    if hub_id in _LOADERS:
        raise DataError(
            f"{hub_id!r} is the name of a loader of datasets, which would read whatever lies here; give the files themselves, as "
            f"in data/*.{hub_id}"
        )
    if problem := hub_problem(hub_id, "dataset", asked.revision):
        hint = nearest_hint(hub_id, KNOWN_SOURCES) if "/" not in hub_id else ""
        raise DataError(f"the hub data set {problem}{hint}")
    split = asked.split or asked.default_split
    try:
        return datasets.load_dataset(hub_id, name, split=split, revision=asked.revision)
    except Exception as error:  # network, hub and builder errors have no common type
        shown = hub_id if name is None else f"{hub_id} ({name})"
        at = "" if asked.revision is None else f", revision {asked.revision!r}"
        raise DataError(
            f"the hub data set {shown!r}, split {split!r}{at}, cannot be loaded: {cause(error)}"
            f"{nearest_hint(hub_id, KNOWN_SOURCES) if '/' not in hub_id else ''}; check the id, the split "
            f"and the network, or give the path of a local copy ({ENDINGS}; or a save_to_disk directory)"
        ) from error
