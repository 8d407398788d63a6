"""The heads of a detector: torchvision's, with detectron2's initial weights, and the shared last stage of the C4 model.

All give float32, also under autocast: box coordinates in a 16-bit type are off by pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align


class ProposalHead(RPNHead):
    """torchvision's RPN head with float32 outputs."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and box deltas of each level.

        Args:
            x: Features of each level.

        Returns:
            Two lists, a tensor a level.
        """
        objectness, deltas = super().forward(x)
        return [item.float() for item in objectness], [item.float() for item in deltas]


class BoxPredictor(FastRCNNPredictor):
    """Class scores and class-wise box deltas in float32; initial weights N(0, 0.01²) and N(0, 0.001²).

    Args:
        in_channels: Width of the box features.
        num_classes: Categories, the background among them.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, K+1) and deltas (R, 4(K+1)) of box features (R, C)."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class MaskHead(MaskRCNNHeads):
    """torchvision's four convolutions, for processes that wait for each other in their norms.

    A process whose images have no instance has no row for this head. Its synchronised norms still take part, and where
    no process had a row they would divide by nothing: so it gives them one row of zeros, which leads to no loss.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features (R, C', M, M) of pooled boxes (R, C, M, M), R = 0 included."""
        alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        if len(input) or not self.training or alone:
            return super().forward(input)
        return super().forward(input.new_zeros(1, *input.shape[1:]))[:0]


class MaskPredictor(MaskRCNNPredictor):
    """Deconvolution, ReLU and a 1×1 convolution to a mask a class, in float32; the last weights N(0, 0.001²).

    Args:
        in_channels: Channels of the mask features.
        hidden_channels: Channels of the deconvolution.
        num_classes: Categories, the background among them.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, hidden_channels, num_classes)
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(self.mask_fcn_logits.bias)
        nn.init.zeros_(self.conv5_mask.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (R, K+1, 2M, 2M) of mask features (R, C, M, M)."""
        return super().forward(input).float()


class StageHead(nn.Module):
    """RoIAlign to 14×14 (stride 16, aligned, adaptive sampling), then the ResNet's last stage: (R, 2048, 7, 7).

    Args:
        stage: `layer4` of the body.
        norm: A batch norm after it (MoCo's protocol), or None.
    """

    def __init__(self, stage: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.stage = stage
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Features of boxes.

        Args:
            features: (B, C, H/16, W/16).
            boxes: Of each image, (R_i, 4) in pixels.

        Returns:
            Features of all boxes, (ΣR_i, C', 7, 7).
        """
        regions = roi_align(features, boxes, output_size=14, spatial_scale=1 / 16, aligned=True)
        result: Tensor = self.norm(self.stage(regions))
        return result


class SharedStageHeads(RoIHeads):
    """Box and mask heads on the same features of the last stage, as detectron2's `Res5ROIHeads`.

    torchvision's own forward pools a second time for the masks, so the last stage would run twice on the positive
    boxes and its batch norms would see them twice, the second time without any background. Here, in training, the
    mask head gets the rows of the positive boxes; in evaluation the detected boxes are new and are pooled anew.

    Args:
        shared: The stage, applied to boxes.
        box_predictor: On its mean over positions.
        mask_predictor: On its maps.
        num_samples: Proposals of an image in the box loss, a quarter of them positive at most.
        score_threshold: Detections below it are dropped.
        detections_per_image: At most so many.
    """

    def __init__(
        self,
        shared: StageHead,
        box_predictor: BoxPredictor,
        mask_predictor: MaskPredictor,
        *,
        num_samples: int,
        score_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(
            box_roi_pool=None,
            box_head=None,
            box_predictor=box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=num_samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=0.5,
            detections_per_img=detections_per_image,
        )
        self.shared = shared
        self.mask_predictor = mask_predictor

    def has_mask(self) -> bool:
        """Always: the targets need masks."""
        return True

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            features: One map, under "0".
            proposals: Boxes of each image.
            image_shapes: Height and width of each image.
            targets: In training.

        Returns:
            The detections of each image (boxes, labels, scores, masks (R, 1, 14, 14) as probabilities) and the losses.
        """
        maps = features["0"]
        if self.training:
            return [], self._losses(maps, proposals, targets)
        boxes, scores, labels = self._detect(maps, proposals, image_shapes)
        logits = self.mask_predictor(self.shared(maps, boxes))
        masks = maskrcnn_inference(logits, labels)
        return [
            {"boxes": b, "scores": s, "labels": n, "masks": m}
            for b, s, n, m in zip(boxes, scores, labels, masks, strict=True)
        ], {}

    def _losses(self, maps: Tensor, proposals: list[Tensor], targets: Any) -> dict[str, Tensor]:
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        shared = self.shared(maps, proposals)
        scores, predicted = self.box_predictor(shared.mean(dim=(2, 3)))
        loss_classifier, loss_box = fastrcnn_loss(scores, predicted, labels, deltas)
        positive = [torch.where(item > 0)[0] for item in labels]
        loss_mask = maskrcnn_loss(
            self.mask_predictor(shared[torch.cat(labels) > 0]),
            [boxes[rows] for boxes, rows in zip(proposals, positive, strict=True)],
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [indices[rows] for indices, rows in zip(matched, positive, strict=True)],
        )
        return {"loss_classifier": loss_classifier, "loss_box_reg": loss_box, "loss_mask": loss_mask}

    def _detect(
        self, maps: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        scores, deltas = self.box_predictor(self.shared(maps, proposals).mean(dim=(2, 3)))
        return self.postprocess_detections(scores, deltas, proposals, image_shapes)
