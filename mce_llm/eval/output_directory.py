"""The folder of one evaluation: what is recorded before the first answer, kept while answers come, and joined at the end.

`config.json` says what the answers depend on. Each process appends to `items.rank{r}.jsonl`; a launch that goes on first
moves what earlier ones left into `items.done.jsonl`. The last step joins everything into `items.jsonl`. At every moment
each answer is whole in one of these files, so a killed run loses what it was working on and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from mce_llm.data import write_jsonl
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Item
from mce_llm.eval.saved_lines import ANSWER_FIELDS, parsed_line, wrong_fields
from mce_llm.running.files import write_json
from mce_llm.running.folder import check_place, folder_held
from mce_llm.running.messages import cause

_DONE = "items.done.jsonl"
UNUSED = "unused_columns"
"""What `config.json` calls the columns of the data that play no part; what is in them changes no answer."""


class OutputDirectory:
    """The files of one evaluation.

    Args:
        path: The directory; it is made when `prepare` is called.
        wrong_with: What is wrong with an item, in words, None where nothing is; by default what an answer must be. It makes
            sure of `index`, a whole number; an item without `sample` is that of its question. What is wrong is left out, as
            what a killed process wrote half of is, and made anew.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        wrong_with: Callable[[Item], str | None] = lambda item: wrong_fields(item, ANSWER_FIELDS),
    ):
        self.path = Path(path).expanduser()
        self._wrong_with = wrong_with

    def check_place(self) -> None:
        """Refuse a place that cannot be written; only looks.

        Raises:
            EvaluationError: If the directory cannot be used.
        """
        check_place(self.path, error=EvaluationError)

    def check_same(self, config: Mapping[str, Any]) -> bool:
        """Refuse a directory that holds answers of another model, or under other conditions.

        Only reads, so that every process can call it and come to the same conclusion.

        Args:
            config: What `config.json` would record now; parts that are not known yet may be left out.

        Returns:
            Whether there is anything to go on with.

        Raises:
            EvaluationError: If there are differences; the message lists them.
        """
        recorded = self.path / "config.json"
        if not recorded.exists():
            return False
        try:
            before = json.loads(recorded.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{recorded} cannot be read ({cause(error)}); use --overwrite to replace it"
            ) from error
        changed = list(_differences(before if isinstance(before, dict) else {}, config))
        if changed:
            raise EvaluationError(
                f"{self.path} holds results of another configuration ({'; '.join(changed)}); choose another output "
                "directory, or use --overwrite to replace them"
            )
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory, so that no second evaluation writes to it; the lock goes with the process.

        Raises:
            EvaluationError: If another process holds it, or the file system refuses.
        """
        with folder_held(self.path, error=EvaluationError):
            yield

    def prepare(self, config: Mapping[str, Any], *, fresh: bool) -> None:
        """Write `config.json` and bring what earlier launches answered into one file.

        Args:
            config: What to record.
            fresh: Remove the answers of earlier launches instead.

        Raises:
            EvaluationError: If the file system refuses.
        """
        with _explained(self.path):
            if fresh:
                for stale in ("summary.json", "items.jsonl", _DONE):
                    (self.path / stale).unlink(missing_ok=True)
                for file in self._rank_files():
                    file.unlink()
            else:
                self._collect()
            write_json(self.path / "config.json", config)

    def finished(self) -> dict[str, Any] | None:
        """Return `summary.json` where the evaluation was finished."""
        try:
            summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return summary if isinstance(summary, dict) and (self.path / "items.jsonl").is_file() else None

    def done(self) -> list[Item]:
        """Return what earlier launches answered."""
        return list(self._whole_items(self.path / _DONE))

    def open_rank_file(self, rank: int) -> FileIO:
        """Open the file that a process writes its items to; unbuffered, so that closing it cannot fail.

        Raises:
            EvaluationError: If the file system refuses.
        """
        with _explained(self.path):
            return (self.path / f"items.rank{rank}.jsonl").open("wb", buffering=0)

    def write_item(self, file: FileIO, item: Item) -> None:
        """Write one line; what was written before stays whole if this fails.

        Raises:
            EvaluationError: If the disk is full, or the file system refuses.
        """
        with _explained(self.path):
            rest = memoryview((json.dumps(item, ensure_ascii=False) + "\n").encode())
            while rest:
                rest = rest[file.write(rest) :]

    def written(self) -> int:
        """Count the answers that are kept."""
        return len({_place(item) for file in self._parts() for item in self._whole_items(file)})

    def merge(self, n: int, num_samples: int) -> list[Item]:
        """Join the answers of all processes in the order of the questions into `items.jsonl`.

        Args:
            n: How many questions there were.
            num_samples: Answers to each.

        Returns:
            The items.

        Raises:
            EvaluationError: If an answer is missing; the parts are kept.
        """
        with _explained(self.path):
            expected = [(index, sample) for index in range(n) for sample in range(num_samples)]
            # Nothing that was asked has another place: such a line was damaged.
            asked = set(expected)
            items = [item for item in self._collect() if _place(item) in asked]
            places = [_place(item) for item in items]
            if places != expected:
                missing = sorted(set(expected) - set(places))
                raise EvaluationError(
                    f"expected {len(expected)} answers in {self.path}, found {len(items)} ({len(missing)} missing, the "
                    f"first: {missing[:3]}); with several nodes the output directory must be on a file system that "
                    "all of them share"
                )
            write_jsonl(items, self.path / "items.jsonl")
            (self.path / _DONE).unlink(missing_ok=True)
        return items

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`.

        Raises:
            EvaluationError: If the file system refuses.
        """
        with _explained(self.path):
            write_json(self.path / "summary.json", summary)

    def _collect(self) -> list[Item]:
        """Join all whole lines into one file before any part is removed; an answer that is in two parts counts once."""
        items: dict[tuple[int, int], Item] = {}
        for file in self._parts():
            for item in self._whole_items(file):
                items.setdefault(_place(item), item)
        ordered = [items[place] for place in sorted(items)]
        write_jsonl(ordered, self.path / _DONE)
        for file in self._rank_files():
            file.unlink()
        (self.path / "items.jsonl").unlink(missing_ok=True)
        return ordered

    def _parts(self) -> list[Path]:
        return [self.path / "items.jsonl", self.path / _DONE, *self._rank_files()]

    def _rank_files(self) -> list[Path]:
        return [
            file
            for file in sorted(self.path.glob("items.rank*.jsonl"))
            if file.name.removeprefix("items.rank").removesuffix(".jsonl").isdecimal()
        ]

    def _whole_items(self, file: Path) -> Iterator[Item]:
        """Read the lines that a killed process did not leave half-written, and that nothing has damaged since."""
        if not file.exists():
            return
        with file.open(
            encoding="utf-8", errors="replace"
        ) as lines:  # not splitlines(): an answer may hold U+2028
            for line in lines:
                item = parsed_line(line)
                if line.endswith("\n") and not isinstance(item, str) and self._wrong_with(item) is None:
                    yield item


def _place(item: Item) -> tuple[int, int]:
    return item["index"], item.get("sample", 0)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvaluationError(
            f"cannot write to {path}: {error.strerror or error}; what was answered before is kept, and the same command "
            "goes on with it"
        ) from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in now:
        if key == UNUSED and not prefix:
            continue
        there, here = before.get(key), now[key]
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, f"{key} ")
        elif there != here:
            yield f"{prefix if prefix != 'settings ' else ''}{key}: {there!r} there, {here!r} now"
