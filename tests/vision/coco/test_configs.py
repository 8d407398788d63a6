"""The configurations that come with the package say what they are named after."""

import pytest

from helpers.scripts import ROOT
from mce_llm.running.settings import parse_settings
from mce_llm.vision.coco import CocoDataSettings, DetectorSettings, ScheduleSettings
from mce_llm.vision.coco.settings import SCHEDULES
from mce_llm.vision.running import RunSettings

CONFIGS = ROOT / "vision" / "configs"
GROUPS = (CocoDataSettings, DetectorSettings, ScheduleSettings, RunSettings)


@pytest.mark.parametrize("architecture", ["c4", "fpn"])
@pytest.mark.parametrize("schedule", ["1x", "2x"])
def test_the_protocol(architecture, schedule):
    path = CONFIGS / f"coco_{architecture}_{schedule}.yaml"
    (data, detector, plan, run), given = parse_settings(GROUPS, ["--config", str(path)])
    assert (detector.architecture, plan.schedule) == (architecture, schedule)
    assert (plan.iterations, tuple(plan.steps)) == SCHEDULES[schedule]
    assert (plan.batch_size, plan.learning_rate, plan.momentum, plan.weight_decay) == (16, 0.02, 0.9, 1e-4)
    assert (detector.norm, detector.trainable_layers, detector.backbone) == ("sync_bn", 5, None)
    assert data.short_sides == list(range(640, 801, 32))
    assert (data.eval_short_side, data.max_size, data.filter_empty) == (800, 1333, True)
    assert run.output_dir == f"runs/coco_{architecture}_{schedule}"
    assert "train2017" in given["train_annotations"]
    assert "val2017" in given["eval_annotations"]


def test_overfitting_judges_on_what_it_trains_on():
    path = CONFIGS / "coco_overfit_tiny.yaml"
    data, *_ = parse_settings(GROUPS, ["--config", str(path)])[0]
    assert (data.train_images, data.train_annotations) == (data.eval_images, data.eval_annotations)
    assert data.train_limit == data.eval_limit == 100
