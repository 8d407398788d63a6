"""Where examples come from: a known data set, a hub id, a saved data set, or a local file.

`load_examples` gives the same columns whatever the source; what the records look like is known in
`mce_llm.data.formats`. Nothing is tokenised here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq

from mce_llm.data.errors import DataError
from mce_llm.data.formats import RecordFormat, check_records, detect_format
from mce_llm.data.records import read_records
from mce_llm.running.hub import hub_problem
from mce_llm.running.messages import cause, nearest_hint

KNOWN_SOURCES: dict[str, tuple[str, str | None]] = {
    "gsm8k": ("openai/gsm8k", "main"),
    # All 7,500 training and 5,000 test problems in one configuration; hendrycks/competition_math is withdrawn.
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default"),
    "metamathqa": ("meta-math/MetaMathQA", None),
}
"""Alias → (hub id, configuration name)."""

_TEXT_FILES = (".json", ".jsonl", ".csv")
_FILES = (*_TEXT_FILES, ".parquet")
_SAMPLE = 100


def load_examples(
    source: str,
    *,
    split: str = "train",
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    format: str = "auto",
    limit: int | None = None,
    seed: int | None = None,
) -> datasets.Dataset:
    r"""Load examples with the columns ``question``, ``response`` (and ``answer``), or ``messages``.

    Recognised records: GSM8K (``question`` and ``answer`` ending in ``#### X``: the response loses its
    ``<<…>>`` calculator notes and keeps the ``####`` line, ``answer`` is X), MATH (``problem``, ``solution``;
    ``answer`` is the column of that name, or what the last ``\boxed{}`` holds), MetaMathQA (``query``,
    ``response``; ``answer`` is what follows the last "The answer is:", or null), pairs (``question``,
    ``response``, perhaps ``answer``) and conversations (``messages``, or ``conversations`` with from and value).

    Args:
        source: ``"gsm8k"``, ``"math"``, ``"metamathqa"``, a hub id, a directory (from ``save_to_disk``, or with data
            files), or a .json, .jsonl, .csv or .parquet file. Write ``./gsm8k`` for a directory that has the
            name of a known data set.
        split: The split. A single file is one split, whatever it is called.
        name: The configuration of a hub data set.
        columns: Role (``question``, ``response``, ``answer``, ``messages``) → column, for other records.
        format: ``"auto"``, or ``"gsm8k"``, ``"math"``, ``"metamath"``, ``"plain"``, ``"chat"`` to say it outright.
        limit: Take this many examples at most, after shuffling.
        seed: Shuffle with this seed; ``None`` keeps the order.

    Returns:
        The examples. None is dropped but by ``limit``.

    Raises:
        DataError: The source cannot be found, reached or read, or some records cannot be used.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}; use None for all examples")
    path = Path(source).expanduser()
    if source in KNOWN_SOURCES:
        hub_id, default_name = KNOWN_SOURCES[source]
        return _from_dataset(
            source, _from_hub(hub_id, name or default_name, split), columns, format, limit, seed
        )
    if path.is_dir():
        return _from_dataset(source, _from_directory(path, name, split), columns, format, limit, seed)
    if path.exists() or _looks_local(source):
        return _from_file(path, columns, format, limit, seed)
    return _from_dataset(source, _from_hub(source, name, split), columns, format, limit, seed)


def _looks_local(source: str) -> bool:
    return (
        Path(source).suffix.lower() in _FILES or source.startswith((".", "/", "~")) or source.count("/") > 1
    )


def _chosen(count: int, limit: int | None, seed: int | None) -> Sequence[int]:
    order: Sequence[int] = range(count)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(count).tolist()
    return order[:limit]


