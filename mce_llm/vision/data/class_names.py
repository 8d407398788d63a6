"""The classes of two sources held together by name, so that a label means the same in both.

Labels are places in a source's own list of classes: a validation set that lacks a class, or lists them in another order,
counts differently from the training set. Whatever compares labels of two sources goes through here first.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from torch import Tensor

from mce_llm.running.messages import nearest_hint
from mce_llm.vision.data.announcing import announce_once
from mce_llm.vision.data.errors import ImageDataError
from mce_llm.vision.data.sources import UNLABELED, ImageSource

_SHOWN = 5


class Relabelled(ImageSource):
    """The images of a source with labels that are places in another list of classes; `with_classes_of` makes it.

    Args:
        source: The images.
        labels: One for each.
        classes: What they are places in.
    """

    def __init__(self, source: ImageSource, labels: list[int], classes: list[str]) -> None:
        self.source, self.labels, self.classes = source, labels, classes
        self.name, self.statistics = source.name, source.statistics

    @property
    def names(self) -> Sequence[str]:
        """Those of the source."""
        return self.source.names

    def image(self, index: int) -> Tensor:
        """Decode one image of the source."""
        return self.source.image(index)

    def stored(self, index: int) -> bytes:
        """An image of the source as it is stored."""
        return self.source.stored(index)


def with_classes_of(known: ImageSource, source: ImageSource) -> ImageSource:
    """A source with labels that are places in the classes of another, matched by their names.

    The source may lack classes: it is then judged among all that are known, as ImageNet's tools judge a part of the
    classes. It may not have an image of a class that is not known: nothing could ever be right about it, and leaving
    it out unasked, as timm does for a class map, would make the figure one of other images.

    Where only one of the two has names and the other class numbers (integers in a table), number i is the i-th name,
    which is said; names that are numbers themselves (`0`, `1`, … as folders) are matched as numbers.

    Args:
        known: The source whose classes count, usually the training images.
        source: The images to relabel.

    Returns:
        The source itself where its classes are the same in the same order.

    Raises:
        ImageDataError: Images are of classes that are not known; the message names them.
    """
    used = sorted(set(source.labels) - {UNLABELED})
    by_place = known.numbered != source.numbered and not _are_numbers(
        known.classes if source.numbered else source.classes
    )
    place = _by_place(known, source) if by_place else _by_name(known, source)
    strange = [source.classes[label] for label in used if label not in place]
    if strange:
        raise ImageDataError(_not_known(known, source, strange, all(label not in place for label in used)))
    if by_place and used:
        announce_once(
            f"{(source if source.numbered else known).name} has class numbers without names: number i is taken for the "
            f"i-th class of {(known if source.numbered else source).name}, counted from 0"
        )
    there = set(known.labels)
    if absent := [source.classes[label] for label in used if place[label] not in there]:
        announce_once(
            f"{known.name} has no image of {len(absent)} of the classes of {source.name} ({_some(absent)}), so no answer about "
            "them can be right"
        )
    if source.classes == known.classes:
        return source
    labels = [label if label == UNLABELED else place[label] for label in source.labels]
    return Relabelled(source, labels, known.classes)


def class_count(source: ImageSource) -> int:
    """How many classes have an image."""
    return len(set(source.labels) - {UNLABELED})


def why_not_classified(source: ImageSource) -> str | None:
    """What the images lack for a classifier to tell them apart, to stand behind the source's name; None for nothing.

    Images without a label among others do not matter: they can be passed over.
    """
    classes = set(source.labels) - {UNLABELED}
    if not classes:
        return "has no labels"
    if len(classes) == 1:
        return f"has images of one class alone, {source.classes[classes.pop()]!r}"
    return None


def _by_name(known: ImageSource, source: ImageSource) -> dict[int, int]:
    """Label of the source → label among what is known, for those that are there."""
    numbers = known.numbered or source.numbered
    alike = {_key(name, numbers): label for label, name in enumerate(known.classes)}
    same = {name: label for label, name in enumerate(known.classes)}
    found = {
        label: same.get(name, alike.get(_key(name, numbers))) for label, name in enumerate(source.classes)
    }
    return {label: place for label, place in found.items() if place is not None}


def _by_place(known: ImageSource, source: ImageSource) -> dict[int, int]:
    """The same, where one side's names are numbers that count the other side's names."""
    if source.numbered:
        numbers = {label: int(name) for label, name in enumerate(source.classes)}
        return {label: number for label, number in numbers.items() if number < len(known.classes)}
    places = {int(name): label for label, name in enumerate(known.classes)}
    return {label: places[label] for label in range(len(source.classes)) if label in places}


def _key(name: str, number: bool) -> str | int:
    """What has to be equal: the number, or the name however its accents are encoded (macOS splits them)."""
    return int(name) if number else unicodedata.normalize("NFC", name)


def _are_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(name.isascii() and name.isdecimal() for name in names)


def _not_known(known: ImageSource, source: ImageSource, strange: list[str], none: bool) -> str:
    few = len(strange) <= _SHOWN
    shown = _some([f"{name!r}{nearest_hint(name, known.classes) if few else ''}" for name in strange])
    return (
        f"{'all' if none else len(strange)} of the classes of {source.name} are unknown to {known.name}: {shown}; its "
        f"{len(known.classes)} classes are {_some(known.classes)}. Classes are matched by name: rename them, or evaluate on a "
        "data set without them (a directory of links to the other class folders will do)"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
