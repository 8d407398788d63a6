"""What makes a checkpoint whole: a manifest with size and digest of every file, written last, after all else is on disk.

A kill can leave any part of a folder unwritten, but never a manifest beside an unwritten file; whatever happens to a
file later (cut off, a block lost, a bit flipped, a copy that stopped) no longer agrees with the manifest. Everything
here concerns one folder as one process sees it. Several processes are brought together in `checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mce_llm.running.files import flush_folder, write_text

MANIFEST = "manifest.json"
INCOMPLETE = "INCOMPLETE"  # there from before the first file of a save until after the manifest
_REMOVED = ".removed-"  # prefix of folders that are being deleted
_UNFINISHED = ".new-"  # prefix of folders that are being made

# SHA-256 of every byte. One core does 1.5 GB/s (with the SHA instructions that server CPUs have), and a file is read
# in pieces by several threads, so that the one 56 GB file of a 7B model's Adam takes 5 s on 8 cores. That is a small
# part of writing it, and sampling blocks instead would let a lost one through.
_PIECE = 1 << 26  # bytes
_BUFFER = 1 << 20
_MOST_THREADS = 16


def create(folder: Path, owner: Mapping[str, Any]) -> None:
    """Make an empty checkpoint folder with the marker of incomplete ones in it, atomically.

    Args:
        folder: The folder; an existing one, made by another process meanwhile, is left as it is.
        owner: Who makes it, written into the marker.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    (unfinished / INCOMPLETE).write_text(json.dumps(dict(owner)) + "\n", encoding="utf-8")
    try:
        unfinished.rename(folder)
    except OSError:  # it is there, and not empty
        shutil.rmtree(unfinished)
        if not folder.is_dir():
            raise
    flush_folder(folder.parent)


def marker_of(folder: Path) -> dict[str, Any] | None:
    """Who is writing the folder, or None where nobody is."""
    return _read_json(folder / INCOMPLETE)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be read."""
    manifest = _read_json(folder / MANIFEST)
    if manifest is None or not isinstance(files := manifest.get("files"), dict):
        return None
    whole = all(
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("digest"), str)
        for entry in files.values()
    )
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in files)
    return manifest if whole and inside else None


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of all files of the folder atomically, and remove the marker.

    Args:
        folder: The checkpoint; what is in it is on disk already (`flush`).
        facts: What else to note, such as the number of processes.

    Raises:
        OSError: A file cannot be read, or the disk is full.
    """
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    digests = _digests(list(files.values()))
    manifest = {
        **facts,
        "saved": time.time(),
        "digest": f"sha256 of the sha256 of every {_PIECE} bytes",
        "files": {
            name: {"size": path.stat().st_size, "digest": digest}
            for (name, path), digest in zip(files.items(), digests, strict=True)
        },
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / INCOMPLETE).unlink(missing_ok=True)
    flush_folder(folder)


def vouch(folder: str | Path) -> None:
    """Write the manifest of a checkpoint that another program saved: it is whole as it is now, on your word.

    Args:
        folder: The checkpoint.
    """
    flush(Path(folder))
    write_manifest(Path(folder), {})


def flush(folder: Path) -> None:
    """Flush every file and directory of a folder to disk, and the entry of the folder itself."""
    for path in _files(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir()), folder.parent]:
        flush_folder(path)


def problem_of(folder: Path) -> str | None:
    """The reason why a folder is not a complete checkpoint.

    Args:
        folder: The checkpoint; every file that its manifest names is read.

    Returns:
        The first problem with what was expected and what is there, or None where all agrees.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / MANIFEST).exists():
            return f"its {MANIFEST} cannot be read"
        if (folder / INCOMPLETE).exists():
            return "its save was interrupted"
        return (
            f"it has no {MANIFEST}, so nothing tells whether it is whole (where another program wrote it and you know that "
            f"it is: python -c \"from {__name__} import vouch; vouch('{folder}')\")"
        )
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != expected["size"]:
            return f"{name} has {size} bytes instead of {expected['size']}"
    for name, digest in zip(files, _digests([folder / name for name in files]), strict=True):
        if digest != (expected := files[name]["digest"]):
            return f"{name} has the digest {digest[:16]}… instead of {expected[:16]}…"
    return None


def remove(folder: Path) -> None:
    """Delete a folder, renamed first, so that a partly deleted one is never taken for a checkpoint."""
    doomed = folder.with_name(f"{_REMOVED}{folder.name}-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def leftovers(output: Path) -> list[Path]:
    """Folders that were being made or deleted when their process was killed."""
    return sorted(
        path for mark in (_REMOVED, _UNFINISHED) for path in output.glob(f"{mark}*") if path.is_dir()
    )


def _files(folder: Path) -> list[Path]:
    """What a manifest lists: not itself, a copy of it that a killed process was writing, or the marker."""
    own = {folder / INCOMPLETE, folder / MANIFEST, *folder.glob(f".{MANIFEST}.*.part")}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)


def _digests(paths: list[Path]) -> list[str]:
    """The digest of each file; pieces are hashed by several threads, since hashing releases the interpreter lock."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        pieces = [[pool.submit(_piece, path, start) for start in _starts(path)] for path in paths]
        return [hashlib.sha256(b"".join(piece.result() for piece in of)).hexdigest() for of in pieces]


def _starts(path: Path) -> Iterator[int]:
    return iter(range(0, max(path.stat().st_size, 1), _PIECE))


def _piece(path: Path, start: int) -> bytes:
    digest = hashlib.sha256()
    left = _PIECE
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (block := stream.read(min(left, _BUFFER))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
