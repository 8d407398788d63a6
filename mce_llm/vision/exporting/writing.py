"""One export from beginning to end: written beside its place, read back, compared, described, and only then moved there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mce_llm.running.messages import cause
from mce_llm.vision.exporting.card import model_card
from mce_llm.vision.exporting.checking import check
from mce_llm.vision.exporting.encoder import Encoder
from mce_llm.vision.exporting.errors import ExportError
from mce_llm.vision.exporting.formats import Format

RECORD = "export.json"


def may_write(folder: Path, *, overwrite: bool) -> None:
    """See whether an export may be written, before anything is computed for it.

    Args:
        folder: The export's own folder.
        overwrite: Whether an export that is there may be replaced.

    Raises:
        ExportError: Something is in the way.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file; name another output_dir")
    if not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise ExportError(f"{folder} is not empty and holds no export; name another output_dir")
    if not overwrite:
        raise ExportError(
            f"{folder} holds an export; name another output_dir, or replace it with --overwrite true"
        )


def write_export(
    encoder: Encoder, target: Format, folder: Path, *, overwrite: bool = False, license: str | None = None
) -> dict[str, float]:
    """Export an encoder to one format.

    The export is read back by its own library, and its features (and feature maps, where the format has them) are
    compared with the encoder's: once with weights of which none can be wrong unnoticed, once with its own.

    Args:
        encoder: What to export.
        target: The format.
        folder: Where; it and its parents are made.
        overwrite: Replace an export that is there.
        license: SPDX identifier for the model card.

    Returns:
        The greatest deviation of each output, relative to its greatest value.

    Raises:
        ExportError: It cannot be written there, or deviates; nothing is left of it then, and what was there before is.
        UnsupportedFormatError: The format has no place for the encoder.
    """
    may_write(folder, overwrite=overwrite)
    target.check(encoder)
    part = folder.with_name(f".{folder.name}.part")
    try:
        measured: list[dict[str, float]] = []
        for candidate in (encoder.with_generic_weights(), encoder):
            _remove(part)
            part.mkdir(parents=True)
            target.write(candidate, part)
            measured.append(check(candidate, target.read(candidate, part), target.name))
        deviations = {name: max(found[name] for found in measured) for name in measured[0]}
        versions = _versions(target)
        record = {
            "format": target.name,
            "encoder": encoder.spec.name,
            "stem": encoder.spec.stem,
            "weights_sha256": encoder.digest,
            "deviations": deviations,
            "versions": versions,
        }
        card = model_card(encoder, target, deviations, versions, license)
        (part / "README.md").write_text(card, encoding="utf-8")
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for path in part.iterdir():  # safetensors lets nobody else read what it writes
            path.chmod((part / RECORD).stat().st_mode)
        _remove(folder)
        part.replace(folder)
    except OSError as error:
        raise ExportError(f"cannot write the {target.name} export to {folder}: {cause(error)}") from error
    finally:
        _remove(part)
    return deviations


def _versions(target: Format) -> Mapping[str, str]:
    found = {}
    for name in dict.fromkeys(("mce-llm", "torch", target.library)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # detectron2, which is not needed
            continue
    return found


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
