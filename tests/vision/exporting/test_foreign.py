"""Checkpoints as others write them, made here, read into our encoders."""

import argparse
import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mce_llm.vision.exporting import ForeignWeightsError, import_weights, other_encoders, read_foreign
from mce_llm.vision.models import BackboneFileError, BackboneSpec, build_backbone

NARROW = {"channels": [8, 16, 32, 64]}


def encoder(name="timm/resnet18", seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = arguments or (NARROW if name.startswith("timm/resnet") else {})
    module = build_backbone(BackboneSpec(name, "imagenet", arguments))
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                value.normal_()
            if key.endswith("running_var"):
                value.abs_()
    return module


def under(prefix, module, without=()):
    return {
        f"{prefix}{name}": value
        for name, value in module.state_dict().items()
        if not any(part in name for part in without)
    }


def same(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


FC = {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}
STUDENT, TEACHER = encoder(seed=1), encoder(seed=2)


def projector(prefix):
    return {f"{prefix}0.weight": torch.zeros(64, 64), f"{prefix}1.running_mean": torch.zeros(64)}


# What a method's own code saves: (contents, where the student is, where its averaged copy is)
LAYOUTS = {
    "torchvision": ({**under("", STUDENT), **FC}, "", None),
    "training script": ({"epoch": 3, "state_dict": {**under("module.", STUDENT), "module.fc.bias": torch.zeros(3)}}, "state_dict.module.", None),
    "moco": (
        {
            "state_dict": {
                **under("module.encoder_q.", STUDENT),
                **projector("module.encoder_q.fc."),
                **under("module.encoder_k.", TEACHER),
                **projector("module.encoder_k.fc."),
                "module.queue": torch.zeros(128, 64),
            },
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        },
        "state_dict.module.encoder_q.",
        "state_dict.module.encoder_k.",
    ),
    "moco v3": (
        {"state_dict": {**under("module.base_encoder.", STUDENT), **under("module.momentum_encoder.", TEACHER)}},
        "state_dict.module.base_encoder.",
        "state_dict.module.momentum_encoder.",
    ),
    "matrix-ssl": (
        {
            "arch": "resnet18",
            "state_dict": {
                **under("module.encoder.", STUDENT),
                **projector("module.encoder.fc."),
                **projector("module.predictor."),
                **under("module.teacher.", TEACHER),
                **projector("module.teacher.fc."),
            },
        },
        "state_dict.module.encoder.",
        "state_dict.module.teacher.",
    ),
    "barlow twins": ({"model": {**under("module.backbone.", STUDENT), **projector("module.projector.")}}, "model.module.backbone.", None),
    "dino": (
        {
            "args": argparse.Namespace(arch="resnet18", lr=0.1),
            "student": {**under("module.backbone.", STUDENT), **projector("module.head.mlp.")},
            "teacher": {**under("backbone.", TEACHER), **projector("head.mlp.")},
        },
        "student.module.backbone.",
        "teacher.backbone.",
    ),
    "vissl": (
        {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", STUDENT, ["num_batches"]), "heads": {}}}}},
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_read(name, tmp_path):
    content, student, teacher = LAYOUTS[name]
    torch.save(content, tmp_path / "weights.pth.tar")
    tensors = read_foreign(tmp_path / "weights.pth.tar")
    module = encoder(seed=5)
    # DINO's published results are its teacher's.
    wanted, weights = (teacher, TEACHER) if name == "dino" else (student, STUDENT)
    assert import_weights(module, tensors, name) == wanted
    others = {student, teacher} - {wanted, None}
    assert other_encoders(module, tensors, wanted) == [place.rstrip(".") for place in others]
    if name == "vissl":  # it has no counters of batches
        module.load_state_dict(
            {k: v for k, v in STUDENT.state_dict().items() if "num_batches" in k}, strict=False
        )
    assert same(module, weights)
    assert import_weights(module, tensors, name, averaged=False) == student
    if teacher is None:
        with pytest.raises(ForeignWeightsError, match="no averaged encoder, only"):
            import_weights(module, tensors, name, averaged=True)
    else:
        assert import_weights(module, tensors, name, averaged=True) == teacher
        assert same(module, TEACHER)
        assert import_weights(module, tensors, name, prefix=student.rstrip(".")) == student
        assert same(module, STUDENT)


def test_numbered_children_are_read(tmp_path):
    """`nn.Sequential(*resnet.children())`, as many examples wrap a ResNet."""
    source = nn.Module()
    source.backbone = nn.Sequential(*list(copy.deepcopy(STUDENT).children())[:-1])
    torch.save({"state_dict": source.state_dict()}, tmp_path / "lightly.ckpt")
    module = encoder(seed=5)
    assert (
        import_weights(module, read_foreign(tmp_path / "lightly.ckpt"), "lightly.ckpt")
        == "state_dict.backbone."
    )
    assert same(module, STUDENT)


def test_safetensors_are_read(tmp_path):
    save_file({**STUDENT.state_dict(), **FC}, tmp_path / "model.safetensors")
    module = encoder(seed=5)
    assert import_weights(module, read_foreign(tmp_path / "model.safetensors"), "it") == ""
    assert same(module, STUDENT)


DEEPER = encoder("timm/resnet34", seed=3)
CUT = {k: v for k, v in STUDENT.state_dict().items() if not k.startswith("layer2.1.conv2")}
REFUSED = {
    "two students": ({"a": under("", STUDENT), "b": under("", TEACHER)}, {}, ForeignWeightsError, r"several encoders, 'a\.', 'b\.'; say which with --prefix"),
    "unknown names": ({"net.stem.weight": torch.zeros(3), "net.body": torch.zeros(2)}, {}, ForeignWeightsError, r"no encoder of this kind .*2 tensors, such as 'net\.stem\.weight', 'net\.body'"),
    "wrong prefix": (under("module.", STUDENT), {"prefix": "backbone"}, ForeignWeightsError, r"under 'backbone\.' in it; there is one under 'module\.'"),
    "another depth": (under("", DEEPER), {}, ForeignWeightsError, r"another encoder under '': \d+ weights more .*another depth"),
    "in part": (CUT, {}, ForeignWeightsError, r"in part: 1 of its \d+ weights are missing \('layer2\.1\.conv2\.weight'\)"),
    "not finite": ({**under("", STUDENT), "layer1.0.bn1.bias": torch.tensor([float("nan")] * 8), "conv1.weight": torch.full((64, 3, 7, 7), float("inf"))}, {}, BackboneFileError, r"NaN or infinity in 2 of \d+ tensors \(conv1\.weight, layer1\.0\.bn1\.bias\): .*earlier checkpoint"),
    "another width": (under("", encoder(channels=[8, 16, 32, 96])), {}, BackboneFileError, r"of another shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_encoder_is_refused(name):
    content, options, kind, message = REFUSED[name]
    tensors = {}
    for key, value in content.items():
        tensors |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    module = encoder(seed=5)
    before = copy.deepcopy(module)
    with pytest.raises(kind, match=message):
        import_weights(module, tensors, "it", **options)
    assert same(module, before)


class Harmless:
    def __reduce__(self):
        return print, ("this was run",)


def test_files_that_cannot_be_read(tmp_path, capsys):
    torch.save({"state_dict": Harmless()}, tmp_path / "code.pth")
    with pytest.raises(ForeignWeightsError, match="could run code"):
        read_foreign(tmp_path / "code.pth")
    assert "this was run" not in capsys.readouterr().out
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ForeignWeightsError, match="could run code") as refused:
        read_foreign(tmp_path / "module.pth")
    assert "\x1b" not in str(refused.value)
    for name, content, message in (
        ("torn.pth", b"PK\x03\x04 no", "cannot be read|could run code"),
        ("torn.safetensors", b"\xff" * 20, "cannot be read"),
        ("empty.pth", b"", "is empty, and no file that torch.save wrote"),
        ("text.pth", b"hello", r"is text \(it begins with 'hello'\)"),
        ("long.pth", "ä".encode() * 999, r"is text \(it begins with 'ää"),
        ("list.json.pth", b'{"a": [1, 2]}\n', "is text"),
        ("page.pth", b"<!DOCTYPE html>\n<html>", r"is a web page \(it begins with"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("noise.pth", bytes(range(200, 250)), "of an unknown kind .it begins with the bytes c8 c9"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForeignWeightsError, match=message):
            read_foreign(tmp_path / name)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ForeignWeightsError, match="no tensors by name"):
        read_foreign(tmp_path / "list.pth")
    with pytest.raises(ForeignWeightsError, match="not there"):
        read_foreign(tmp_path / "missing.pth")
    with pytest.raises(ForeignWeightsError, match="a folder"):
        read_foreign(tmp_path)
