"""Reading back what evaluations left behind: the runs that are compared and shown in reports.

Nothing is generated or judged here; `results` writes these files.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import TASK_TITLES, Item
from mce_llm.running.messages import cause

COMPARABLE = ("task", "prompt", "data", "decoding", "dtype")
"""What two runs must share for their difference to be one of the models: keys of `SavedRun.identity`."""


@dataclass(frozen=True)
class SavedRun:
    """One finished evaluation.

    Attributes:
        path: Its folder.
        summary: `summary.json`.
        config: `config.json`.
        items: `items.jsonl`, in the order of the questions; with several samples a question, in theirs.
    """

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    items: tuple[Item, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedRun:
        """Read a folder that an evaluation wrote, or one that holds such a folder.

        Args:
            path: The folder of `summary.json`.

        Returns:
            The run.

        Raises:
            EvaluationError: There is no finished run, or its files contradict each other.
        """
        folder = Path(path).expanduser()
        if not (folder / "summary.json").is_file():
            raise EvaluationError(_why_not(folder))
        summary, config = _object(folder / "summary.json"), _object(folder / "config.json")
        items = _items(folder / "items.jsonl")
        for name, content in (("summary.json", summary), ("config.json", config)):
            if "hashes" not in content:
                raise EvaluationError(
                    f"{folder / name} does not say with which prompt, data and decoding the run was made; evaluate "
                    "the model again with this version"
                )
        places = [(item["index"], item["sample"]) for item in items]
        expected = [(n, k) for n in range(summary["n"]) for k in range(summary["num_samples"])]
        if places != expected or summary["hashes"] != config["hashes"]:
            raise EvaluationError(
                f"the files in {folder} are not of one run: summary.json counts {summary['n']} questions × "
                f"{summary['num_samples']} samples, items.jsonl has {len(items)} lines; evaluate the model again "
                "with --overwrite true"
            )
        return cls(folder, summary, config, tuple(items))

    @property
    def name(self) -> str:
        """What a person calls the run: the last of its `name_parts`."""
        return self.name_parts[-1] if self.name_parts else str(self.path)

    @property
    def name_parts(self) -> list[str]:
        """The parts of its folder's path, without those that say only that it is an evaluation."""
        return [part for part in self.path.absolute().parts if part not in (*TASK_TITLES, "eval")]

    @property
    def first_samples(self) -> list[Item]:
        """The first answer to each question, in the order of the questions."""
        return [item for item in self.items if item["sample"] == 0]

    @property
    def identity(self) -> dict[str, str]:
        """What the answers depend on beside the model: the keys of `COMPARABLE`, and its hash as `model`."""
        return {"task": self.config["task"], "dtype": self.config["dtype"], **self.config["hashes"]}

    @property
    def scores(self) -> list[float]:
        """Share of right answers of each question: 0 or 1 with one sample a question."""
        right: dict[int, list[bool]] = defaultdict(list)
        for item in self.items:
            right[item["index"]].append(bool(item["correct"]))
        return [sum(right[index]) / len(right[index]) for index in sorted(right)]

    @property
    def training_folder(self) -> Path | None:
        """The `output_dir` of the training whose model was evaluated, where that folder is on this machine."""
        places = [Path(str(self.config["settings"].get("model", ""))), *self.path.absolute().parents[:2]]
        return next((place for place in places if (place / "trainer_state.json").is_file()), None)


def _why_not(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such directory; give the --output of an evaluation"
    if list(folder.glob("items.*.jsonl")):
        return f"the evaluation in {folder} is not finished; the command that began it goes on with it"
    inside = sorted(str(file.parent) for file in folder.glob("*/summary.json"))
    hint = f"; did you mean {' or '.join(inside[:4])}?" if inside else ""
    return f"{folder} holds no evaluation: it has no summary.json{hint}"


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path} must hold a JSON object")
    return content


def _items(path: Path) -> list[Item]:
    try:
        with path.open(encoding="utf-8") as file:  # not splitlines(): an answer may hold U+2028
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
