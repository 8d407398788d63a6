"""A run that goes on with other settings: each one is applied, refused by name, or said to be without effect."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers.resumed import NET, SCRIPTS, class_folders, command_line, equal, go_on, start
from helpers.scripts import load_script
from mce_llm.running.settings import settings_of
from mce_llm.vision.data.shapes import CLASSES
from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone
from mce_llm.vision.running import run_script

endings = load_script("benchmarks/vision_endings.py")

# What each setting is changed to. Where one needs another beside it, it is a mapping of both.
_MEANS = {"num_workers": 1, "overwrite": True, "cpu": False}
_HOW = {"data_dir": "elsewhere", "download": True, "cache_images": "true", "rebuild_index": True}
_WHICH = {
    "dataset": "cifar10",
    "train_split": "test",
    "limit": 30,
    "eval_from_train": 5,
    "mean": {"mean": "0.4 0.4 0.4", "std": "0.2 0.2 0.2"},
    "std": {"mean": "0.4 0.4 0.4", "std": "0.2 0.2 0.2"},
    "image_column": "picture",
    "label_column": "kind",
    "seed": 3,
}
_JUDGED = {"eval_dataset": "FOLDER", "eval_split": "train", "eval_limit": 10, "mixed_precision": "bf16"}
_ENCODER = {
    "encoder": {"encoder": "runs/none", "backbone": None, "stem": None, "backbone_kwargs": None},
    "use_teacher": {
        "use_teacher": True,
        "encoder": "runs/none",
        **dict.fromkeys(("backbone", "stem", "backbone_kwargs")),
    },
    "backbone": "timm/resnet10t",
    "stem": "imagenet",
    "backbone_kwargs": "{channels: [4, 8, 8, 8], stem_width: 8}",
}
_PIXELS = {"pixels": True, **dict.fromkeys(("backbone", "stem", "backbone_kwargs"))}

REFUSED = {
    "pretrain": {
        **_WHICH,
        "image_size": 24,
        "method": "mec",
        "backbone": "timm/resnet10t",
        "stem": "imagenet",
        "backbone_kwargs": _ENCODER["backbone_kwargs"],
        "embedding_dim": 16,
        "projector_dim": 16,
        "predictor_dim": 8,
        "optimizer": "lars",
        "batch_size": 20,
        "epochs": 4,
        "online_probe": False,
    },
    "linear_probe": {
        **_WHICH,
        **_ENCODER,
        "image_size": 16,
        "pixels": _PIXELS,
        "optimizer": "lars",
        "learning_rates": "0.1 0.2",
        "batch_size": 20,
        "epochs": 4,
        "warmup_epochs": 1,
        "milestones": "1 2",
        "momentum": 0.1,
        "schedule": {"schedule": "step", "milestones": "1 2"},
        "weight_decay": 0.1,
        "batch_norm": False,
        "cached_features": True,
        "crop_scale_min": 0.5,
        "held_out": 0.2,
        "retrain": False,
    },
    "semi_supervised": {
        **_WHICH,
        **_ENCODER,
        "image_size": 16,
        "subset_file": {"subset_file": "list.txt", "fraction": None},
        "fraction": 0.5,
        "encoder_learning_rate": 0.5,
        "classifier_learning_rate": 0.1,
        "batch_size": 20,
        "epochs": 4,
        "warmup_epochs": 1,
        "momentum": 0.1,
        "weight_decay": 0.1,
        "crop_scale_min": 0.5,
        "sync_batch_norm": False,
    },
    "detection": {
        "seed": 3,
        "architecture": "c4",
        "backbone": "timm/resnet10t",
        "norm": "frozen_bn",
        "backbone_kwargs": _ENCODER["backbone_kwargs"],
        "trainable_layers": 3,
        "batch_size": 4,
        "backbone_checkpoint": {"backbone_checkpoint": "runs/none", "backbone_kwargs": None},
        "backbone_weights": "IMAGENET1K_V1",
        "anchor_sizes": "8 16 32 48 60",
        "fpn_channels": 16,
        "box_head_features": 32,
        "mask_head_channels": 16,
        "train_annotations": "ANNOTATIONS",
        "train_limit": 6,
        "image_orientation": "upright",
        "filter_empty": False,
        "group_by_shape": False,
        "evaluate_only": {"evaluate_only": True, "detector": "DETECTOR"},
        "detector": {"evaluate_only": True, "detector": "DETECTOR"},
    },
}
APPLIED = {
    "pretrain": {
        **_JUDGED,
        "loss_options": "{gamma: 0.5}",
        "teacher_momentum": 0.1,
        "base_learning_rate": 40.0,
        "weight_decay": 0.5,
        "momentum": 0.1,
        "warmup_epochs": 2,
        "monitor_every": 3,
        "monitor_images": 9,
        "knn_k": 5,
        "knn_temperature": 1.0,
        "probe_learning_rate": 9.0,
        "checkpoint_epochs": 3,
        "checkpoint_steps": 1,
        "crop_scale_min": 0.6,
        "crop_scale_max": 0.5,
        "jitter_probability": 0.1,
        "jitter_brightness": 0.9,
        "jitter_contrast": 0.9,
        "jitter_saturation": 0.9,
        "jitter_hue": 0.5,
        "grayscale_probability": 1.0,
        "blur": "false",
        "blur_probability_1": 0.0,
        "blur_probability_2": 1.0,
        "blur_sigma_min": 1.0,
        "blur_sigma_max": 0.5,
        "solarize_probability_1": 1.0,
        "solarize_probability_2": 1.0,
        "solarize_threshold": 200,
        "flip_probability": 0.0,
    },
    "linear_probe": _JUDGED,
    "semi_supervised": _JUDGED,
    "detection": {
        "mixed_precision": "bf16",
        "eval_annotations": "ANNOTATIONS",
        "eval_limit": 3,
        "short_sides": 40,
        "eval_short_side": 40,
        "max_size": 56,
        "flip_probability": 1.0,
        "rpn_before_nms_train": 6,
        "rpn_after_nms_train": 3,
        "rpn_before_nms_eval": 2,
        "rpn_after_nms_eval": 2,
        "rpn_samples": 8,
        "roi_samples": 4,
        "score_threshold": 0.9,
        "detections_per_image": 1,
        "iterations": 7,
        "steps": 3,
        "learning_rate": 0.4,
        "scale_learning_rate": True,
        "warmup_iterations": 2,
        "warmup_factor": 0.01,
        "momentum": 0.1,
        "weight_decay": 10.0,
        "norm_weight_decay": 10.0,
        "clip_gradients": 0.001,
        "log_every": 2,
        "save_every": 1,
        "eval_every": 4,
        "drawn_images": 3,
        "drawn_threshold": 1.0,
    },
}
WITHOUT_EFFECT = {
    "pretrain": {**_MEANS, **_HOW, "channels_last": False, "compile": True},
    "linear_probe": {**_MEANS, **_HOW, "encode_batch_size": 7},
    "semi_supervised": {**_MEANS, **_HOW, "encode_batch_size": 7},
    "detection": {
        **_MEANS,
        "eval_at_start": True,
        "eval_batch_size": 2,
        "train_images": "IMAGES",
        "eval_images": "IMAGES",
        "schedule": "1x",
    },
}
# These two say what becomes of the run itself; `test_folder.py` is about them.
_ITSELF = {"output_dir", "resume"}


# Of the heavy ones: an optimizer's state used to bring these back.
_CI = {("pretrain", "base_learning_rate"), ("detection", "weight_decay")}


def cases(table, *, heavy=tuple(SCRIPTS)):
    """Every script's every setting; those of `heavy` scripts are slow."""
    marks = {True: [pytest.mark.slow, pytest.mark.ci], False: [pytest.mark.slow]}
    return [
        pytest.param(name, setting, marks=marks[(name, setting) in _CI] if name in heavy else [])
        for name in table
        for setting in table[name]
    ]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """For each script a run that was stopped in the middle, its settings, and how it ends when nothing is changed."""
    place, made = tmp_path_factory.mktemp("stopped"), {}

    def of(name):
        if name not in made:
            script = SCRIPTS[name]
            settings = {**script.base, **_images(name, place)}
            folder = place / name
            with pytest.MonkeyPatch.context() as patch:
                assert start(script, {**settings, "output_dir": folder}, patch, stop=script.stop)[0] == 143
                unchanged = go_on(script, folder, settings, place / f"{name}_unchanged", patch)
            assert unchanged[0] == 0
            made[name] = SimpleNamespace(
                script=script, settings=settings, folder=folder, unchanged=unchanged, place=place
            )
        return made[name]

    return of


