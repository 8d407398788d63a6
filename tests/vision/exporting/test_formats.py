"""Every format, read by its library in the way its README says, against the encoder it came from."""

import json
import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetBackbone,
    ResNetConfig,
)

from mce_llm.vision.data import eval_view
from mce_llm.vision.exporting import (
    FORMATS,
    ExportError,
    UnsupportedFormatError,
    detectron2_format,
    format_by_name,
    read_encoder,
    reasons_against,
    transformers_format,
    write_export,
)
from mce_llm.vision.exporting.card import model_card
from mce_llm.vision.exporting.checking import TOLERANCE, check, deviations
from mce_llm.vision.exporting.encoder import Encoder, outputs_of

NARROW = {"channels": [8, 16, 32, 64]}
NARROW_BOTTLENECK = ("timm/resnet26", NARROW)


def generic(folder):
    """An encoder of which every weight matters."""
    return read_encoder(folder).with_generic_weights()


def images(batch=3, size=32, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet18(saved):
    return generic(saved("resnet18"))


@pytest.fixture(scope="module")
def narrow(saved):
    return generic(saved(NARROW_BOTTLENECK[0], **NARROW))


def test_torchvision_reads_its_export(resnet18, tmp_path):
    measured = write_export(resnet18, format_by_name("torchvision"), tmp_path / "out")
    assert max(measured.values()) <= TOLERANCE
    model = torchvision.models.resnet18()
    found = model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=False)
    assert (sorted(found.missing_keys), found.unexpected_keys) == (["fc.bias", "fc.weight"], [])
    model.fc = torch.nn.Identity()
    torch.testing.assert_close(model.eval()(images()), resnet18.module(images()), rtol=1e-5, atol=1e-5)


def test_timm_reads_its_export(narrow, tmp_path):
    folder = tmp_path / "out"
    write_export(narrow, format_by_name("timm"), folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    expected = narrow.module(images())
    torch.testing.assert_close(model.eval()(images()), expected, rtol=1e-5, atol=1e-5)
    by_file = timm.create_model(
        "resnet26", num_classes=0, checkpoint_path=str(folder / "model.safetensors"), **NARROW
    )
    torch.testing.assert_close(by_file.eval()(images()), expected, rtol=1e-5, atol=1e-5)
    with_classes = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10)
    assert with_classes(images()).shape == (3, 10)
    data = timm.data.resolve_data_config(model.pretrained_cfg)
    assert data["input_size"] == (3, 32, 32)
    assert list(data["mean"]) == list(narrow.mean)
    assert list(data["std"]) == list(narrow.std)


def test_transformers_reads_a_timm_export_as_well(narrow, tmp_path):
    folder = tmp_path / "out"
    write_export(narrow, format_by_name("timm"), folder)
    with transformers_format._no_progress_bars():
        model = AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == "TimmWrapperModel"
    torch.testing.assert_close(model(images()).pooler_output, narrow.module(images()), rtol=1e-5, atol=1e-5)


def test_transformers_reads_its_export(narrow, tmp_path):
    folder = tmp_path / "out"
    measured = write_export(narrow, format_by_name("transformers"), folder)
    assert set(measured) == {"features", "stage1", "stage2", "stage3", "stage4"}
    assert max(measured.values()) <= TOLERANCE
    with transformers_format._no_progress_bars():
        model = AutoModel.from_pretrained(folder).eval()
        backbone = ResNetBackbone.from_pretrained(folder, out_features=["stage2", "stage4"]).eval()
        classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=5).eval()
    expected = outputs_of(narrow.module)(images())
    for found, name in (
        (model(images()).pooler_output.flatten(1), "features"),
        (classifier.resnet(images()).pooler_output.flatten(1), "features"),
        (backbone(images()).feature_maps[0], "stage2"),
        (backbone(images()).feature_maps[1], "stage4"),
    ):
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5)
    assert model.config.downsample_in_bottleneck is False


def test_the_processor_prepares_images_as_evaluation_does(narrow, tmp_path):
    write_export(narrow, format_by_name("transformers"), tmp_path / "out")
    # Where the crop's margin is odd, the two libraries round it differently, so of this image none is that matters.
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    found = AutoImageProcessor.from_pretrained(tmp_path / "out")(Image.fromarray(pixels), return_tensors="pt")
    expected = eval_view(32, narrow.mean, narrow.std)(torch.from_numpy(pixels).permute(2, 0, 1))
    torch.testing.assert_close(found["pixel_values"][0], expected, rtol=0, atol=1e-5)