def _from_file(
    path: Path, columns: Mapping[str, str] | None, format: str, limit: int | None, seed: int | None
) -> datasets.Dataset:
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f"; the directory {path.parent} does not exist either"
        raise DataError(f"{path}: no such file{nearest_hint(path.name, beside)}{where}")
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        raise DataError(
            f"{path}: cannot read {suffix or 'a file without an extension'}; use {', '.join(_FILES)}"
        )
    if suffix == ".parquet":
        try:
            if pq.read_metadata(path).num_rows == 0:
                raise DataError(f"{path}: the data set has no record")
            dataset = datasets.load_dataset("parquet", data_files=str(path), split="train")
        except DataError:
            raise
        except Exception as error:  # pyarrow and datasets raise many types for a broken file
            raise DataError(f"{path}: not a readable parquet file: {cause(error)}") from error
        return _from_dataset(str(path), dataset, columns, format, limit, seed)
    records, places = read_records(path)
    indices = _chosen(len(records), limit, seed)
    available = list(dict.fromkeys(key for record in records for key in record))
    layout = detect_format(str(path), available, records[:_SAMPLE], format=format, columns=columns)
    placed = ((places[index], records[index]) for index in indices)
    converted = list(check_records(str(path), placed, layout))
    return datasets.Dataset.from_list(converted, features=layout.features)


def _from_dataset(
    source: str,
    dataset: datasets.Dataset,
    columns: Mapping[str, str] | None,
    format: str,
    limit: int | None,
    seed: int | None,
) -> datasets.Dataset:
    if len(dataset) == 0:
        raise DataError(f"{source}: the data set has no record")
    sample = itertools.islice(dataset, _SAMPLE)
    layout = detect_format(source, dataset.column_names, sample, format=format, columns=columns)
    dataset = dataset.select_columns(sorted(set(layout.columns.values())))
    indices = _chosen(len(dataset), limit, seed)
    if len(indices) < len(dataset) or seed is not None:
        dataset = dataset.select(indices)
    placed = ((f"record {index + 1}", record) for index, record in zip(indices, dataset, strict=True))
    for _ in check_records(source, placed, layout):
        pass  # the converted records are made again below, on disk and from the cache where there is one
    return dataset.map(
        _convert,
        fn_kwargs={"layout": layout},
        remove_columns=dataset.column_names,
        features=layout.features,
        desc=f"Reading {source}",
    )


def _convert(record: dict[str, Any], layout: RecordFormat) -> dict[str, Any]:
    return layout.convert(record)


def _from_directory(path: Path, name: str | None, split: str) -> datasets.Dataset:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        try:
            saved = datasets.load_from_disk(str(path))
        except Exception as error:  # a half-copied directory fails in many ways
            raise DataError(f"{path}: a saved data set that cannot be loaded: {cause(error)}") from error
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise DataError(
                    f"{path}: no split {split!r}{nearest_hint(split, saved)}; there are {', '.join(saved)}"
                )
            return saved[split]
        return saved
    try:
        return datasets.load_dataset(str(path), name, split=split)
    except Exception as error:
        raise DataError(
            f"{path}: no data set can be loaded from this directory: {cause(error)}; expected one written by "
            f"save_to_disk, or data files ({', '.join(_FILES)})"
        ) from error


def _from_hub(hub_id: str, name: str | None, split: str) -> datasets.Dataset:
    if problem := hub_problem(hub_id, "dataset"):
        hint = nearest_hint(hub_id, KNOWN_SOURCES) if "/" not in hub_id else ""
        raise DataError(f"the hub data set {problem}{hint}")
    try:
        return datasets.load_dataset(hub_id, name, split=split)
    except Exception as error:  # network, hub and builder errors have no common type
        shown = hub_id if name is None else f"{hub_id} ({name})"
        raise DataError(
            f"the hub data set {shown!r}, split {split!r}, cannot be loaded: {cause(error)}"
            f"{nearest_hint(hub_id, KNOWN_SOURCES) if '/' not in hub_id else ''}; check the id, the split "
            f"and the network, or give the path of a local copy ({', '.join(_FILES)}, or a save_to_disk directory)"
        ) from error
