"""Mask R-CNN around a ResNet, put together from torchvision's parts: R50-C4 and R50-FPN.

What differs from detectron2, whose figures the literature reports: losses of boxes are smooth L1 with β = 1/9 (there
L1); the RPN's losses are means over the sampled anchors (there the box part is divided by 256 an image also where fewer
could be sampled); a detector's anchors are rounded to whole pixels. The FPN model pools with torchvision's
`MultiScaleRoIAlign` (2×2 samples a bin, not aligned by half a pixel); the C4 model pools as detectron2 does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mce_llm.vision.coco.body import STAGES, Body, adapt_norms
from mce_llm.vision.coco.heads import (
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    ProposalHead,
    SharedStageHeads,
    StageHead,
)
from mce_llm.vision.coco.settings import DetectorSettings
from mce_llm.vision.models import synchronise_norms

_RATIOS = (0.5, 1.0, 2.0)
_Norm = Callable[[int], nn.Module] | None


class Normalization(GeneralizedRCNNTransform):
    """uint8 images to normalised float32, padded to one size. The data set has resized them, and nobody resizes back.

    So boxes are in pixels of the image that was given, and masks are probabilities in their box's own coordinates.

    Args:
        mean: Per channel, for values in [0, 1].
        std: Likewise.
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=mean, image_std=std)

    def normalize(self, image: Tensor) -> Tensor:
        """(image / 255 − mean) / std."""
        normalized: Tensor = super().normalize(image.float() / 255)
        return normalized

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Nothing: the data set did it."""
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Nothing: see `predictions`."""
        return result


def build_detector(body: Body, num_categories: int, settings: DetectorSettings) -> GeneralizedRCNN:
    """Mask R-CNN with new heads.

    Args:
        body: The ResNet; it becomes part of the detector, and is changed.
        num_categories: Without the background.
        settings: Of the detector.

    Returns:
        The detector in training mode. It takes lists of uint8 images and of targets and gives a dict of losses (means;
        see the module's text), in evaluation it gives a dict for each image: boxes (R, 4), labels (R,), scores (R,),
        masks (R, 1, M, M) as probabilities.
    """
    norm = adapt_norms(body, settings)
    detector = (_c4 if settings.architecture == "c4" else _fpn)(body, num_categories + 1, settings, norm)
    return detector.train()


def with_synchronized_norms(
    detector: nn.Module, *, world_size: int, device: torch.device
) -> tuple[nn.Module, str]:
    """Have batch norms see all processes' images, where there is more than one process.

    Args:
        detector: With plain batch norms.
        world_size: Number of processes.
        device: Theirs.

    Returns:
        The detector, and a sentence that says what its norms really are.
    """
    if world_size == 1:
        return detector, "SyncBN: one process has nothing to synchronise, so these are plain batch norms"
    kind = (
        "torch's SyncBatchNorm"
        if device.type != "cpu"
        else "a batch norm over gloo, as torch has none for the CPU"
    )
    return synchronise_norms(detector, device), f"SyncBN over {world_size} processes: {kind}"


class _SingleMap(nn.Module):
    """The stages before the last one: one map of stride 16, in float32."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body.module, {STAGES[2]: "0"})
        self.out_channels = body.channels[2]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: features.float() for name, features in self.body(images).items()}


class _Pyramid(BackboneWithFPN):
    """torchvision's pyramid, in float32."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: features.float() for name, features in super().forward(x).items()}


def _c4(body: Body, num_classes: int, settings: DetectorSettings, norm: _Norm) -> GeneralizedRCNN:
    maps = _SingleMap(body)
    anchors = AnchorGenerator((tuple(settings.anchor_sizes),), (_RATIOS,))
    rpn = RegionProposalNetwork(
        anchors,
        ProposalHead(maps.out_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=settings.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": settings.rpn_before_nms_train, "testing": settings.rpn_before_nms_eval},
        post_nms_top_n={"training": settings.rpn_after_nms_train, "testing": settings.rpn_after_nms_eval},
        nms_thresh=0.7,
    )
    channels = body.channels[3]
    heads = SharedStageHeads(
        StageHead(getattr(body.module, STAGES[3]), norm(channels) if norm else None),
        BoxPredictor(channels, num_classes),
        MaskPredictor(channels, settings.mask_head_channels, num_classes),
        num_samples=settings.roi_samples,
        score_threshold=settings.score_threshold,
        detections_per_image=settings.detections_per_image,
    )
    return GeneralizedRCNN(maps, rpn, heads, Normalization(body.mean, body.std))


def _fpn(body: Body, num_classes: int, settings: DetectorSettings, norm: _Norm) -> GeneralizedRCNN:
    width, masks = settings.fpn_channels, settings.mask_head_channels
    pyramid = _Pyramid(
        body.module, {stage: str(n) for n, stage in enumerate(STAGES)}, body.channels, width, norm_layer=norm
    )
    anchors = AnchorGenerator(tuple((size,) for size in settings.anchor_sizes), (_RATIOS,) * 5)
    detector = MaskRCNN(
        pyramid,
        num_classes=None,
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(width, len(_RATIOS)),
        rpn_pre_nms_top_n_train=settings.rpn_before_nms_train,
        rpn_post_nms_top_n_train=settings.rpn_after_nms_train,
        rpn_pre_nms_top_n_test=settings.rpn_before_nms_eval,
        rpn_post_nms_top_n_test=settings.rpn_after_nms_eval,
        rpn_batch_size_per_image=settings.rpn_samples,
        box_head=TwoMLPHead(width * 7**2, settings.box_head_features),
        box_predictor=BoxPredictor(settings.box_head_features, num_classes),
        box_batch_size_per_image=settings.roi_samples,
        box_score_thresh=settings.score_threshold,
        box_detections_per_img=settings.detections_per_image,
        mask_head=MaskHead(width, (masks,) * 4, 1, norm_layer=norm),
        mask_predictor=MaskPredictor(masks, masks, num_classes),
    )
    detector.transform = Normalization(body.mean, body.std)
    return detector
