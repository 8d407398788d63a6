"""Predictions: in COCO's coordinates and ids, from all processes, each image once."""

import pytest
import torch
from torch import nn

from mce_llm.vision.coco import (
    CocoEvaluationError,
    EvaluationImages,
    detect,
    evaluate_detections,
    read_annotations,
)
from mce_llm.vision.coco import predictions as predictions_module
from mce_llm.vision.coco.batches import evaluation_loader
from mce_llm.vision.coco.predictions import gather_results, predict


class Oracle(nn.Module):
    """Answers with the truth, in pixels of the resized image and squares of 28, as a detector would."""

    def __init__(self, annotations, scale):
        super().__init__()
        self.annotations, self.scale, self.next = annotations, scale, 0

    def forward(self, images):
        answers = []
        for _ in images:
            rows = self.annotations.instances[self.next]
            self.next += 1
            answers.append(
                {
                    "boxes": torch.tensor([r.box for r in rows]).reshape(-1, 4) * self.scale,
                    "labels": torch.tensor([r.label for r in rows], dtype=torch.int64),
                    "scores": torch.linspace(0.9, 0.5, len(rows)),
                    "masks": torch.ones(len(rows), 1, 28, 28),
                }
            )
        return answers


@pytest.fixture
def annotations(hard_set):
    return read_annotations(hard_set.path, hard_set.folder, keep_ground_truth=True)


def test_true_answers_score_one_through_every_change_of_coordinates(annotations):
    images = EvaluationImages(annotations, short_side=96, max_size=1000)
    batches = evaluation_loader(images, batch_size=2, num_workers=0, pin_memory=False)
    annotations.instances = [annotations.instances[i] for i in range(6)]
    scale = [96 / min(image.height, image.width) for image in annotations.images]
    assert len({round(s, 3) for s in scale}) == 2

    class Scaled(Oracle):
        def forward(self, images):
            self.scale = scale[self.next]
            both = super().forward(images[:1])
            for _ in images[1:]:
                self.scale = scale[self.next]
                both += super().forward([None])
            return both

    oracle = Scaled(annotations, 0).train()
    results, seen = predict(oracle, batches, annotations, torch.device("cpu"), torch.no_grad())
    assert oracle.training
    assert seen == [0, 1, 2, 3, 4, 5]
    assert {r["category_id"] for r in results} == {3, 17, 90}
    first = next(r for r in results if r["image_id"] == 7)
    assert first["bbox"] == pytest.approx([4, 6, 26, 12], abs=1e-4)
    # The dropped boxes of the last image stay in the ground truth of evaluation, as in pycocotools, and are missed.
    truth = {**annotations.ground_truth, "annotations": annotations.ground_truth["annotations"][:6]}
    assert evaluate_detections(truth, results, "bbox").overall["AP"] == pytest.approx(1)
    # One instance is two rectangles, and the oracle's mask is its whole box: IoU 20/26.
    masks = evaluate_detections(truth, results, "segm")
    assert masks.overall["AP50"] == pytest.approx(1)
    assert masks.by_category[90] == pytest.approx(1)
    assert masks.by_category[3] < 1


def test_detect_gives_masks_of_the_whole_image():
    class One(nn.Module):
        def forward(self, images):
            return [
                {
                    "boxes": torch.tensor([[10.0, 20.0, 30.0, 40.0]]),
                    "labels": torch.tensor([1]),
                    "scores": torch.tensor([0.7]),
                    "masks": torch.ones(1, 1, 14, 14),
                },
                {
                    "boxes": torch.zeros(0, 4),
                    "labels": torch.zeros(0, dtype=torch.int64),
                    "scores": torch.zeros(0),
                    "masks": torch.zeros(0, 1, 14, 14),
                },
            ]

    images = [torch.zeros(3, 80, 60, dtype=torch.uint8)] * 2
    found, nothing = detect(One(), images, [(40, 120), (40, 120)], torch.device("cpu"))
    assert found["boxes"].tolist() == [[20.0, 10.0, 60.0, 20.0]]
    expected = torch.zeros(1, 40, 120, dtype=torch.bool)
    expected[0, 10:20, 20:60] = True
    assert torch.equal(found["masks"], expected)
    assert nothing["masks"].shape == (0, 40, 120)


def test_results_of_all_processes_are_put_in_order(monkeypatch):
    parts = [([{"image_id": 4, "n": 0}, {"image_id": 9, "n": 1}], [0, 2]), ([{"image_id": 7, "n": 2}], [1])]
    monkeypatch.setattr(predictions_module, "gather", lambda value: parts)
    assert [r["n"] for r in gather_results(*parts[0], [4, 7, 9])] == [0, 2, 1]


def test_ids_of_images_may_be_texts_in_no_order(monkeypatch):
    parts = [
        ([{"image_id": "b", "n": 0}, {"image_id": 9, "n": 1}], [0, 2]),
        ([{"image_id": "a", "n": 2}], [1]),
    ]
    monkeypatch.setattr(predictions_module, "gather", lambda value: parts)
    assert [r["n"] for r in gather_results(*parts[0], ["b", "a", 9])] == [0, 2, 1]


@pytest.mark.parametrize(
    ("shares", "pattern"),
    [
        ([[0, 1], [1, 2]], "of 3 images 1 were judged by more than one process and 0 by none"),
        ([[0], [2]], "of 3 images 0 were judged by more than one process and 1 by none"),
    ],
)
def test_lost_and_doubled_images_are_noticed(monkeypatch, shares, pattern):
    monkeypatch.setattr(predictions_module, "gather", lambda value: [([], share) for share in shares])
    with pytest.raises(CocoEvaluationError, match=pattern):
        gather_results([], [], [1, 2, 3])
