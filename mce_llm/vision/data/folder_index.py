"""The list of a directory's images, kept in a file so that a million of them are listed once.

The file lies in the user's cache, never beside the data. It is trusted while no folder that was listed has changed
since: adding, removing or renaming a file changes the modification time of the folder that holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mce_llm.running.files import whole_file
from mce_llm.vision.data.announcing import announce

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FORMAT = 1
# A folder may change again within the same tick of its clock, unseen; what has just changed is not kept.
_TICK_NS = 2 * 10**9
_MOST_THREADS = 16


@dataclass
class FolderIndex:
    """The images of a directory of class folders.

    Attributes:
        classes: The names of the class folders, sorted.
        files: Paths below the directory (`class/…/file`), sorted, class after class.
        counts: How many files each class has.
        folders: Every folder that was listed, as a path below the directory, with its modification time in ns.
        kept: Whether this came from a kept list.
    """

    classes: list[str]
    files: list[str]
    counts: list[int]
    folders: dict[str, int]
    kept: bool = False


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a directory, sorted; hidden ones are left out."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def folder_index(root: Path, *, rebuild: bool = False) -> FolderIndex:
    """List the images below a directory of class folders, or use the list that was kept.

    Args:
        root: The directory.
        rebuild: Do not look at a kept list.

    Returns:
        The index.
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
    """List a directory of class folders.

    Args:
        root: The directory.

    Returns:
        The index; a class folder without images has a count of 0.
    """
    classes = class_folders(root)
    # A network file system answers many threads as fast as one.
    with ThreadPoolExecutor(min(_MOST_THREADS, max(1, len(classes)))) as pool:
        listed = list(pool.map(lambda name: _scan_class(root, name), classes))
    folders = {"": root.stat().st_mtime_ns}
    for _, below in listed:
        folders.update(below)
    files = [file for found, _ in listed for file in found]
    return FolderIndex(classes, files, [len(found) for found, _ in listed], folders)


def _scan_class(root: Path, name: str) -> tuple[list[str], dict[str, int]]:
    files: list[str] = []
    folders: dict[str, int] = {}
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
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(EXTENSIONS):
                    files.append(f"{folder}/{entry.name}")
                elif entry.is_dir():
                    waiting.append(f"{folder}/{entry.name}")
    return sorted(files), folders


def _read(path: Path, root: Path) -> FolderIndex | None:
    """The kept list, or None where there is none that holds for the directory as it is."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if (facts["format"], facts["root"], facts["digest"]) != (_FORMAT, str(root), _digest(body)):
            return None
        files = [os.fsdecode(name) for name in body.split(b"\0")] if body else []
        index = FolderIndex(facts["classes"], files, facts["counts"], facts["folders"], kept=True)
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
    }
    try:
        with whole_file(path) as beside:
            beside.write_bytes(json.dumps(head).encode() + b"\n" + body)
    except OSError as error:
        announce(f"the list of the images in {root} cannot be kept for the next start: {error}")
