"""`mce-llm copy`: recipes and scripts, as they came with the package, into a folder where they can be edited and launched."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mce_llm.running.files import whole_file
from mce_llm.running.folder import OutputError, check_place
from mce_llm.running.installation import FOLDERS, InstallationError, shipped_folder
from mce_llm.running.messages import counted, nearest_hint
from mce_llm.running.visible_text import print_visible

_LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        written: Files that were written.
        kept: Files that were there already, with the same content.
    """

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def shipped_names() -> list[str]:
    """Return every recipe and script, as a path such as recipes/finetune.py."""
    top = shipped_folder()
    return sorted(
        path.relative_to(top).as_posix()
        for folder in FOLDERS
        for path in (top / folder).rglob("*")
        if path.is_file() and not set(path.parts) & set(_LEFT_OUT)
    )


def chosen_names(names: Sequence[str]) -> list[str]:
    """Return the files that a user names: a folder, a path below one, or a file's name with or without its ending.

    Args:
        names: What was given; nothing stands for everything.

    Raises:
        InstallationError: A name fits no file, or several files in different folders.
    """
    known = shipped_names()
    found: dict[str, None] = {}
    for name in names or FOLDERS:
        wanted = Path(name).as_posix()
        fitting = [path for path in known if path == wanted or path.startswith(f"{wanted}/")]
        fitting = fitting or [path for path in known if wanted in (Path(path).name, Path(path).stem)]
        if not fitting:
            hint = nearest_hint(wanted, {*FOLDERS, *known, *(Path(path).stem for path in known)})
            raise InstallationError(
                f"mce-llm brings no {name!r}{hint}; mce-llm copy --list shows what it brings"
            )
        folders = {path.rpartition("/")[0] for path in fitting}
        if len(folders) > 1 and not any(path.startswith(f"{wanted}/") for path in fitting):
            raise InstallationError(f"{name!r} may be {' or '.join(fitting)}; give one of these paths")
        found |= dict.fromkeys(fitting)
    return list(found)


def copy_shipped(names: Sequence[str], to: Path, *, overwrite: bool = False) -> Copied:
    """Copy recipes and scripts, each to the same place below a folder; all of them or none.

    Args:
        names: See `chosen_names`.
        to: The folder; it is made.
        overwrite: Replace files of other content.

    Returns:
        What was written.

    Raises:
        InstallationError: There is no such file.
        OutputError: Files of other content are in the way, or the folder cannot be written.
    """
    top = shipped_folder()
    chosen = chosen_names(names)
    if to.resolve() == top:
        raise OutputError(f"{to} is where these files come from; name another folder with --to")
    check_place(to)
    same, new, changed = [], [], []
    for name in chosen:
        target = to / name
        if not target.exists():
            new.append(name)
        elif target.is_file() and filecmp.cmp(top / name, target, shallow=False):
            same.append(name)
        else:
            changed.append(name)
    if changed and not overwrite:
        raise OutputError(
            f"{counted(len(changed), 'file')} in {to} not as mce-llm brings them, {changed[0]} for one; keep them with "
            "--to ANOTHER_FOLDER, or replace them with --overwrite"
        )
    try:
        for name in (*new, *changed):
            with whole_file(to / name) as beside:
                shutil.copyfile(top / name, beside)
            (to / name).chmod((to / name).stat().st_mode | (top / name).stat().st_mode & 0o111)
    except OSError as error:
        raise OutputError(f"cannot write to {error.filename or to}: {error.strerror or error}") from error
    return Copied(tuple(to / name for name in (*new, *changed)), tuple(to / name for name in same))


def print_copied(copied: Copied) -> None:
    """Say what was copied, and how to go on."""
    for path in copied.written:
        print_visible(str(path))
    kept = f", {len(copied.kept)} there already" if copied.kept else ""
    print(f"{counted(len(copied.written), 'file')} written{kept}")
