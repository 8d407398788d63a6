"""Mask R-CNN in both shapes: losses and gradients, detections, norms, frozen stages, precision."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d

from mce_llm.vision.coco import DetectorError, TrainingImages, build_detector, load_body, read_annotations
from mce_llm.vision.coco.body import adapt_norms
from mce_llm.vision.coco.detector import with_synchronized_norms
from mce_llm.vision.coco.settings import ScheduleSettings
from mce_llm.vision.coco.training import make_optimizer, seed_step
from mce_llm.vision.models import BackboneSpec, ProcessBatchNorm, build_backbone, save_backbone

LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
SHAPES = [{"architecture": "c4"}, {"architecture": "fpn"}]


@pytest.fixture
def batch(hard_set):
    annotations = read_annotations(hard_set.path, hard_set.folder)
    images = TrainingImages(annotations, seed=0, short_sides=[64], max_size=96, flip_probability=0.5)
    items = [images[0, index] for index in (0, 1)]
    return [image for image, _ in items], [target for _, target in items]


@pytest.fixture
def empty(hard_set):
    annotations = read_annotations(hard_set.path, hard_set.folder)
    images = TrainingImages(annotations, seed=0, short_sides=[64], max_size=96, flip_probability=0.5)
    items = [images[0, index] for index in (3, 4)]
    return [image for image, _ in items], [target for _, target in items]


@pytest.fixture
def checkpoint(tmp_path):
    """A pretrained encoder whose norms have seen something."""
    spec = BackboneSpec("timm/resnet18", kwargs={"channels": [8, 8, 8, 8], "stem_width": 8})
    module = build_backbone(spec)
    torch.manual_seed(3)
    for _ in range(3):
        module(torch.randn(8, 3, 64, 64) * 2 + 1)
    save_backbone(module, spec, tmp_path / "encoder", {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]})
    return tmp_path / "encoder"


def make(settings, categories=3):
    torch.manual_seed(0)
    return build_detector(load_body(settings), categories, settings)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_losses_reach_every_parameter(tiny_settings, batch, shape):
    detector = make(tiny_settings(**shape))
    losses = detector(*batch)
    assert losses.keys() == LOSSES
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # At the start classes are equally likely and masks are undecided.
    assert losses["loss_classifier"].item() == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=0.15)
    assert losses["loss_mask"].item() == pytest.approx(0.6931, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_a_few_steps_lower_the_loss(tiny_settings, batch, shape):
    detector = make(tiny_settings(**shape))
    schedule = ScheduleSettings(schedule="none", iterations=12, learning_rate=0.05, warmup_iterations=0)
    optimizer = make_optimizer(detector, schedule)
    values = []
    for _ in range(12):
        seed_step(0, 0, 0)  # the same proposals are sampled each time
        loss = sum(detector(*batch).values())
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_a_batch_without_any_instance_trains(tiny_settings, empty, shape):
    detector = make(tiny_settings(**shape))
    losses = detector(*empty)
    assert losses["loss_mask"].item() == 0
    assert losses["loss_box_reg"].item() == 0
    sum(losses.values()).backward()
    # Data parallelism waits for every gradient, so zero is right and None would hang it.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert all(b.isfinite().all() for b in detector.buffers())


def test_norms_of_several_processes_always_get_a_row(tiny_settings, empty, monkeypatch):
    """A synchronised norm over no rows at all would divide by zero; one over a row of zeros does not."""
    detector = make(tiny_settings(architecture="fpn"))
    rows = []
    detector.roi_heads.mask_head[0][0].register_forward_hook(lambda m, i, out: rows.append(len(i[0])))
    detector(*empty)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    losses = detector(*empty)
    assert rows == [0, 1]
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_detections_stay_in_the_image_that_was_given(tiny_settings, batch, shape):
    detector = make(tiny_settings(**shape)).eval()
    with torch.no_grad():
        found = detector(batch[0])
    for image, item in zip(batch[0], found, strict=True):
        height, width = image.shape[1:]
        assert 0 < len(item["boxes"]) <= 5
        assert (item["boxes"] >= 0).all()
        assert (item["boxes"][:, 2] <= width).all()
        assert (item["boxes"][:, 3] <= height).all()
        assert item["labels"].min() >= 1
        assert item["labels"].max() <= 3
        assert (item["scores"].diff() <= 0).all()
        assert item["masks"].shape[:2] == (len(item["boxes"]), 1)
        assert ((item["masks"] >= 0) & (item["masks"] <= 1)).all()


def test_the_last_stage_runs_once_a_step_and_torchvisions_heads_would_run_it_twice(tiny_settings, batch):
    detector = make(tiny_settings(architecture="c4"))
    heads = detector.roi_heads
    seen = []
    heads.shared.stage.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    detector(*batch)
    assert seen == [2 * 16]  # all sampled proposals of both images, at once
    seen.clear()

    class Twice(RoIHeads):
        """torchvision's forward, with the same modules."""

    heads.__class__ = Twice
    heads.box_roi_pool = heads.mask_roi_pool = lambda features, boxes, shapes: heads.shared(
        features["0"], boxes
    )
    heads.box_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads.mask_head = nn.Identity()
    detector(*batch)
    assert len(seen) == 2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_outputs_are_float32_under_autocast(tiny_settings, batch, shape):
    detector = make(tiny_settings(**shape))
    seen = set()
    for module in (detector.rpn.head, detector.roi_heads.box_predictor):
        module.register_forward_hook(
            lambda m, i, out: seen.update(
                t.dtype for part in out for t in (part if isinstance(part, list) else [part])
            )
        )
    detector.roi_heads.mask_predictor.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    convolutions = set()
    next(m for m in detector.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda m, i, out: convolutions.add(out.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(*batch)
    assert seen == {torch.float32}
    assert convolutions == {torch.bfloat16}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_images_are_normalised_as_in_pretraining(tiny_settings, checkpoint):
    settings = tiny_settings(backbone=None, backbone_kwargs=None, backbone_checkpoint=str(checkpoint))
    body = load_body(settings)
    detector = build_detector(body, 3, settings)
    image = torch.full((3, 32, 32), 51, dtype=torch.uint8)  # 0.2
    batch, _ = detector.transform([image])
    expected = (0.2 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
    torch.testing.assert_close(batch.tensors[0, :, 5, 5], expected)
    assert "encoder" in body.origin


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["architecture"])
def test_the_pretrained_weights_are_in_the_detector(tiny_settings, checkpoint, shape):
    settings = tiny_settings(
        backbone=None, backbone_kwargs=None, backbone_checkpoint=str(checkpoint), **shape
    )
    body = load_body(settings)
    before = {name: value.clone() for name, value in body.module.state_dict().items()}
    detector = build_detector(body, 3, settings)
    stage = "roi_heads.shared.stage" if shape["architecture"] == "c4" else "backbone.body.layer4"
    state = detector.state_dict()
    for mine, theirs in (("backbone.body.conv1.weight", "conv1.weight"), (f"{stage}.1.bn2.running_var",) * 2):
        theirs = theirs.replace(stage, "layer4")
        torch.testing.assert_close(state[mine], before[theirs])
    body_keys = sum(k.startswith(("backbone.body", "roi_heads.shared.stage")) for k in state)
    assert body_keys == len(before)


def test_frozen_norms_keep_their_statistics(tiny_settings, checkpoint, batch):
    settings = tiny_settings(
        backbone=None,
        backbone_kwargs=None,
        backbone_checkpoint=str(checkpoint),
        norm="frozen_bn",
        architecture="fpn",
    )
    body = load_body(settings)
    expected = body.module.eval()(torch.ones(1, 3, 64, 64))
    detector = build_detector(body, 3, settings)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    norms = [m for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    assert max(m.abs().max() for m in before) > 0.1
    detector(*batch)
    for old, norm in zip(before, norms, strict=True):
        torch.testing.assert_close(norm.running_mean, old)
    torch.testing.assert_close(body.module.eval()(torch.ones(1, 3, 64, 64)), expected)


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        (5, set()),
        (4, {"conv1", "bn1"}),
        (2, {"conv1", "bn1", "layer1", "layer2"}),
        (0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_trainable_layers(tiny_settings, checkpoint, layers, frozen):
    settings = tiny_settings(
        backbone=None, backbone_kwargs=None, backbone_checkpoint=str(checkpoint), trainable_layers=layers
    )
    body = load_body(settings)
    adapt_norms(body, settings)
    children = dict(body.module.named_children())
    for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
        module = children[name]
        fixed = not any(p.requires_grad for p in module.parameters())
        assert fixed == (name in frozen), name
        norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
        assert all(isinstance(m, FrozenBatchNorm2d) == (name in frozen) for m in norms), name


def test_new_layers_have_norms_unless_they_are_frozen(tiny_settings, checkpoint):
    def norms(**changes):
        values = {
            "backbone": None,
            "backbone_kwargs": None,
            "backbone_checkpoint": str(checkpoint),
            **changes,
        }
        detector = make(tiny_settings(**values))
        return {n for n, m in detector.named_modules() if isinstance(m, nn.BatchNorm2d) and ".body." not in n}

    assert norms(architecture="fpn") == {
        *(f"backbone.fpn.{kind}_blocks.{n}.1" for kind in ("inner", "layer") for n in range(4)),
        *(f"roi_heads.mask_head.{n}.1" for n in range(4)),
    }
    assert "roi_heads.shared.norm" in norms(architecture="c4")
    assert norms(architecture="fpn", norm="frozen_bn") == set()


def test_synchronized_norms_say_what_they_are(tiny_settings):
    detector = make(tiny_settings(architecture="fpn"))
    names = list(detector.state_dict())
    same, sentence = with_synchronized_norms(detector, world_size=1, device=torch.device("cpu"))
    assert any(type(m) is nn.BatchNorm2d for m in same.modules())
    assert "plain batch norms" in sentence
    changed, sentence = with_synchronized_norms(detector, world_size=2, device=torch.device("cpu"))
    assert not any(type(m) is nn.BatchNorm2d for m in changed.modules())
    assert any(isinstance(m, ProcessBatchNorm) for m in changed.modules())
    assert sentence.startswith("SyncBN over 2 processes: a batch norm over gloo")
    assert list(changed.state_dict()) == names
    changed, sentence = with_synchronized_norms(
        make(tiny_settings(architecture="fpn")), world_size=2, device=torch.device("cuda")
    )
    assert any(isinstance(m, nn.SyncBatchNorm) for m in changed.modules())
    assert sentence == "SyncBN over 2 processes: torch's SyncBatchNorm"


def test_norms_have_a_weight_decay_of_their_own(tiny_settings):
    detector = make(tiny_settings(architecture="fpn"))
    optimizer = make_optimizer(detector, ScheduleSettings(weight_decay=0.5, norm_weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(detector.parameters()))
    assert decay[id(detector.backbone.body.bn1.weight)] == 0.25
    assert decay[id(detector.backbone.fpn.inner_blocks[0][1].bias)] == 0.25
    assert decay[id(detector.backbone.body.conv1.weight)] == 0.5
    assert decay[id(detector.roi_heads.box_predictor.cls_score.bias)] == 0.5


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"backbone": "shufflenet_v2_x0_5", "backbone_kwargs": None},
            r"has no stages layer1 … layer4 \(found: conv1",
        ),
        ({"norm": "frozen_bn"}, "random weights; give backbone_checkpoint"),
        ({"trainable_layers": 3}, "random weights; give backbone_checkpoint"),
        ({"backbone_weights": "IMAGENET1K_V1"}, "weights of torchvision, and timm/resnet18 is timm's"),
        (
            {"backbone": "resnet18", "backbone_kwargs": None, "backbone_weights": "IMAGENET1K_V9"},
            r"no weights 'IMAGENET1K_V9' of resnet18 \(did you mean 'IMAGENET1K_V1'\?\)",
        ),
        ({"backbone_kwargs": '{"output_stride": 16}'}, r"strides \[4, 8, 16, 16\]; detection needs"),
    ],
)
def test_what_is_refused(tiny_settings, changes, pattern):
    with pytest.raises(DetectorError, match=pattern):
        make(tiny_settings(**changes))


def test_checkpoints_that_do_not_fit_are_refused(tiny_settings, checkpoint, tmp_path):
    with pytest.raises(DetectorError, match=r"backbone is resnet50, but .* holds timm/resnet18"):
        make(tiny_settings(backbone="resnet50", backbone_kwargs=None, backbone_checkpoint=str(checkpoint)))
    spec = BackboneSpec("resnet18", stem="cifar")
    save_backbone(build_backbone(spec), spec, tmp_path / "small")
    with pytest.raises(DetectorError, match="stem cifar has strides 1, 2, 4, 8"):
        make(tiny_settings(backbone=None, backbone_kwargs=None, backbone_checkpoint=str(tmp_path / "small")))


def test_supervised_weights_of_torchvision(tiny_settings, monkeypatch):
    """Without fetching: the weights' own method gives a state dict with a classifier, and then one that does not fit."""
    from torchvision.models import ResNet18_Weights, resnet18

    state = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **kwargs: dict(state))
    settings = tiny_settings(backbone="resnet18", backbone_kwargs=None, backbone_weights="IMAGENET1K_V1")
    body = load_body(settings)
    torch.testing.assert_close(
        body.module.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"]
    )
    assert body.origin == "torchvision's IMAGENET1K_V1"
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    with pytest.raises(
        DetectorError, match=r"1 missing \(layer1.0.conv1.weight\), 1 unexpected \(extra.weight\)"
    ):
        load_body(settings)
