"""Files that are whole or absent, whenever the process is killed, and the removal of what is in the way."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file beside its place, have it on disk, then put it there in one move.

    Args:
        path: The file; its folder is made. Whoever may read files in that folder may read this one.

    Yields:
        The path to write to. Where the block raises, an earlier file at `path` stays as it was.

    Raises:
        OSError: The file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By the process, as others of the same launch may write a file of this name at the same time.
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # safetensors, as tempfile, makes files that their owner alone can read; this one gets what any other has here.
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        beside.unlink()
        yield beside
        beside.chmod(mode)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all.

    Args:
        path: The file; its folder is made.
        text: What to write, in UTF-8.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, whole or not at all.

    Args:
        path: The file; its folder is made.
        content: JSON values.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def flush_folder(folder: Path) -> None:
    """Have a folder's entries on disk, on file systems that know how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse it, and write entries through by themselves
        pass
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; nothing happens where there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        # NotADirectoryError: a file is in the place of its folder
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