def _images(name, place):
    if name == "pretrain":  # in colour, which `shapes` is not
        return {"dataset": endings.make_images(place / "colours", 50, False)}
    if name != "detection":
        return {}
    coco = endings.make_coco(place / "coco", False)
    shutil.copytree(coco, place / "copy")
    other = json.loads((coco / "instances.json").read_text())
    other["annotations"] = [{**each, "bbox": [12, 12, 20, 10]} for each in other["annotations"]]
    (place / "other.json").write_text(json.dumps(other))
    return {
        "train_images": coco,
        "train_annotations": coco / "instances.json",
        "eval_images": coco,
        "eval_annotations": coco / "instances.json",
    }


def changed(run, table, name, setting):
    """The settings with this one changed."""
    value = table[name][setting]
    more = dict(value) if isinstance(value, dict) else {setting: value}
    places = {"IMAGES": "copy", "ANNOTATIONS": "other.json", "DETECTOR": name, "FOLDER": "folder"}
    more = {
        key: run.place / places[each] if isinstance(each, str) and each in places else each
        for key, each in more.items()
    }
    if more.get("eval_dataset"):
        train = run.settings.get("dataset", run.script.base.get("dataset"))
        more["eval_dataset"] = run.place / f"folder_of_{name}"
        classes = (
            CLASSES if train == "shapes" else sorted(folder.name for folder in (train / "train").iterdir())
        )
        for kind in classes[:2]:
            (more["eval_dataset"] / kind).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                picture = Image.new("RGB", (40, 40), (80 * number, 200, 30))
                picture.save(more["eval_dataset"] / kind / f"{number}.png")
        more |= {"eval_limit": None} if name == "pretrain" else {}
    return {**run.settings, **more}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_is_in_one_of_the_tables(name):
    known = [set(table[name]) for table in (REFUSED, APPLIED, WITHOUT_EFFECT)]
    own = _ITSELF | ({"pixels"} if name == "semi_supervised" else set())  # which has nothing to fine-tune
    assert set.union(*known, own) == set(settings_of(SCRIPTS[name].groups))
    assert sum(map(len, known)) == len(set.union(*known))


