"""The parts of a study file, each checked for its form: settings, seeds, recipes, launcher options, preparations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os.path import expanduser, normpath
from pathlib import Path
from typing import Any

from mce_llm.running.installation import shipped_folder
from mce_llm.running.messages import nearest_hint
from mce_llm.studies.definition import OUTPUT, STUDY, Preparation

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What studies, arms and evaluations may be called: they are folders, too."""
_SEEDS = 2**32  # numpy's generator, which transformers seeds, too, takes no larger ones


def folder_of(study_file: Path) -> str:
    """What `${study}` stands for: the whole path, so that it is the same from every working directory."""
    return str(study_file.parent.absolute())


class Parts:
    """Takes parts of a study file; what is wrong is collected in `problems`.

    Args:
        path: The study file.
        output: What `${output}` stands for.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path, self.output = path, output
        self.problems: list[str] = []

    def check_keys(self, content: Mapping[Any, Any], keys: Sequence[str], where: str) -> None:
        """Refuse keys that nobody knows."""
        self.problems += [
            f"{where} has no {key!r}{nearest_hint(str(key), keys)}; it can have {', '.join(keys)}"
            for key in content
            if key not in keys
        ]

    def check_name(self, name: str, where: str) -> None:
        """Refuse names that cannot be folders."""
        if not NAME.fullmatch(name):
            self.problems.append(
                f"{where}: a name is made of letters, digits, '.', '_' and '-', begins with a letter or digit, and has 100 "
                "characters at most"
            )

    def check_case(self, names: Sequence[str], what: str) -> None:
        """Refuse names that are one folder where file systems do not tell capitals from small letters."""
        first: dict[str, str] = {}
        for name in names:
            if (before := first.setdefault(name.lower(), name)) != name:
                self.problems.append(
                    f"{what} {before} and {name} would be one folder on some file systems; choose another name"
                )

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        """A mapping from names; an empty one where it is left out."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{where} must be a mapping, got {value!r}")
            return {}
        if no_texts := [key for key in value if not isinstance(key, str)]:
            told = ", ".join(f"{key!r}" for key in no_texts)
            self.problems.append(
                f"{where} has the name {told}, which is no text; write names of digits and the like in quotes: "
                f"'{no_texts[0]}'"
            )
            return {str(key): item for key, item in value.items()}
        return value

    def settings(self, value: Any, where: str, refused: Mapping[str, str]) -> dict[str, Any]:
        """Settings by name, folders filled in; those that the study gives itself are refused, with the reason."""
        found = self.mapping(value, where)
        self.problems += [f"{where} cannot give {name}: {refused[name]}" for name in found if name in refused]
        self.problems += [
            f"{where}: {name} cannot be null here; leave it out, or give the arm a recipe of its own"
            for name, given in found.items()
            if given is None
        ]
        return {name: self.filled(given) for name, given in found.items()}

    def filled(self, value: Any) -> Any:
        """A value with the folders that it names by `${output}` and `${study}`."""
        if isinstance(value, str):
            return value.replace(OUTPUT, str(self.output)).replace(STUDY, folder_of(self.path))
        if isinstance(value, list):
            return [self.filled(item) for item in value]
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        return value

    def seeds(self, value: Any, where: str, among: Sequence[int] | None = None) -> tuple[int, ...]:
        """Training seeds, two at least.

        Args:
            value: What the file gives.
            where: In it, for messages.
            among: Those of the study, for the seeds of an arm, which come back in this order.
        """
        if not isinstance(value, list) or not all(type(seed) is int and 0 <= seed < _SEEDS for seed in value):
            self.problems.append(
                f"{where} must be a list of whole numbers such as [1, 2, 3], each below 2^32, got {value!r}"
            )
            return ()
        if repeated := sorted({seed for seed in value if value.count(seed) > 1}):
            self.problems.append(f"{where} names {', '.join(map(str, repeated))} twice")
        if (count := len(set(value))) < 2:
            self.problems.append(
                f"{where} has {'one training seed' if count else 'no training seed'}: nothing could be said about other seeds; "
                "give two at least (five or more find small differences)"
            )
        if among is None:
            return tuple(dict.fromkeys(value))
        if strange := [seed for seed in value if seed not in among]:
            self.problems.append(
                f"{where} has {', '.join(map(str, strange))}, which the study's seeds have not: there would be no baseline "
                "to pair with"
            )
        return tuple(seed for seed in among if seed in value)

    def recipe(self, value: Any, where: str) -> Path:
        """A recipe beside the study file, or one that comes along."""
        if not isinstance(value, str):
            self.problems.append(f"{where} must be the file of a recipe, got {value!r}")
            return Path()
        beside = Path(normpath(self.path.parent / Path(value).expanduser()))
        if beside.is_file():
            return beside
        shipped = shipped_folder() / "recipes" / f"{value.removesuffix('.yaml')}.yaml"
        if "/" not in value and shipped.is_file():
            return shipped
        self.problems.append(
            f"{where}: there is no {beside}, and no recipe {value!r} comes with mce-llm; a recipe's path is relative to "
            "the study file"
        )
        return beside

    def launch_words(self, value: Any, stage: str) -> list[str]:
        """Options of `accelerate launch`, as a mapping or as words; one that is true has no value."""
        if isinstance(value, list) and all(_is_word(word) for word in value):
            return [str(self.filled(word)) for word in value]
        words: list[str] = []
        for name, option in self.mapping(value, f"launch: {stage}").items():
            if isinstance(option, (dict, list)) or option is None or option is False:
                self.problems.append(
                    f"launch: {stage}: {name} must be a value, or true for an option without one; got {option!r}"
                )
                continue
            if name == "config_file" and (beside := self.path.parent / expanduser(str(option))).is_file():
                option = normpath(beside)
            words += [f"--{name}"] if option is True else [f"--{name}", str(self.filled(option))]
        return words

    def preparations(self, value: Any) -> tuple[Preparation, ...]:
        """Commands that make files before the first run."""
        if value is not None and not isinstance(value, list):
            self.problems.append(
                f"prepare must be a list of commands, each with command and makes, got {value!r}"
            )
            return ()
        steps = []
        for number, item in enumerate(value or [], start=1):
            where = f"prepare, step {number}"
            content = self.mapping(item, where)
            self.check_keys(content, ("command", "makes"), where)
            command, makes = content.get("command"), content.get("makes")
            words = command if isinstance(command, list) else []
            if (
                not words
                or not all(_is_word(word) for word in words)
                or not isinstance(makes, str)
                or not makes
            ):
                self.problems.append(
                    f"{where} needs command, a list of words, and makes, a file that it leaves"
                )
                continue
            filled = tuple(str(self.filled(word)) for word in words)
            steps.append(
                Preparation(filled, Path(self.filled(makes)).expanduser(), tuple(str(word) for word in words))
            )
        return tuple(steps)


def _is_word(value: Any) -> bool:
    """Whether a value can stand in a command; true and false are options without a value, or none."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