def test_the_detectron2_pickle_is_in_its_layout(resnet18, tmp_path):
    folder = tmp_path / "out"
    measured = write_export(resnet18, format_by_name("detectron2"), folder)
    assert set(measured) == {"features", "stage1", "stage2", "stage3", "stage4"}
    with (folder / "backbone.pkl").open("rb") as file:
        content = pickle.load(file, encoding="latin1")  # as detectron2 does
    assert content["matching_heuristics"] is True
    weights, ours = content["model"], resnet18.module.state_dict()
    assert all(isinstance(value, np.ndarray) and value.flags.writeable for value in weights.values())
    for theirs, name in (
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.1.conv2.weight", "layer1.1.conv2.weight"),
        ("res5.0.shortcut.weight", "layer4.0.downsample.0.weight"),
        ("res5.0.shortcut.norm.bias", "layer4.0.downsample.1.bias"),
        ("res4.1.conv1.norm.running_mean", "layer3.1.bn1.running_mean"),
    ):
        np.testing.assert_array_equal(weights[theirs], ours[name].numpy())
    assert len(weights) == sum("num_batches" not in name for name in ours)
    config = yaml.safe_load((folder / "backbone.yaml").read_text())
    assert config["INPUT"] == {"FORMAT": "RGB"}
    assert config["MODEL"]["PIXEL_MEAN"] == [127.5, 102.0, 76.5]
    assert config["MODEL"]["PIXEL_STD"] == [51.0, 76.5, 63.75]
    assert config["MODEL"]["RESNETS"]["DEPTH"] == 18


def test_the_pickle_names_nothing_that_numpy_may_move(resnet18, tmp_path):
    detectron2_format.write(resnet18, tmp_path)
    content = (tmp_path / "backbone.pkl").read_bytes()
    assert b"numpy" in content
    assert b"multiarray" not in content
    assert b"_core" not in content


@pytest.mark.slow  # torch.export takes ten seconds to get going
def test_a_program_carries_the_small_image_stem(saved, tmp_path):
    encoder = generic(saved("timm/resnet18", stem="cifar", **NARROW))
    write_export(encoder, format_by_name("torch_export"), tmp_path / "out")
    network = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    for batch in (1, 5):
        torch.testing.assert_close(
            network(images(batch)), encoder.module(images(batch)), rtol=1e-5, atol=1e-5
        )


REFUSED = [
    ("timm/resnet18", {"stem": "cifar", **NARROW}, "torchvision", r"3×3, stride 1"),
    ("timm/resnet18", {"stem": "cifar", **NARROW}, "timm", r"no argument for a stem"),
    ("timm/resnet18", {"stem": "cifar", **NARROW}, "transformers", r"knows no other stem"),
    ("timm/resnet18", {"stem": "cifar", **NARROW}, "detectron2", r"knows no other stem"),
    ("timm/resnet18", NARROW, "torchvision", r"no argument for timm's channels"),
    ("timm/resnet18", NARROW, "detectron2", r"begin with 64"),
    ("timm/resnet26", NARROW, "detectron2", r"stages of 2, 2, 2, 2 bottleneck blocks"),
    ("timm/resnet18", {"channels": [64, 96, 128, 192]}, "detectron2", r"they double"),
    ("timm/resnet18d", NARROW, "transformers", r"deep stem"),
    ("timm/resnetblur18", NARROW, "transformers", r"BlurPool2d"),
    ("timm/resnet18", {"output_stride": 8, **NARROW}, "transformers", r"(dilated|stride 1 where)"),
    ("timm/resnet26", {"block_args": {"attn_layer": "se"}, **NARROW}, "transformers", r"has not: layer1"),
    ("timm/resnet26", {"cardinality": 2, "base_width": 64, **NARROW}, "transformers", r"in 2 groups"),
    ("timm/resnet26", {"base_width": 128, **NARROW}, "transformers", r"have a quarter"),
    ("timm/resnet26", NARROW, "torchvision", r"no model resnet26"),
    ("shufflenet_v2_x0_5", {}, "timm", r"shufflenet_v2_x0_5 is no ResNet"),
    ("shufflenet_v2_x0_5", {}, "transformers", r"shufflenet_v2_x0_5 is no ResNet"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "target", "reason"),
    REFUSED,
    ids=[f"{r[0]}-{r[2]}-{i}" for i, r in enumerate(REFUSED)],
)
def test_what_has_no_place_is_refused_by_name(saved, tmp_path, name, arguments, target, reason):
    encoder = read_encoder(saved(name, **arguments))
    with pytest.raises(UnsupportedFormatError, match=reason):
        write_export(encoder, format_by_name(target), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_reason_is_given_at_once(saved):
    reasons = reasons_against(read_encoder(saved("timm/resnet18", stem="cifar", **NARROW)))
    assert set(reasons) == set(FORMATS) - {"torch_export"}


def test_an_export_that_deviates_is_not_kept(saved, tmp_path, monkeypatch):
    """Strides in the wrong convolution: every name and shape fits, and an untrained encoder does not show it."""
    encoder = read_encoder(saved(NARROW_BOTTLENECK[0], **NARROW))
    target, folder = format_by_name("transformers"), tmp_path / "out"
    write_export(encoder, target, folder)
    before = (folder / "export.json").read_text()
    plan_of = transformers_format._config

    def wrong(plan):
        return ResNetConfig(**{**plan_of(plan).to_dict(), "downsample_in_bottleneck": True})

    monkeypatch.setattr(transformers_format, "_config", wrong)
    with pytest.raises(ExportError, match=r"was not kept: read back, it deviates .*features by"):
        write_export(encoder, target, folder, overwrite=True)
    assert (folder / "export.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # The control: with its own weights, whose branches start at zero, the wrong export passes.
    (tmp_path / "bad").mkdir()
    target.write(encoder, tmp_path / "bad")
    assert max(check(encoder, target.read(encoder, tmp_path / "bad"), "wrong").values()) <= TOLERANCE


@pytest.mark.parametrize(
    "key", ["layer1.0.bn2.running_var", "layer4.0.downsample.1.bias", "layer2.1.conv1.weight"]
)
def test_a_tensor_that_is_wrong_is_noticed(saved, narrow, key):
    other = generic(saved(NARROW_BOTTLENECK[0], **NARROW))
    with torch.no_grad():
        other.module.state_dict()[key].mul_(1.01)
    with pytest.raises(ExportError, match="deviates"):
        check(narrow, outputs_of(other.module), "torchvision")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, -2.0], [1.0, -2.1], 0.05),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], float("inf")),
        ([1.0], [float("nan")], float("inf")),
        ([float("nan")], [float("nan")], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
    ],
)
def test_deviations(ours, theirs, expected):
    found = deviations({"features": torch.tensor(ours)}, {"features": torch.tensor(theirs)})
    assert found["features"] == pytest.approx(expected, rel=1e-6)


