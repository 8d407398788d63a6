"""COCO detection: annotations and images, Mask R-CNN around a pretrained ResNet, training steps, average precision."""

from mce_llm.vision.coco.annotations import CocoAnnotations, read_annotations
from mce_llm.vision.coco.body import Body, load_body
from mce_llm.vision.coco.dataset import EvaluationImages, TrainingImages
from mce_llm.vision.coco.detector import build_detector
from mce_llm.vision.coco.detector_files import TrainedDetector, load_detector
from mce_llm.vision.coco.drawing import draw_detections
from mce_llm.vision.coco.errors import CocoDataError, CocoEvaluationError, DetectorError
from mce_llm.vision.coco.evaluation import Scores, evaluate_detections
from mce_llm.vision.coco.images import CocoImage
from mce_llm.vision.coco.instances import Instance
from mce_llm.vision.coco.predictions import detect
from mce_llm.vision.coco.settings import CocoDataSettings, DetectorSettings, ScheduleSettings

__all__ = [
    "Body",
    "CocoAnnotations",
    "CocoDataError",
    "CocoDataSettings",
    "CocoEvaluationError",
    "CocoImage",
    "DetectorError",
    "DetectorSettings",
    "EvaluationImages",
    "Instance",
    "ScheduleSettings",
    "Scores",
    "TrainedDetector",
    "TrainingImages",
    "build_detector",
    "detect",
    "draw_detections",
    "evaluate_detections",
    "load_body",
    "load_detector",
    "read_annotations",
]