@pytest.mark.parametrize(("name", "setting"), cases(REFUSED, heavy=("semi_supervised", "detection")))
def test_refused_by_name(name, setting, stopped, tmp_path, capsys, monkeypatch):
    run = stopped(name)
    before = {path: path.read_bytes() for path in sorted(run.folder.rglob("*")) if path.is_file()}
    settings = {**changed(run, REFUSED, name, setting), "output_dir": run.folder}
    capsys.readouterr()
    assert run_script(load_script(run.script.path).main, command_line(settings)) == 2
    said = capsys.readouterr().err
    assert "cannot go on with other settings" in said
    assert f"{setting} " in said
    after = {path: path.read_bytes() for path in sorted(run.folder.rglob("*")) if path.is_file()}
    assert before == after


@pytest.mark.parametrize(("name", "setting"), cases(APPLIED))
def test_announced_and_in_effect(name, setting, stopped, tmp_path, capsys, monkeypatch):
    run = stopped(name)
    settings = changed(run, APPLIED, name, setting)
    capsys.readouterr()
    code, weights, rest = go_on(run.script, run.folder, settings, tmp_path / "run", monkeypatch)
    said = capsys.readouterr()
    assert code == 0, said.err
    line = next(line for line in said.out.splitlines() if "hold from here on" in line)
    assert f"{setting} " in line
    assert not equal(weights, run.unchanged[1]) or rest != run.unchanged[2]
    assert f"{setting} " in (tmp_path / "run" / "recipe.yaml").read_text().split("\n", 1)[0]