def test_record_and_card_say_what_was_done(narrow, tmp_path):
    write_export(narrow, format_by_name("timm"), tmp_path / "out", license="apache-2.0")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["encoder"] == "timm/resnet26"
    assert record["versions"]["timm"] == timm.__version__
    assert record["deviations"]["features"] <= TOLERANCE
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "timm"
    for text in ("matrix_ssl", "| epochs | 3 |", "0.5, 0.4, 0.3", "local-dir:", "channels"):
        assert text in card
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_a_method_in_words_leaves_the_card_s_metadata_readable(narrow):
    method = "MoCo v2: 800 epochs, # of GPUs 8"
    encoder = Encoder(narrow.module, narrow.spec, {**narrow.facts, "method": method})
    card = model_card(encoder, format_by_name("timm"), {"features": 0.0}, {}, None)
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"][-1] == method
    assert "license" not in front


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("resnet50", set()),
        ("resnet101", set()),
        ("timm/resnet50", set()),
        ("timm/resnet34", set()),
        ("wide_resnet50_2", {"transformers"}),
        ("resnext50_32x4d", {"transformers"}),
        ("timm/resnext50_32x4d", {"transformers"}),
        ("timm/resnet50d", {"torchvision", "transformers", "detectron2"}),
        ("timm/seresnet50", {"torchvision", "transformers", "detectron2"}),
        ("vit_b_32", {"timm", "transformers", "detectron2"}),
        ("convnext_tiny", {"timm", "transformers", "detectron2"}),
        ("timm/vit_tiny_patch16_224", {"torchvision", "transformers", "detectron2"}),
        ("timm/convnext_atto", {"torchvision", "transformers", "detectron2"}),
    ],
)
def test_large_encoders_in_all_formats(tmp_path, name, refused):
    from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone

    torch.manual_seed(0)
    spec = BackboneSpec(name)
    size = 224 if "vit" in name else 64
    save_backbone(build_backbone(spec), spec, tmp_path / "run", {"image_size": size})
    encoder = read_encoder(tmp_path / "run")
    assert set(reasons_against(encoder)) == refused
    for target in set(FORMATS) - refused:
        measured = write_export(encoder, format_by_name(target), tmp_path / target)
        assert max(measured.values()) <= TOLERANCE, (target, measured)
        print(f"{name} {target} {max(measured.values()):.1e}")
