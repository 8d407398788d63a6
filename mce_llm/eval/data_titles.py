"""What the data of an evaluation are called: by the data set and its part, not by the kind of task.

SVAMP is judged as GSM8K is, and is not GSM8K.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mce_llm.eval.items import TASK_TITLES

_KNOWN = {
    re.sub(r"[^a-z0-9]", "", name.lower()): name
    for name in (
        *TASK_TITLES.values(),
        *(
            "SVAMP",
            "ASDiv",
            "MAWPS",
            "MultiArith",
            "AddSub",
            "SingleEq",
            "SingleOp",
            "AQuA",
            "MATH-500",
            "GSM-Hard",
        ),
        *("GSM-Plus", "GSM-Symbolic", "GSM1k", "AIME", "AMC", "OlympiadBench", "TabMWP"),
    )
} | {"hendrycksmath": "MATH", "competitionmath": "MATH", "gsmhard": "GSM-Hard"}
# Names that say which part of a data set a file is, or nothing: the folder above says which data set.
_PARTS = {
    "test",
    "train",
    "validation",
    "valid",
    "val",
    "dev",
    "eval",
    "main",
    "default",
    "data",
    "questions",
}
_OTHER_PARTS = ("train", "validation", "valid", "val", "dev")
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")


def data_title(settings: Mapping[str, Any], task: str) -> str:
    """Name the data of an evaluation.

    Args:
        settings: `data`, `split` and `limit`, as `config.json` records them.
        task: gsm8k or math, for settings that name no data.

    Returns:
        `GSM8K`, `SVAMP (train)`, `MATH (first 100)`; the name of a file or folder where it is none that is known. A
        file that is called test.jsonl goes by the folder it is in.
    """
    source = settings.get("data")
    name, part = _named(source) if isinstance(source, str) and source.strip() else ("", "")
    title = _KNOWN.get(re.sub(r"[^a-z0-9]", "", name.lower()), name) or TASK_TITLES.get(task, task)
    split, limit = settings.get("split"), settings.get("limit")
    parts = [part if split in (None, "", "test") else str(split)]
    parts += [f"first {limit}"] if limit is not None else []
    told = ", ".join(part for part in parts if part)
    return f"{title} ({told})" if told else title


def _named(source: str) -> tuple[str, str]:
    """The last part of a path or hub id that names a data set, and which part of it a file says to be, beside test."""
    parts = [part for part in PurePath(source.replace("\\", "/")).parts if part not in ("/", ".", "..", "~")]
    names = []
    for part in reversed(parts):
        while suffix := next((end for end in _SUFFIXES if part.lower().endswith(end)), None):
            part = part[: -len(suffix)]
        names.append(part)
    for place, name in enumerate(names):
        words = [word for word in re.split(r"[-_. ]", name.lower()) if not word.isdecimal()]
        if any(word not in _PARTS for word in words):
            short = _without_part(name)
            inside = (
                (names[0] if place else name.removeprefix(short).removesuffix(short)).strip("-_.").lower()
            )
            return short, inside if inside in _OTHER_PARTS else ""
    return (names[0] if names else source), ""


def _without_part(name: str) -> str:
    """Svamp for svamp_test, where that is a data set that is known; else the name as it is."""
    for part in _PARTS:
        for mark in "-_.":
            for short in (name.removesuffix(f"{mark}{part}"), name.removeprefix(f"{part}{mark}")):
                if short != name and re.sub(r"[^a-z0-9]", "", short.lower()) in _KNOWN:
                    return short
    return name
