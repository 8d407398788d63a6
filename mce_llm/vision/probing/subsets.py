"""Which training images keep their labels: lists of file names as SimCLR published them, or a balanced random choice.

SimCLR's lists for ImageNet are imagenet_subsets/1percent.txt and 10percent.txt of github.com/google-research/simclr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mce_llm.errors import MceLlmError
from mce_llm.running.files import write_text
from mce_llm.vision.data import ImageSource, balanced_indices

_SHOWN = 5


class SubsetError(MceLlmError, ValueError):
    """A list of images that cannot be used; the message names what is wrong in it."""


def read_subset(path: Path | str, source: ImageSource) -> list[int]:
    """Find the images of a list: a name a line, `n01440764_10026.JPEG` or `n01440764/n01440764_10026.JPEG`.

    Empty lines are passed over. A name with a slash is compared to the end of the path in the source, so
    `class/file` is enough; one without is the file's name. Sources without files have numbers for names.

    Args:
        path: The list.
        source: The images.

    Returns:
        Increasing indices into the source.

    Raises:
        SubsetError: The file cannot be read or is empty, names are not in the source or come twice, or a file name is in
            several classes of it.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SubsetError(
            f"there is no list {path.absolute()}; subset_file is a text file with a name a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SubsetError(f"the list {path} cannot be read: {error}") from error
    wanted = [name for line in lines if (name := line.strip())]
    if not wanted:
        raise SubsetError(f"the list {path} names no image")
    problems = []
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        problems.append(f"{len(twice)} names come more than once ({_some(twice)})")
    known = set(wanted)
    places: dict[str, list[int]] = {}
    for index, name in enumerate(source.names):
        for form in _forms(name):
            if form in known:
                places.setdefault(form, []).append(index)
    if missing := [name for name in dict.fromkeys(wanted) if name not in places]:
        problems.append(
            f"{len(missing)} of {len(wanted):,} names are not in {source.name} ({_some(missing)}); its names are like "
            f"{source.names[0]!r}"
        )
    if several := [name for name, found in places.items() if len(found) > 1]:
        problems.append(
            f"{len(several)} names are of several images of {source.name} ({_some(several)}); write class/file"
        )
    found = [index for indices in places.values() for index in indices]
    if not several and len(set(found)) < len(found):
        problems.append("some images are named in two ways")
    if problems:
        raise SubsetError(f"the list {path} cannot be used: {'; '.join(problems)}")
    return sorted(found)


def balanced_subset(source: ImageSource, fraction: float) -> list[int]:
    """A share of the images with as many of each class as can be, and at least one; the same ones in every run.

    Args:
        source: The images.
        fraction: Their share, in (0, 1].

    Returns:
        Increasing indices into the source.

    Raises:
        SubsetError: The fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise SubsetError(f"fraction must be in (0, 1], got {fraction}; 0.01 and 0.1 are usual")
    return balanced_indices(source.labels, max(round(fraction * len(source)), len(set(source.labels))))


def write_subset(path: Path, source: ImageSource, indices: Sequence[int]) -> None:
    """Write the names of images, one a line, as `read_subset` reads them.

    Args:
        path: The file.
        source: The images.
        indices: Which of them.
    """
    names = source.names
    write_text(path, "".join(f"{names[index]}\n" for index in indices))


def _forms(name: str) -> list[str]:
    """`a/b/c.png`, `b/c.png` and `c.png`: all that a list may call it."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
