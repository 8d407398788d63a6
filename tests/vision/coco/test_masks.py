"""Masks from boxes to images and back to text."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mce_llm.vision.coco.masks import (
    is_outside,
    mask_to_segmentation,
    paste_mask,
    segmentation_problem,
    segmentation_to_mask,
)


def test_a_full_mask_fills_its_box():
    mask = paste_mask(torch.ones(28, 28), torch.tensor([4.0, 6.0, 20.0, 30.0]), 40, 50)
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[6:30, 4:20] = True
    assert torch.equal(mask, expected)


def test_half_a_mask_fills_half_the_box():
    probabilities = torch.zeros(8, 8)
    probabilities[:, :4] = 1
    mask = paste_mask(probabilities, torch.tensor([10.0, 10.0, 26.0, 26.0]), 40, 50)
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[10:26, 10:18] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("box", [[-10.0, -5.0, 20.0, 18.0], [30.0, 20.0, 90.0, 70.0]])
def test_what_lies_outside_is_cut_off(box):
    mask = paste_mask(torch.ones(14, 14), torch.tensor(box), 40, 50)
    x0, y0, x1, y1 = (int(v) for v in box)
    inside = mask[max(y0, 0) : y1, max(x0, 0) : x1]
    assert inside.float().mean() > 0.99  # interpolation rounds the corner
    assert mask.sum() == inside.sum()


@pytest.mark.parametrize("box", [[60.0, 5.0, 70.0, 9.0], [5.0, 5.0, 5.0, 9.0], [9.0, 5.0, 4.0, 9.0]])
def test_boxes_with_nothing_to_show(box):
    assert not paste_mask(torch.ones(14, 14), torch.tensor(box), 40, 50).any()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), height=st.integers(1, 30), width=st.integers(1, 30))
def test_run_lengths_round_trip_and_are_those_of_the_reference(decode, seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    runs = mask_to_segmentation(torch.from_numpy(mask))
    assert isinstance(runs["counts"], str)
    np.testing.assert_array_equal(decode(runs), mask)
    np.testing.assert_array_equal(segmentation_to_mask(runs, height, width), mask)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), cut=st.floats(0, 1), extra=st.text("0123PQRSabo`_é'b ", max_size=3))
def test_compressed_run_lengths_are_refused_where_the_decoder_would_fail(seed, cut, extra):
    draw = np.random.default_rng(seed)
    height, width = (int(n) for n in draw.integers(1, 60, 2))
    mask = (draw.random((height, width)) < draw.random()).astype(np.uint8)
    whole = mask_to_segmentation(mask)
    assert segmentation_problem(whole, height, width) is None
    text = whole["counts"][: round(cut * len(whole["counts"]))] + extra
    runs = {"size": [height, width], "counts": text}
    try:
        decoded = segmentation_to_mask(runs, height, width)
    except (ValueError, RuntimeError):
        decoded = None
    problem = segmentation_problem(runs, height, width)
    assert (problem is None) == (decoded is not None) or (problem is not None and not text.isascii())


def test_polygons_beside_the_image():
    inside, beside = [[1.0, 1, 9, 1, 9, 9]], [[21.0, 1, 29, 1, 29, 9]]
    assert is_outside(beside, 10, 20)
    assert is_outside([[1.0, -9, 9, -9, 9, -1]], 10, 20)
    assert not is_outside(inside, 10, 20)
    assert not is_outside([*beside, *inside], 10, 20)
    assert not is_outside({"size": [10, 20], "counts": [200]}, 10, 20)
