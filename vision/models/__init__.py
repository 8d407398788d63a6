"""Encoders by name, projector and predictor, the averaged teacher, and the files a trained encoder is kept in."""

from mce_llm.vision.models.backbone_files import BackboneFileError, load_backbone, save_backbone
from mce_llm.vision.models.backbones import BackboneError, BackboneSpec, build_backbone, feature_dim
from mce_llm.vision.models.heads import Predictor, Projector
from mce_llm.vision.models.teacher import MomentumTeacher

__all__ = [
    "BackboneError",
    "BackboneFileError",
    "BackboneSpec",
    "MomentumTeacher",
    "Predictor",
    "Projector",
    "build_backbone",
    "feature_dim",
    "load_backbone",
    "save_backbone",
]
