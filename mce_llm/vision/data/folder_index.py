"""The list of a directory's images, kept in a file so that a million of them are listed once.

The file lies in the user's cache, never beside the data. It is trusted while no folder that was listed has changed
since: adding, removing or renaming a file changes the modification time of the folder that holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mce_llm.running.files import whole_file
from mce_llm.vision.data.announcing import announce
from mce_llm.vision.data.errors import ImageDataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FORMAT = 2
# A folder may change again within the same tick of its clock, unseen; what has just changed is not kept.
_TICK_NS = 2 * 10**9
_MOST_THREADS = 16
# What systems put beside images: of zip files made on macOS, of Synology's thumbnails, of file systems.
_SYSTEM = ("__MACOSX", "@eaDir", "lost+found")
_NO_ENDING = "no ending"
_SHOWN = 5


@dataclass
class FolderIndex:
    """The images of a directory of class folders, or of one without.

    Attributes:
        classes: The names of the class folders, sorted.
        files: Paths below the directory: the images in no class folder, then (`class/…/file`) class after class, sorted.
        counts: How many files each class has.
        loose: How many images lie in the directory itself, in no class folder.
        passed_over: Endings of the names of files that are no images by them, and how many there are of each.
        folders: Every folder that was listed, as a path below the directory, with its modification time in ns.
        kept: Whether this came from a kept list.
    """

    classes: list[str]
    files: list[str]
    counts: list[int]
    folders: dict[str, int]
    loose: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    kept: bool = False


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a directory, sorted; hidden ones and those of systems are left out.

    Args:
        root: The directory.

    Returns:
        The names.

    Raises:
        ImageDataError: The directory cannot be listed.
    """
    with _listing(root) as entries:
        return sorted(entry.name for entry in entries if not _hidden(entry.name) and entry.is_dir())


def folder_index(root: Path, *, rebuild: bool = False) -> FolderIndex:
    """List the images below a directory, or use the list that was kept.

    Args:
        root: The directory.
        rebuild: Do not look at a kept list.

    Returns:
        The index.

    Raises:
        ImageDataError: A folder cannot be listed, or there are links to images that are not there.
    """
    root = root.resolve()
    path = index_file(root)
    if not rebuild and (found := _read(path, root)) is not None:
        return found
    begin = time.time_ns()
    index = scan(root)
    if max(index.folders.values()) < begin - _TICK_NS:
        _write(path, root, index)
    return index


def index_file(root: Path) -> Path:
    """Where the list of a directory is kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = _digest(os.fsencode(root))[:16]
    return base / "mce-llm" / "image-index" / f"{root.name}-{digest}.index"


def scan(root: Path) -> FolderIndex:
    """List a directory of class folders, or of images in no folder.

    Args:
        root: The directory.

    Returns:
        The index; a class folder without images has a count of 0.

    Raises:
        ImageDataError: A folder cannot be listed, or there are links to images that are not there.
    """
    changed = {"": root.stat().st_mtime_ns}  # before the listing, as below
    loose, classes, passed_over = _entries(root, "")
    classes = sorted(classes)
    # A network file system answers many threads as fast as one.
    with ThreadPoolExecutor(min(_MOST_THREADS, max(1, len(classes)))) as pool:
        listed = list(pool.map(lambda name: _scan_class(root, name), classes))
    for _, below, others in listed:
        changed.update(below)
        passed_over.update(others)
    files = sorted(loose) + [file for found, _, _ in listed for file in found]
    counts = [len(found) for found, _, _ in listed]
    return FolderIndex(classes, files, counts, changed, len(loose), dict(passed_over))


def _scan_class(root: Path, name: str) -> tuple[list[str], dict[str, int], Counter[str]]:
    files: list[str] = []
    folders: dict[str, int] = {}
    passed_over: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [name]
    while waiting:
        folder = waiting.pop()
        facts = os.stat(root / folder)
        if (facts.st_dev, facts.st_ino) in seen:
            continue  # a link back to a folder above it
        seen.add((facts.st_dev, facts.st_ino))
        # The time is taken before the listing: a change in between makes the list stale, not wrong unnoticed.
        folders[folder] = facts.st_mtime_ns
        found, below, others = _entries(root, folder)
        files += [f"{folder}/{file}" for file in found]
        waiting += [f"{folder}/{other}" for other in below]
        passed_over.update(others)
    return sorted(files), folders, passed_over


def _entries(root: Path, folder: str) -> tuple[list[str], list[str], Counter[str]]:
    """The images, the folders, and the endings of everything else in one folder; what is hidden is left out."""
    images, folders, others, broken = [], [], Counter[str](), []
    with _listing(root / folder) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            # No call of the system for either, but for links.
            if entry.is_dir():
                folders.append(entry.name)
            elif not entry.name.lower().endswith(EXTENSIONS):
                others[os.path.splitext(entry.name)[1].lower() or _NO_ENDING] += 1
            elif entry.is_file():
                images.append(entry.name)
            else:
                broken.append(entry.name)
    if broken:
        raise ImageDataError(
            f"{len(broken)} images in {root / folder} cannot be opened ({', '.join(sorted(broken)[:_SHOWN])}"
            f"{', …' if len(broken) > _SHOWN else ''}): links to files that are not there, or no files at all; mend or remove "
            "them"
        )
    return images, folders, others


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


@contextmanager
def _listing(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise ImageDataError(f"{folder} cannot be listed: {error.strerror or error}") from error


def _read(path: Path, root: Path) -> FolderIndex | None:
    """The kept list, or None where there is none that holds for the directory as it is."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if (facts["format"], facts["root"], facts["digest"]) != (_FORMAT, str(root), _digest(body)):
            return None
        files = [os.fsdecode(name) for name in body.split(b"\0")] if body else []
        rest = (facts["counts"], facts["folders"], facts["loose"], facts["passed_over"])
        index = FolderIndex(facts["classes"], files, *rest, kept=True)
        if any(os.stat(root / folder).st_mtime_ns != then for folder, then in index.folders.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return index


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, root: Path, index: FolderIndex) -> None:
    body = b"\0".join(os.fsencode(name) for name in index.files)
    head = {
        "format": _FORMAT,
        "root": str(root),
        "digest": _digest(body),
        "classes": index.classes,
        "counts": index.counts,
        "folders": index.folders,
        "loose": index.loose,
        "passed_over": index.passed_over,
    }
    try:
        with whole_file(path) as beside:
            beside.write_bytes(json.dumps(head).encode() + b"\n" + body)
    except OSError as error:
        announce(f"the list of the images in {root} cannot be kept for the next start: {error}")
