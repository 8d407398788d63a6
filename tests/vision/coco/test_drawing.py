"""Pictures of detections show what was found, where it was found, and nothing below the threshold."""

import torch

from mce_llm.vision.coco import draw_detections
from mce_llm.vision.coco.drawing import sheet

NAMES = ["car", "cat"]


def prediction():
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 40:90, 30:100] = True
    masks[1, 5:20, 120:150] = True
    return {
        "boxes": torch.tensor([[30.0, 40.0, 100.0, 90.0], [120.0, 5.0, 150.0, 20.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.3]),
        "masks": masks,
    }


def test_the_mask_is_coloured_and_the_rest_is_left():
    image = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    drawn = draw_detections(image, prediction(), NAMES)
    changed = (drawn != image).any(0)
    assert drawn.dtype == torch.uint8
    assert changed[60:85, 60:90].all()  # inside the mask, away from the text
    assert not changed[:30].any()  # the second one is below the threshold
    assert not changed[100:].any()
    assert (image == 128).all()
    assert (draw_detections(image, prediction(), NAMES, threshold=0.2) != image).any(0)[8:18, 125:145].all()


def test_colours_belong_to_classes():
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    found = prediction()
    found["labels"] = torch.tensor([2, 2])
    same = draw_detections(image, found, NAMES, threshold=0.2)
    assert torch.equal(same[:, 70, 80], same[:, 15, 130])
    other = draw_detections(image, prediction(), NAMES, threshold=0.2)
    assert not torch.equal(other[:, 70, 80], other[:, 15, 130])


def test_nothing_found_leaves_the_image():
    image = torch.randint(0, 255, (3, 40, 50), dtype=torch.uint8)
    drawn = draw_detections(image, prediction(), NAMES, threshold=0.95)
    assert torch.equal(drawn, image)
    assert drawn is not image


def test_boxes_alone_can_be_drawn():
    found = prediction()
    del found["masks"]
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    changed = (draw_detections(image, found, NAMES) != image).any(0)
    assert changed[40:90, 30].all()
    assert not changed[75:85, 60:90].any()


def test_a_sheet_of_images_of_all_sizes():
    tiles = [
        torch.full((3, h, w), 9, dtype=torch.uint8) for h, w in ((50, 80), (300, 100), (7, 900), (60, 60))
    ]
    picture = sheet(tiles, columns=3)
    assert picture.dtype == torch.uint8
    assert tuple(picture.shape) == (3, 2 * 488 + 8, 3 * 488 + 8)
