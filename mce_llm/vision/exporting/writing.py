"""One export from beginning to end: written beside its place, read back, compared, described, and only then moved there."""

from __future__ import annotations

from pathlib import Path

from mce_llm.running.files import remove, write_json
from mce_llm.running.installation import DISTRIBUTION, installed_version
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
            remove(part)
            part.mkdir(parents=True)
            target.write(candidate, part)
            measured.append(check(candidate, target.read(candidate, part), target.name))
        deviations = {name: max(found[name] for found in measured) for name in measured[0]}
        packages = dict.fromkeys((DISTRIBUTION, "torch", target.library))
        # detectron2 may be absent: its format is written and checked without it.
        versions = {name: found for name in packages if (found := installed_version(name)) is not None}
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
        write_json(part / RECORD, record)
        for path in part.iterdir():  # safetensors lets nobody else read what it writes
            path.chmod((part / RECORD).stat().st_mode)
        remove(folder)
        part.replace(folder)
    except OSError as error:
        raise ExportError(f"cannot write the {target.name} export to {folder}: {cause(error)}") from error
    finally:
        remove(part)
    return deviations
