"""Write a pretrained encoder for torchvision, timm, transformers or detectron2, or read a published one.

    python vision/export.py --encoder RUN_FOLDER --output_dir FOLDER
    python vision/export.py --import_from FILE --backbone resnet50 --output_dir FOLDER

Every export is read back by its own library and compared with the encoder before it is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mce_llm.running.settings import parse_settings
from mce_llm.vision.exporting import (
    FORMATS,
    ExportError,
    ExportSettings,
    UnsupportedFormatError,
    format_by_name,
    import_weights,
    other_encoders,
    read_encoder,
    read_foreign,
    reasons_against,
    write_export,
)
from mce_llm.vision.exporting.settings import check_given
from mce_llm.vision.exporting.writing import may_write
from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone
from mce_llm.vision.models.backbone_files import FACTS
from mce_llm.vision.running import run_script


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Its words, without the program's name; those of the process by default.
    """
    words = sys.argv[1:] if argv is None else argv
    (settings,), given = parse_settings(
        (ExportSettings,), words, description=__doc__, comma_lists=("format",)
    )
    check_given(settings, given)
    if settings.import_from is not None:
        import_encoder(settings)
    else:
        export_encoder(settings)


def export_encoder(settings: ExportSettings) -> dict[str, dict[str, float]]:
    """Export the encoder of a pretraining run.

    Args:
        settings: Which, and to which formats.

    Returns:
        What the check of each export measured.

    Raises:
        UnsupportedFormatError: A format that was asked for by name has no place for the encoder, or none has.
    """
    assert settings.encoder is not None
    encoder = read_encoder(settings.encoder, use_teacher=bool(settings.use_teacher))
    reasons = reasons_against(encoder)
    refused = {name: reasons[name] for name in settings.formats if name in reasons}
    if refused and not settings.wants_all:
        able = ", ".join(name for name in FORMATS if name not in reasons)
        lines = "".join(f"\n- {name}: {reason}" for name, reason in refused.items())
        raise UnsupportedFormatError(f"no place for this encoder in{lines}\nwhat can be written: {able}")
    for name, reason in refused.items():
        print(f"{name}: left out, {reason}")
    folders = {
        name: Path(settings.output_dir).expanduser() / name
        for name in settings.formats
        if name not in refused
    }
    for folder in folders.values():
        may_write(folder, overwrite=settings.overwrite)
    measured = {}
    for name, folder in folders.items():
        measured[name] = write_export(
            encoder, format_by_name(name), folder, overwrite=settings.overwrite, license=settings.license
        )
        values = ", ".join(f"{output} {value:.1e}" for output, value in measured[name].items())
        print(f"{name}: wrote {folder}; read back, it deviates by {values}", flush=True)
    return measured


def import_encoder(settings: ExportSettings) -> None:
    """Read someone else's weights into a folder like that of a pretraining run.

    Args:
        settings: From where, and of which encoder.

    Raises:
        ExportError: The folder holds an encoder already.
    """
    assert settings.import_from is not None
    folder = Path(settings.output_dir).expanduser()
    if (folder / FACTS).exists() and not settings.overwrite:
        raise ExportError(
            f"{folder} holds an encoder; name another output_dir, or replace it with --overwrite true"
        )
    if (folder / "summary.json").exists():
        raise ExportError(
            f"{folder} holds a run of training, whose encoder is not overwritten; name another output_dir"
        )
    spec = BackboneSpec(settings.backbone, settings.stem, settings.arguments)
    module = build_backbone(spec)
    tensors = read_foreign(settings.import_from)
    source = Path(settings.import_from).name
    prefix = import_weights(module, tensors, source, prefix=settings.prefix, averaged=settings.use_teacher)
    facts = {
        "image_size": settings.image_size,
        "mean": settings.mean,
        "std": settings.std,
        "method": settings.method,
        "imported_from": source,
        "imported_prefix": prefix,
    }
    try:
        save_backbone(module, spec, folder, facts)
    except OSError as error:
        raise ExportError(f"cannot write to output_dir {str(folder)!r}: {error.strerror or error}") from error
    others = other_encoders(module, tensors, prefix)
    choice = f" (it also holds {', '.join(others)}: --prefix takes another)" if others else ""
    print(f"{source}: read {settings.backbone} from {prefix!r}{choice} and wrote {folder / FACTS}")


if __name__ == "__main__":
    sys.exit(run_script(main))
