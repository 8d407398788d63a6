"""Encoders by name, projector and predictor, the averaged teacher, and the files a trained encoder is kept in."""

from mce_llm.vision.models.backbone_files import TEACHER, BackboneFileError, load_backbone, save_backbone
from mce_llm.vision.models.backbones import (
    BackboneError,
    BackboneSpec,
    build_backbone,
    channels_last_is_safe,
    feature_dim,
)
from mce_llm.vision.models.heads import Predictor, Projector
from mce_llm.vision.models.sync_norm import ProcessBatchNorm, synchronise_norms
from mce_llm.vision.models.teacher import MomentumTeacher

__all__ = [
    "TEACHER",
    "BackboneError",
    "BackboneFileError",
    "BackboneSpec",
    "MomentumTeacher",
    "Predictor",
    "ProcessBatchNorm",
    "Projector",
    "build_backbone",
    "channels_last_is_safe",
    "feature_dim",
    "load_backbone",
    "save_backbone",
    "synchronise_norms",
]
