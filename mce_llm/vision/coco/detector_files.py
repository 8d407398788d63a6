"""A trained detector on disk: its weights (.safetensors) and detector.json, which says what they are of.

Training states, from which a run goes on, are `mce_llm.vision.running`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mce_llm.running.files import whole_file, write_json
from mce_llm.running.messages import cause
from mce_llm.vision.coco.annotations import CocoAnnotations
from mce_llm.vision.coco.body import Body, body_of
from mce_llm.vision.coco.detector import build_detector
from mce_llm.vision.coco.errors import DetectorError
from mce_llm.vision.coco.records import Id
from mce_llm.vision.coco.settings import DetectorSettings
from mce_llm.vision.models import BackboneError, BackboneSpec
from mce_llm.vision.models.backbone_files import misfit

FACTS = "detector.json"
LAST = "detector.safetensors"
BEST = "detector_best.safetensors"
# What a trained detector may be asked for in another way than it was trained with.
_OF_EVALUATION = ("rpn_before_nms_eval", "rpn_after_nms_eval", "score_threshold", "detections_per_image")
# Where weights came from before training says nothing about those of after.
_OF_THE_START = ("backbone", "backbone_checkpoint", "backbone_weights", "backbone_kwargs")


@dataclass
class TrainedDetector:
    """A detector from disk.

    Attributes:
        module: In training mode, on the CPU.
        settings: What it was built with.
        category_ids: COCO's id of labels 1, 2, ….
        category_names: Their names.
        origin: The file.
    """

    module: GeneralizedRCNN
    settings: DetectorSettings
    category_ids: list[Id]
    category_names: list[str]
    origin: Path


def write_facts(folder: Path, body: Body, settings: DetectorSettings, annotations: CocoAnnotations) -> None:
    """Write detector.json, in one move.

    Args:
        folder: Where.
        body: The ResNet inside.
        settings: Of the detector.
        annotations: Whose categories it knows.
    """
    facts = {
        "format": 1,
        "settings": {n: v for n, v in asdict(settings).items() if n not in _OF_THE_START},
        "backbone": {
            "name": body.spec.name,
            "stem": body.spec.stem,
            "kwargs": dict(body.spec.kwargs),
            "weights": body.origin,
        },
        "mean": body.mean,
        "std": body.std,
        "category_ids": annotations.category_ids,
        "category_names": annotations.category_names,
    }
    write_json(folder / FACTS, facts)


def write_weights(path: Path, detector: nn.Module) -> None:
    """Write a detector's weights, in one move.

    Args:
        path: The file.
        detector: Not wrapped for data parallelism.

    Raises:
        DetectorError: They cannot be written; an earlier file is as it was.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    try:
        with whole_file(path) as beside:
            save_file(weights, beside, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise DetectorError(f"cannot write {path}: {cause(error)}") from error


def load_detector(where: Path | str, given: Mapping[str, Any] | None = None) -> TrainedDetector:
    """Read a trained detector.

    Args:
        where: The output folder of a run (its last weights are taken), or a .safetensors file in one.
        given: Detector settings that were given now: those of evaluation override what is in the file, the others must
            agree with it.

    Returns:
        The detector.

    Raises:
        DetectorError: Files are missing or do not fit each other, or given settings differ from the detector's.
    """
    where = Path(where).expanduser()
    file = where if where.suffix == ".safetensors" else where / LAST
    if not file.is_file():
        found = sorted(p.name for p in file.parent.glob("*.safetensors")) if file.parent.is_dir() else []
        beside = f" (found: {', '.join(found)})" if found else ""
        raise DetectorError(
            f"there is no file {file}{beside}; give the output_dir of a "
            "detection run, or a .safetensors file in it"
        )
    try:
        facts = json.loads((file.parent / FACTS).read_text(encoding="utf-8"))
        settings = DetectorSettings(**facts["settings"])
        backbone = facts["backbone"]
        spec = BackboneSpec(backbone["name"], backbone["stem"], backbone["kwargs"])
        body = body_of(spec, facts["mean"], facts["std"], str(file))
        category_ids, category_names = list(facts["category_ids"]), list(facts["category_names"])
    except (OSError, ValueError, KeyError, TypeError, BackboneError) as error:
        raise DetectorError(f"{file.parent / FACTS} cannot be read: {cause(error)}") from error
    settings = _with_given(settings, given or {}, file)
    module = build_detector(body, len(category_ids), settings)
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DetectorError(f"{file} cannot be read: {cause(error)}") from error
    if problem := misfit(module.state_dict(), weights, "detector"):
        raise DetectorError(f"{file} does not fit {FACTS}: {problem}")
    module.load_state_dict(weights)
    return TrainedDetector(module, settings, category_ids, category_names, file)


def _with_given(settings: DetectorSettings, given: Mapping[str, Any], file: Path) -> DetectorSettings:
    names = {item.name for item in fields(DetectorSettings)} - set(_OF_THE_START)
    asked = {name: value for name, value in given.items() if name in names and value is not None}
    before = asdict(settings)
    other = [
        f"{name} {value!r} (the detector has {before[name]!r})"
        for name, value in asked.items()
        if name not in _OF_EVALUATION and value != before[name]
    ]
    if other:
        raise DetectorError(
            f"{file} was trained with other settings than given: {', '.join(other)}; leave them out"
        )
    return DetectorSettings(**{**before, **{n: v for n, v in asked.items() if n in _OF_EVALUATION}})
