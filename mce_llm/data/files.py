"""Local data files: which ones a path, a folder or a pattern names, and which split each belongs to."""

from __future__ import annotations

import glob
from pathlib import Path

import datasets

from mce_llm.data.errors import DataError
from mce_llm.data.records import TEXT_FILES, kind_of
from mce_llm.running.messages import cause, nearest_hint

TABLES = (".parquet", ".arrow")
FILES = (*TEXT_FILES, *TABLES)
ENDINGS = f"{', '.join(FILES)}; {', '.join(TEXT_FILES)} also with .gz, .bz2 or .xz"
_PATTERN = "*?["


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern such as ``data/*.jsonl``."""
    return any(sign in source for sign in _PATTERN) and not Path(source).expanduser().exists()


def looks_local(source: str) -> bool:
    """Whether a source that does not exist would be a file or a folder, not a data set of the hub."""
    return (
        kind_of(Path(source)) in FILES
        or is_pattern(source)
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
    )


def files_of(source: str, name: str | None = None, revision: str | None = None) -> dict[str, list[Path]]:
    """The data files that a source names, by split.

    Args:
        source: A file, a pattern (one split, called train), or a folder, whose splits `datasets` reads off the names of
            its files, or off its README.md.
        name: The configuration of a folder.
        revision: None; files have no revisions.

    Returns:
        Split → files, each of them sorted.

    Raises:
        DataError: There are none, or such that cannot be read together.
    """
    if name is not None and not Path(source).expanduser().is_dir():
        raise DataError(
            f"{source}: a configuration ({name!r}) is for data sets of the hub and folders; a file has none"
        )
    if revision is not None:
        raise DataError(
            f"{source}: a revision ({revision!r}) is for data sets of the hub; local files have none"
        )
    path = Path(source).expanduser()
    if is_pattern(source):
        found = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).is_file())
        if not found:
            raise DataError(f"{source}: no file has a name like that")
        return {"train": _readable(source, found)}
    if path.is_dir():
        return _in_folder(path, name)
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f"; the directory {path.parent} does not exist either"
        raise DataError(f"{path}: no such file{nearest_hint(path.name, beside)}{where}")
    return {"train": _readable(str(path), [path])}


def _readable(source: str, files: list[Path]) -> list[Path]:
    for path in files:
        if kind_of(path) not in FILES:
            raise DataError(
                f"{path}: cannot read {path.suffix or 'a file without an extension'}; use {ENDINGS}"
            )
    kinds = {kind_of(path) for path in files}
    if len(kinds) > 1 and kinds & set(TABLES):
        raise DataError(
            f"{source}: {' and '.join(sorted(kinds))} files cannot be read together; name those of one kind"
        )
    return files


def _in_folder(path: Path, name: str | None) -> dict[str, list[Path]]:
    try:
        builder = datasets.load_dataset_builder(str(path), name)
        found = {
            str(split): sorted(map(Path, files)) for split, files in (builder.config.data_files or {}).items()
        }
    except Exception as error:  # datasets raises many types for folders that hold no data
        raise DataError(
            f"{path}: no data set can be loaded from this directory: {cause(error)}; expected one written by "
            f"save_to_disk, or data files ({ENDINGS})"
        ) from error
    for files in found.values():
        _readable(str(path), files)
    # `datasets` takes the files of the commonest kind and leaves the others out without a word.
    read = {file.resolve() for files in found.values() for file in files}
    hidden = (".", "_")
    others = [
        file
        for file in sorted(path.rglob("*"))
        if kind_of(file) in FILES
        and file.is_file()
        and file.resolve() not in read
        and not any(part.startswith(hidden) for part in file.relative_to(path).parts)
    ]
    if others and not _says_which(path / "README.md"):
        kinds = ", ".join(sorted({kind_of(file) for files in found.values() for file in files}))
        raise DataError(
            f"{path}: of the files there only those in {kinds} would be read, and {others[0].relative_to(path)}"
            f"{f' and {len(others) - 1} more' if len(others) > 1 else ''} left out; name the files with a pattern, such "
            f"as {path}/*{kind_of(others[0])}"
        )
    return found


def _says_which(card: Path) -> bool:
    """Whether a data set's card says which files are its data."""
    return (
        card.is_file()
        and "data_files" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
    )
