"""The folder of a run, whatever runs: may it be written, is somebody else at work in it, and what is left in it.

What a run adds (checkpoints, answers, journals) is the matter of the package that adds it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from mce_llm.errors import MceLlmError
from mce_llm.running.files import write_json, write_text
from mce_llm.running.installation import DISTRIBUTION, installed_versions
from mce_llm.running.visible_text import print_visible
from mce_llm.running.yaml_text import dump_yaml

RECIPE = "recipe.yaml"
VERSIONS = "versions.json"
LOCK = "_LOCK"  # what begins with an underscore is not pushed to the hub


class OutputError(MceLlmError, RuntimeError):
    """The output folder cannot be used, or not like that; the message says what to do."""


class CheckpointError(MceLlmError, RuntimeError):
    """A checkpoint that cannot be written, read or gone on from; the message says why and what to do."""


class _HeldByAnotherError(Exception):
    """Another process holds the lock; the text is what that one wrote about itself."""


@dataclass
class _Hold:
    """A folder that this process holds; `file` is the locked one, None on a file system without locks."""

    file: TextIOWrapper | None
    let_go: Callable[[], object] | None


_held: dict[Path, _Hold] = {}


def check_place(folder: Path, *, error: type[MceLlmError] = OutputError) -> None:
    """Refuse a place that cannot be written; only looks, so that every process may.

    Args:
        folder: The folder, there or not.
        error: What to raise.

    Raises:
        MceLlmError: Of the type `error`: it or what is above it is a file, or there is no permission.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except PermissionError as problem:
        raise error(
            f"no permission to look into {problem.filename}; choose another output directory"
        ) from problem
    if not existing.is_dir():
        raise error(f"the output {folder} cannot be a directory: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise error(f"no permission to write to {existing}; choose another output directory")


def make_folder(folder: Path) -> None:
    """Make a run's folder, and see that files can be made in it.

    Args:
        folder: The folder, there or not.

    Raises:
        OutputError: It is a file, or the file system refuses.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"output_dir {str(folder)!r} is a file; name a directory")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {str(folder)!r}: {error.strerror or error}") from error


def hold_folder(
    folder: Path, *, let_go: Callable[[], object] | None = None, error: type[MceLlmError] = OutputError
) -> None:
    """Have the folder for this process alone, until `release_folder` or its end, however that comes about.

    A process that holds the folder already has begun a second run in it, as in a notebook: the first is told to let go.
    Of several processes that were launched together, one holds the folder for all. Where the file system has no locks,
    a line on standard error says that another process would not be noticed.

    Args:
        folder: The folder; it is made.
        let_go: What to do where this process takes the folder over: close the files that are open in it.
        error: What to raise.

    Raises:
        MceLlmError: Of the type `error`: another process is at work in the folder, or the file system refuses.
    """
    folder = folder.resolve()
    if (mine := _held.get(folder)) is not None:
        if mine.let_go is not None:
            mine.let_go()
        mine.let_go = let_go
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK)
        if file is not None:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
    except _HeldByAnotherError as held:
        owner = f" ({held})" if str(held) else ""
        raise error(
            f"another run is writing to {folder} at this moment{owner}; wait for it, or choose another output directory"
        ) from None
    except OSError as problem:
        raise error(
            f"cannot write to {folder}: {problem.strerror or problem} ({folder / LOCK}); choose another output "
            "directory"
        ) from problem
    if file is None:
        print_visible(
            f"{folder} is on a file system without locks: a second run that writes to it would not be noticed",
            sys.stderr,
        )
    _held[folder] = _Hold(file, let_go)


def _locked(path: Path) -> TextIOWrapper | None:
    """Open a file and lock it; None where the file system has no locks."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise _HeldByAnotherError(file.read().strip()) from None
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            return None
        if _is_open_file(path, file):
            return file
        file.close()  # its owner has let go of it, and removed it, between our two steps


def _is_open_file(path: Path, file: TextIOWrapper) -> bool:
    """Whether a path still leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def holds_folder(folder: Path) -> bool:
    """Whether this process holds the folder."""
    return folder.resolve() in _held


def release_folder(folder: Path) -> None:
    """Let others write to the folder; nothing happens where this process does not hold it."""
    folder = folder.resolve()
    mine = _held.pop(folder, None)
    if mine is None or mine.file is None:
        return
    with mine.file:
        # Somebody may have emptied the folder meanwhile, and another run have begun in it.
        if _is_open_file(folder / LOCK, mine.file):
            (folder / LOCK).unlink(missing_ok=True)


def release_folders() -> None:
    """Let go of every folder that this process holds."""
    for folder in list(_held):
        release_folder(folder)


@contextmanager
def folder_held(folder: Path, *, error: type[MceLlmError] = OutputError) -> Iterator[None]:
    """Hold a folder as long as a block runs; see `hold_folder`. Where this process holds it already, nothing happens."""
    if holds_folder(folder):
        yield
        return
    hold_folder(folder, error=error)
    try:
        yield
    finally:
        release_folder(folder)


def write_record(
    folder: Path, given: Mapping[str, Any], packages: Iterable[str], *, remarks: Iterable[str] = ()
) -> None:
    """Leave what is needed to run the same again: recipe.yaml and versions.json.

    Args:
        folder: The folder.
        given: The settings that were given; access tokens are left out.
        packages: Whose versions the outcome depends on, beside Python's and this package's.
        remarks: Comments to put in front of the settings, such as what was other before.

    Raises:
        OSError: The file system refuses.
    """
    from mce_llm.running.settings import without_secrets  # here: it brings transformers, which takes seconds

    settings = dump_yaml(without_secrets(given))
    comments = "".join(f"# {' '.join(remark.split())}\n" for remark in remarks)
    write_text(folder / RECIPE, comments + settings)
    write_json(folder / VERSIONS, installed_versions((DISTRIBUTION, *packages)))


def _forget_in_child() -> None:
    """A worker process that outlives its parent must not hold the parent's folders."""
    for hold in _held.values():
        if hold.file is not None:
            hold.file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(release_folders)