@pytest.mark.parametrize(("name", "setting"), cases(WITHOUT_EFFECT))
def test_said_to_be_without_effect_and_without_one(name, setting, stopped, tmp_path, capsys, monkeypatch):
    run = stopped(name)
    settings = changed(run, WITHOUT_EFFECT, name, setting)
    capsys.readouterr()
    if setting == "compile":  # a compiler for C++ would have to be there
        monkeypatch.setattr(torch, "compile", lambda module: module)
    code, weights, _ = go_on(run.script, run.folder, settings, tmp_path / "run", monkeypatch)
    said = capsys.readouterr()
    assert code == 0, said.err
    line = next(line for line in said.out.splitlines() if "without effect on what is trained" in line)
    assert f"{setting} " in line
    for key, value in run.unchanged[1].items():
        # Channels last and other batches round otherwise; all else is the same to the last bit.
        close = {"rtol": 1e-3, "atol": 1e-4} if setting in ("channels_last", "encode_batch_size") else None
        torch.testing.assert_close(weights[key], value, msg=key, **(close or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize(
    "same",
    [
        {"seed": 0, "optimizer": "sgd", "method": "matrix_ssl"},
        {"backbone_kwargs": '{"stem_width": 8, "channels": [8, 8, 8, 8]}', "loss_options": "{}"},
        {"momentum": "9e-1", "blur": True, "mixed_precision": "no"},
        {"train_split": "train", "loss_options": "{gamma: 1, order: 4}"},
        {"eval_dataset": "DATASET"},
    ],
)
def test_what_means_the_same_is_no_difference(same, stopped, tmp_path, capsys, monkeypatch):
    run = stopped("pretrain")
    same = {
        name: f"{run.settings['dataset']}/" if value == "DATASET" else value for name, value in same.items()
    }
    capsys.readouterr()
    code, weights, _ = go_on(run.script, run.folder, {**run.settings, **same}, tmp_path / "run", monkeypatch)
    said = capsys.readouterr().out
    assert code == 0
    assert "differ" not in said.replace("output_dir", "").split("settings that differ, without")[0]
    assert equal(weights, run.unchanged[1])


@pytest.mark.parametrize("name", ["pretrain", "linear_probe", "semi_supervised"])
def test_images_that_were_added_are_noticed(name, tmp_path, capsys, monkeypatch):
    script, data = SCRIPTS[name], tmp_path / "data"
    class_folders(data, 10)
    settings = {
        **script.base,
        "dataset": data,
        "limit": None,
        "eval_limit": None,
        "output_dir": tmp_path / "run",
    }
    assert start(script, settings, monkeypatch, stop=1)[0] == 143
    path = data / "train" / "one" / "more.png"
    shutil.copy(data / "train" / "one" / "1.png", path)
    capsys.readouterr()
    assert start(script, settings, monkeypatch)[0] == 2
    assert "training images (20 → 21)" in capsys.readouterr().err
    path.unlink()
    (data / "train" / "two" / "1.png").rename(data / "train" / "two" / "renamed.png")
    assert start(script, settings, monkeypatch)[0] == 2
    assert "training images (other ones)" in capsys.readouterr().err
    (data / "train" / "two" / "renamed.png").rename(data / "train" / "two" / "1.png")
    (data / "val" / "one" / "1.png").unlink()
    settings["dataset"] = f"{data}/"  # the same place, in other words
    assert start(script, settings, monkeypatch)[0] == 0, capsys.readouterr().err
    assert "images for evaluation (20 → 19) have changed" in capsys.readouterr().out


def test_an_image_that_was_replaced_is_noticed(tmp_path, capsys, monkeypatch):
    script, data = SCRIPTS["pretrain"], tmp_path / "data"
    class_folders(data, 10)
    given = {"dataset": data, "limit": None, "eval_limit": None, "output_dir": tmp_path / "run"}
    settings = {**script.base, **given}
    assert start(script, settings, monkeypatch, stop=1)[0] == 143
    replaced = data / "train" / "one" / "1.png"
    before = replaced.read_bytes()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(replaced)
    capsys.readouterr()
    assert start(script, settings, monkeypatch)[0] == 2
    assert "training images (other ones)" in capsys.readouterr().err
    replaced.write_bytes(before)  # at another time: what counts is what is in it
    assert start(script, settings, monkeypatch)[0] == 0, capsys.readouterr().err


def test_another_encoder_in_the_same_folder_is_noticed(tmp_path, capsys, monkeypatch):
    script = SCRIPTS["semi_supervised"]
    for seed in (1, 2):
        torch.manual_seed(seed)
        spec = BackboneSpec(NET["backbone"], NET["stem"], {"channels": [8, 8, 8, 8], "stem_width": 8})
        facts = {"image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
        save_backbone(build_backbone(spec), spec, tmp_path / f"encoder{seed}", facts)
    settings = {**script.base, **dict.fromkeys(NET), "encoder": tmp_path / "encoder1"}
    settings["output_dir"] = tmp_path / "run"
    assert start(script, settings, monkeypatch, stop=script.stop)[0] == 143
    shutil.copy(tmp_path / "encoder2" / "backbone.safetensors", tmp_path / "encoder1")
    capsys.readouterr()
    assert start(script, settings, monkeypatch)[0] == 2
    assert "the encoder's weights (other ones)" in capsys.readouterr().err


def test_annotations_that_changed_are_noticed(stopped, tmp_path, capsys, monkeypatch):
    run = stopped("detection")
    coco = tmp_path / "coco"
    shutil.copytree(run.settings["train_images"], coco)
    settings = {**run.settings, "train_annotations": coco / "instances.json", "output_dir": tmp_path / "run"}
    assert start(run.script, settings, monkeypatch, stop=1)[0] == 143
    shutil.copy(run.place / "other.json", coco / "instances.json")
    capsys.readouterr()
    assert start(run.script, settings, monkeypatch)[0] == 2
    assert "training images (other ones)" in capsys.readouterr().err
    shutil.copy(run.settings["train_annotations"], coco / "instances.json")
    settings["train_images"] = coco
    first = tmp_path / "again"
    settings["output_dir"] = first
    assert start(run.script, settings, monkeypatch, stop=1)[0] == 143
    image = json.loads((coco / "instances.json").read_text())["images"][0]
    Image.new("RGB", (image["width"], image["height"]), (1, 2, 3)).save(coco / image["file_name"])
    capsys.readouterr()
    assert start(run.script, settings, monkeypatch)[0] == 2
    assert "training images (other ones)" in capsys.readouterr().err


def test_an_end_that_is_passed_already_is_refused(stopped, tmp_path, capsys, monkeypatch):
    run = stopped("detection")
    settings = {**run.settings, "iterations": 2, "steps": 1, "eval_every": 1, "warmup_iterations": 1}
    assert go_on(run.script, run.folder, settings, tmp_path / "run", monkeypatch)[0] == 2
    assert "iterations 2 is before the 3 that are done" in capsys.readouterr().err
