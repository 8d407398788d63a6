"""A run that goes on: which settings may be other than before, and whether what it reads is what it was.

A setting is refused where the state would not fit or the run would be neither of both, is without effect on what is trained,
or holds from the step on that the checkpoint has come to. Compared is what settings mean: defaults are filled in, `./data/`
and `data` are one folder, and mappings are equal however they are written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from mce_llm.running.files import write_json
from mce_llm.running.folder import RECIPE, OutputError
from mce_llm.running.messages import ConfigurationError
from mce_llm.running.settings import parse_settings
from mce_llm.running.yaml_text import load_yaml

INPUTS = "inputs.json"
_LOOKED_AT = 256  # images that are compared: all of a small set, and a second or so of a large one
_START_ANEW = "put them back, or start anew with --resume false --overwrite true"
# Of every script: where and with what means the same is computed.
_MEANS = frozenset({"output_dir", "resume", "overwrite", "cpu", "num_workers"})


class ResumeRules(NamedTuple):
    """What a start may change of a run that it goes on with.

    Attributes:
        groups: The settings of this start, as `parse_settings` made them.
        fixed: Names that are refused where they differ.
        without_effect: Names that change nothing of what is trained or measured; some of every script are known here.
        found: Values of settings that were not given and that are not the dataclass's default then, such as those that an
            encoder's file says.
        options: Of settings that are mappings of options: the defaults of all options, by the name of the setting.
    """

    groups: Sequence[Any]
    fixed: Iterable[str] = ()
    without_effect: Iterable[str] = ()
    found: Mapping[str, Any] | None = None
    options: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Changes:
    """What differs from the start before: name → `name before → now`.

    Attributes:
        refused: What may not.
        applied: What holds from here on.
        without_effect: What changes nothing of what is trained.
        history: For the record, of what is applied: `name before (then now)`.
    """

    refused: dict[str, str]
    applied: dict[str, str]
    without_effect: dict[str, str]
    history: list[str]

    def refusal(self, folder: Path) -> str:
        """The message where some are refused."""
        return (
            f"the run in {str(folder)!r} cannot go on with other settings: {', '.join(self.refused.values())}; "
            f"{_START_ANEW}"
        )

    def sentences(self) -> list[str]:
        """What to say of the others."""
        said = []
        if self.applied:
            said.append(f"settings that differ, and hold from here on: {', '.join(self.applied.values())}")
        if self.without_effect:
            differing = ", ".join(self.without_effect.values())
            said.append(f"settings that differ, without effect on what is trained: {differing}")
        return said


def changes_since(folder: Path, given: Mapping[str, Any], rules: ResumeRules) -> Changes | None:
    """Compare the settings of this start with those of the run that a folder holds.

    Args:
        folder: The folder.
        given: The settings that were given now.
        rules: Which may differ.

    Returns:
        The differences, or None where the folder does not say what it began with.
    """
    try:
        made, given_before = parse_settings(
            [type(group) for group in rules.groups], ["--config", str(folder / RECIPE)]
        )
    except ConfigurationError:
        return None
    before, now = _effective(made, given_before, rules), _effective(rules.groups, given, rules)
    options = rules.options or {}
    different = {
        name: (before[name], now[name])
        for name in now
        if not _same(before[name], now[name], options.get(name))
    }
    told = {name: f"{name} {pair[0]!r} → {pair[1]!r}" for name, pair in different.items()}
    fixed, idle = set(rules.fixed), _MEANS | set(rules.without_effect)
    applied = {name: text for name, text in told.items() if name not in fixed | idle}
    return Changes(
        {name: text for name, text in told.items() if name in fixed},
        applied,
        {name: text for name, text in told.items() if name in idle - fixed},
        [f"{name} {different[name][0]!r} (then {different[name][1]!r})" for name in applied],
    )


def _effective(groups: Sequence[Any], given: Mapping[str, Any], rules: ResumeRules) -> dict[str, Any]:
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group) if item.init}
    found = {name: value for name, value in (rules.found or {}).items() if given.get(name) is None}
    return {**values, **found}


def _same(before: Any, now: Any, defaults: Mapping[str, Any] | None) -> bool:
    if before == now:
        return True
    meant = [_meaning(value) for value in (before, now)]
    if defaults is not None:
        meant = [
            {**defaults, **(value or {})} if isinstance(value, dict | None) else value for value in meant
        ]
    return meant[0] == meant[1]


def _meaning(value: Any) -> Any:
    """A mapping for its text, and a path without what changes nothing of where it leads; everything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        try:
            return load_yaml(text, "") or None
        except ConfigurationError:
            return text
    place = os.path.expanduser(text)
    if os.path.exists(place):
        return os.path.realpath(place)
    return os.path.normpath(place) if os.sep in place else text


