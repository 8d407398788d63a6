"""The files an encoder is kept in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mce_llm.vision.models import (
    BackboneFileError,
    BackboneSpec,
    build_backbone,
    load_backbone,
    save_backbone,
)

SPEC = BackboneSpec("timm/resnet18", stem="cifar", kwargs={"channels": [8, 8, 8, 16], "stem_width": 8})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "run"
    module = build_backbone(SPEC)
    save_backbone(module, SPEC, folder, {"image_size": 32, "method": "matrix_ssl"})
    return module, folder


def test_round_trip(kept):
    module, folder = kept
    loaded, spec, facts = load_backbone(folder)
    assert spec == SPEC
    assert facts["feature_dim"] == 16
    assert facts["method"] == "matrix_ssl"
    assert sorted(p.name for p in folder.iterdir()) == ["backbone.json", "backbone.safetensors"]
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert load_backbone(folder / "backbone.safetensors")[1] == SPEC
    assert (
        len({p.stat().st_mode for p in folder.iterdir()}) == 1
    )  # weights can be read by whoever can read the JSON


def test_layers_with_versions(tmp_path):
    spec = BackboneSpec("mnasnet0_5")
    save_backbone(build_backbone(spec), spec, tmp_path, {"image_size": 64})
    assert load_backbone(tmp_path)[1] == spec


@pytest.fixture
def broken(kept, tmp_path):
    shutil.copytree(kept[1], tmp_path / "run")
    return tmp_path / "run"


def _weights(folder, change):
    weights = load_file(folder / "backbone.safetensors")
    change(weights)
    save_file(weights, folder / "backbone.safetensors")


def _note(folder, **changed):
    note = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps({**note, **changed}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "backbone.json").unlink(), r"holds no backbone.json \(found: backbone.safetensors\)"),
        (lambda f: shutil.rmtree(f), r"no such folder"),
        (lambda f: (f / "backbone.json").write_text("{"), r"backbone.json cannot be read: JSONDecodeError"),
        (lambda f: (f / "backbone.json").write_text("{}"), r"cannot be read: KeyError: 'name'"),
        (lambda f: (f / "backbone.safetensors").unlink(), r"backbone.safetensors cannot be read"),
        (
            lambda f: (f / "backbone.safetensors").write_bytes(b"x" * 50),
            r"backbone.safetensors cannot be read",
        ),
        (lambda f: _note(f, name="timm/resnet1"), r"backbone.json: timm has no model"),
        (lambda f: _weights(f, lambda w: w.pop("conv1.weight")), r"1 missing \(conv1.weight\)"),
        (lambda f: _weights(f, lambda w: w.update(fc=torch.ones(2))), r"1 not of this encoder \(fc\)"),
        (
            lambda f: _weights(f, lambda w: w.update({"conv1.weight": w["conv1.weight"].double() * 1e300})),
            r"NaN or infinity in 1 of \d+ tensors \(conv1.weight\)",
        ),
        (
            lambda f: _weights(f, lambda w: w.update({"bn1.running_var": -w["bn1.running_var"]})),
            r"negative variances of batch norms in 1 tensors \(bn1.running_var\)",
        ),
        (lambda f: _note(f, kwargs={}), r"of another shape .*instead of"),
    ],
)
def test_what_cannot_be_read(broken, damage, message):
    damage(broken)
    with pytest.raises(BackboneFileError, match=message):
        load_backbone(broken)
