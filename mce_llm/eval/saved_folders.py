"""The folder of a finished evaluation, whatever it measured: read, checked, and named.

Nothing is computed with a model here; what the lines of `items.jsonl` mean is known in `saved_runs` and `likelihood.saved`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.data_titles import data_title
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import fingerprint
from mce_llm.eval.items import TASK_TITLES, Item
from mce_llm.running.messages import cause


@dataclass(frozen=True)
class SavedFolder:
    """One finished evaluation.

    Attributes:
        path: Its folder.
        summary: `summary.json`, with what is counted from the items counted from those here.
        config: `config.json`.
        items: `items.jsonl`, in the order of the questions.
        remarks: What a reader must know of the files, in words.
    """

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    items: tuple[Item, ...]
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a person calls the run: the last of its `name_parts`."""
        return self.name_parts[-1] if self.name_parts else str(self.path)

    @property
    def name_parts(self) -> list[str]:
        """The parts of its folder's path, without those that say only that it is an evaluation, and on which data."""
        title = _letters(self.data_title.partition(" (")[0])
        return [
            part
            for part in self.path.absolute().parts
            if part not in (*TASK_TITLES, "eval") and _letters(part) != title
        ]

    @property
    def data_title(self) -> str:
        """The data set that was asked, as people write it."""
        return data_title(self.config["settings"], self.config["task"])

    @property
    def identity(self) -> dict[str, str]:
        """What the results depend on: the task, the dtype, and each hash of `config.json` by its name."""
        return {"task": self.config["task"], "dtype": self.config["dtype"], **self.config["hashes"]}

    @property
    def training_folder(self) -> Path | None:
        """Where the training left its record whose model was evaluated: its `output_dir`, or the checkpoint in it.

        Looked for at the path of the model, then above the evaluation; None where that is not on this machine.
        """
        model = _model_path(self.config["settings"].get("model", ""))
        places = [model, *self.path.absolute().parents[:2]]
        if (
            model.name == "merged"
        ):  # adapters merged into their base model, in the output_dir of their training
            places.insert(1, model.parent)
        return next(
            (
                place
                for name in ("trainer_state.json", "recipe.yaml")
                for place in places
                if _is_file(place / name)
            ),
            None,
        )


def read_files(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Read what an evaluation wrote beside its items.

    Args:
        path: The folder of `summary.json`.

    Returns:
        The folder, `summary.json` and `config.json`.

    Raises:
        EvaluationError: There is no finished evaluation, or a file cannot be read.
    """
    folder = Path(path).expanduser()
    if not (folder / "summary.json").is_file():
        raise EvaluationError(_why_not(folder))
    return folder, _object(folder / "summary.json"), _object(folder / "config.json")


def check_fields(
    folder: Path, summary: Mapping[str, Any], config: Mapping[str, Any], counted: Mapping[str, Any]
) -> None:
    """Refuse a summary or a record without what a comparison reads of it.

    Args:
        folder: Where they are from.
        summary: `summary.json`.
        config: `config.json`.
        counted: Fields that the summary has besides its task → their types.

    Raises:
        EvaluationError: One is missing or of another type.
    """
    for name, content in (("summary.json", summary), ("config.json", config)):
        if not isinstance(content.get("hashes"), Mapping):
            raise EvaluationError(
                f"{folder / name} does not say with which prompt, data and decoding (or scoring) the run was made; evaluate "
                "the model again with this version"
            )
    if not isinstance(config.get("versions", {}), Mapping):
        raise EvaluationError(
            f"{folder / 'config.json'}: versions cannot be {config['versions']!r}; restore the file, or evaluate the model "
            "again with --overwrite true"
        )
    wanted: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
        "summary.json": (
            summary,
            {"task": str, **counted},
        ),
        "config.json": (config, {"task": str, "dtype": str, "settings": Mapping}),
    }
    for name, (content, kinds) in wanted.items():
        for field, kind in kinds.items():
            value: Any = content.get(field)
            if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 1):
                raise EvaluationError(
                    f"{folder / name}: {field} cannot be {value!r}; restore the file, or evaluate the model again with "
                    "--overwrite true"
                )


def contradiction_of(
    summary: Mapping[str, Any], config: Mapping[str, Any], hashed: Sequence[str]
) -> str | None:
    """In what a summary and a record say otherwise, in words; None where they agree.

    Args:
        summary: `summary.json`.
        config: `config.json`.
        hashed: What both have a hash of.
    """
    if summary["task"] != config["task"]:
        return f"task is {summary['task']!r} in summary.json and {config['task']!r} in config.json"
    if summary["hashes"] != config["hashes"]:
        names = sorted({*summary["hashes"], *config["hashes"]})
        other = [name for name in names if summary["hashes"].get(name) != config["hashes"].get(name)]
        return f"summary.json and config.json have different hashes of {', '.join(other)}"
    lacking = [name for name in hashed if not isinstance(config["hashes"].get(name), str)]
    return f"config.json has no hash of {', '.join(lacking)}" if lacking else None


def unlike_each_other(folder: Path, contradiction: str) -> EvaluationError:
    """The error for files of a folder that contradict each other."""
    return EvaluationError(
        f"the files in {folder} are not of one run: {contradiction}; evaluate the model again with --overwrite true"
    )


def other_data(items: Sequence[Item], config: Mapping[str, Any]) -> Iterator[str]:
    """Questions or references that are not those that were asked, in words.

    Args:
        items: One of each question.
        config: `config.json`.

    Yields:
        What a reader must know.
    """
    asked = [[item["question"], item["gold"]] for item in items]
    recorded, found = config["hashes"].get("data"), fingerprint(asked)
    if isinstance(recorded, str) and len(recorded) == len(found) and recorded != found:
        yield (
            f"questions or references in items.jsonl are not those of the evaluation (hash {found}, recorded {recorded}): "
            "the file was edited after it was written"
        )


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
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path} must hold a JSON object")
    return content


def _model_path(name: Any) -> Path:
    path = Path(str(name))
    try:
        return path.expanduser()
    except RuntimeError:  # the home of a user who is not on this machine
        return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