@dataclass(frozen=True)
class Input:
    """What a run reads, to be known again.

    Attributes:
        images: How many there are, of images.
        digest: Of names, labels and some images, or of a file and some of those that it names.
        fixed: Whether a run may not go on with another one.
    """

    images: int
    digest: str
    fixed: bool = True


def input_of_images(source: Any, *, fixed: bool = True) -> Input:
    """A source of images by the names of its images and classes, its labels, and up to 256 images as they are stored.

    Args:
        source: With `names`, `labels`, `classes` and `stored(index)`.
        fixed: Whether a run may not go on with other ones.
    """
    digest = hashlib.sha256(json.dumps([list(source.classes), list(source.labels)]).encode())
    for name in source.names:
        digest.update(os.fsencode(name) + b"\0")
    for index in _spread(len(source.labels)):
        digest.update(hashlib.sha256(source.stored(index)).digest())
    return Input(len(source.labels), digest.hexdigest(), fixed)


def input_of_file(path: Path, images: Sequence[Path] = (), *, fixed: bool = True) -> Input:
    """A file by what is in it, and up to 256 of the image files that it names by what is in them.

    Args:
        path: The file.
        images: The image files; what is not there is passed over.
        fixed: Whether a run may not go on with another one.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for index in _spread(len(images)):
        try:
            digest.update(hashlib.sha256(images[index].read_bytes()).digest())
        except OSError:  # which is said where the image is needed
            digest.update(b"\0")
    return Input(len(images), digest.hexdigest(), fixed)


def _spread(count: int) -> list[int]:
    """Places of up to `_LOOKED_AT` of so many, evenly spread."""
    looked_at = min(count, _LOOKED_AT)
    return [place * count // looked_at for place in range(looked_at)]


def check_inputs(folder: Path, inputs: Mapping[str, Input], *, goes_on: bool) -> list[str]:
    """Compare what a run reads with what it read before, and keep a note of it.

    Args:
        folder: The run's.
        inputs: By what they are called in messages, such as `training images`.
        goes_on: Whether there is a checkpoint that is gone on from.

    Returns:
        What to say of those that differ and may.

    Raises:
        OutputError: Others differ.
    """
    path = folder / INPUTS
    before: dict[str, Any] = {}
    said, refused = [], []
    if goes_on:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said.append(
                "what this run read before is not known, so it is not compared with what it reads now"
            )
    for name, now in inputs.items():
        images, digest = before.get(name, (now.images, now.digest))
        if digest == now.digest:
            continue
        text = f"{name} ({images:,} → {now.images:,})" if images != now.images else f"{name} (other ones)"
        if now.fixed:
            refused.append(text)
        else:
            said.append(f"{text} have changed since this run began; measured is on those of now")
    if refused:
        raise OutputError(
            f"the run in {str(folder)!r} cannot go on, as what it reads has changed since it began: "
            f"{', '.join(refused)}; {_START_ANEW}"
        )
    write_json(path, {name: (now.images, now.digest) for name, now in inputs.items()})
    return said
