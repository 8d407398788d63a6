"""Schedules and settings: the numbers of the protocol, and everything that is refused, all at once."""

import pytest
import torch

from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.coco import CocoDataSettings, DetectorSettings, ScheduleSettings

EVAL = {"eval_images": "images", "eval_annotations": "instances.json"}


@pytest.mark.parametrize(
    ("name", "iterations", "steps"), [("1x", 90_000, [60_000, 80_000]), ("2x", 180_000, [120_000, 160_000])]
)
def test_the_schedules(name, iterations, steps):
    schedule = ScheduleSettings(schedule=name)
    assert (schedule.iterations, schedule.steps) == (iterations, steps)
    rates = [
        schedule.learning_rate_at(n) for n in (0, 500, 1000, steps[0] - 1, steps[0], steps[1], iterations)
    ]
    # A thousandth of 0.02 at first, halfway half of the rest, then tenths.
    assert rates == pytest.approx([2e-5, 0.02 * 0.5005, 0.02, 0.02, 0.002, 0.0002, 0.0002])


def test_the_learning_rate_is_that_of_torch_schedulers():
    schedule = ScheduleSettings(schedule="none", iterations=60, steps=[20, 45], warmup_iterations=10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=10)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[20, 45])
    for iteration in range(60):
        assert schedule.learning_rate_at(iteration) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
        steps.step()


def test_the_warm_up_of_a_short_training_is_a_tenth_of_it():
    assert ScheduleSettings().warmup == 1000
    short = ScheduleSettings(schedule="none", iterations=60)
    assert short.warmup == 6
    assert short.learning_rate_at(6) == 0.02
    assert "learning rate 0.02 after 6 of warm-up" in short.summary()
    assert ScheduleSettings(schedule="none", iterations=4).warmup == 0
    assert ScheduleSettings(schedule="none", iterations=60, warmup_iterations=0).warmup == 0
    with pytest.raises(
        ConfigurationError, match=r"warmup_iterations \(60\) must be fewer than iterations \(60\)"
    ):
        ScheduleSettings(schedule="none", iterations=60, warmup_iterations=60)


def test_the_rate_is_scaled_only_where_asked():
    assert ScheduleSettings(batch_size=4).peak_learning_rate == 0.02
    assert ScheduleSettings(batch_size=4, scale_learning_rate=True).peak_learning_rate == 0.005


def test_proposals_depend_on_the_architecture():
    def counts(name):
        s = DetectorSettings(architecture=name)
        return s.rpn_before_nms_train, s.rpn_after_nms_train, s.rpn_before_nms_eval, s.rpn_after_nms_eval

    assert counts("c4") == (12_000, 2_000, 6_000, 1_000)
    assert counts("fpn") == (2_000, 1_000, 1_000, 1_000)
    assert DetectorSettings(architecture="c4", rpn_before_nms_train=7).rpn_before_nms_train == 7


def test_all_problems_at_once():
    with pytest.raises(ConfigurationError) as caught:
        ScheduleSettings(
            schedule="3x", iterations=0, batch_size=0, learning_rate=-1, momentum=1.0, clip_gradients=0.0
        )
    for part in (
        "'3x'",
        "iterations must",
        "batch_size must",
        "learning_rate must",
        "momentum",
        "clip_gradients",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("group", "values", "pattern"),
    [
        (ScheduleSettings, {"schedule": "1X"}, r"one of 1x, 2x, none, got '1X' \(did you mean '1x'\?\)"),
        (ScheduleSettings, {"schedule": "none"}, "schedule none needs iterations"),
        (ScheduleSettings, {"iterations": 100}, r"steps are at \[60000, 80000\]: give steps too"),
        (ScheduleSettings, {"iterations": 100, "steps": [50, 20]}, "ascending"),
        (ScheduleSettings, {"iterations": 100, "steps": [100]}, "before the last iteration, 100"),
        (ScheduleSettings, {"evaluate_only": True}, "evaluate_only needs detector"),
        (ScheduleSettings, {"detector": "runs/x"}, "what evaluate_only judges"),
        (ScheduleSettings, {"warmup_factor": 0.0}, r"warmup_factor must be in \(0, 1\], got 0.0"),
        (DetectorSettings, {"architecture": "dc5"}, "one of c4, fpn, got 'dc5'"),
        (DetectorSettings, {"norm": "gn"}, "one of sync_bn, frozen_bn, bn"),
        (DetectorSettings, {"trainable_layers": 6}, "0 … 5, got 6"),
        (DetectorSettings, {"architecture": "fpn", "anchor_sizes": [32, 64]}, "five with fpn.*got 2"),
        (DetectorSettings, {"anchor_sizes": []}, "whole numbers from 1 on"),
        (DetectorSettings, {"score_threshold": 1.0}, r"\[0, 1\), got 1.0"),
        (DetectorSettings, {"backbone_kwargs": "[1]"}, "must be a mapping"),
        (
            DetectorSettings,
            {"backbone_checkpoint": "runs/x", "backbone_weights": "IMAGENET1K_V1"},
            "cannot go with backbone_checkpoint",
        ),
        (CocoDataSettings, {}, "nothing to be judged on"),
        (CocoDataSettings, {**EVAL, "train_images": "x"}, "train_images needs train_annotations"),
        (CocoDataSettings, {**EVAL, "short_sides": [800, 1400]}, "longest of short_sides, 1400, got 1333"),
        (CocoDataSettings, {**EVAL, "flip_probability": 1.5}, r"\[0, 1\], got 1.5"),
        (CocoDataSettings, {**EVAL, "train_limit": 0}, "train_limit must be at least 1"),
    ],
)
def test_what_is_refused(group, values, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        group(**values)


def test_lists_come_from_files_and_the_command_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "short_sides: [100, 200]\neval_images: a\neval_annotations: b\nschedule: none\nsteps: [3, 5]\n"
    )
    (data, schedule), given = parse_settings(
        (CocoDataSettings, ScheduleSettings), ["--config", str(path), "--iterations", "9", "--steps", "4"]
    )
    assert data.short_sides == [100, 200]
    assert schedule.steps == [4]
    assert given["iterations"] == 9
