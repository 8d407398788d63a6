"""The command line, from a run's folder to another library, and from a published file to a run's folder."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.scripts import load_script
from mce_llm.vision.exporting import writing
from mce_llm.vision.models import load_backbone
from mce_llm.vision.running import run_script

export = load_script("vision/export.py")

NARROW = {"channels": [8, 16, 32, 64]}


@pytest.fixture
def run_folder(saved, tmp_path):
    """A run with a student and a teacher that differ."""
    shutil.copytree(saved("timm/resnet18", seed=1, **NARROW), tmp_path / "run")
    shutil.copytree(saved("timm/resnet18", seed=2, **NARROW), tmp_path / "run" / "teacher")
    return tmp_path / "run"


def call(*words):
    return run_script(lambda argv: export.main(argv), [str(word) for word in words])


def test_all_means_all_that_can_be(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        export, "FORMATS", ("torchvision", "timm")
    )  # the others are slower and tested by themselves
    monkeypatch.setattr("mce_llm.vision.exporting.settings.FORMATS", ("torchvision", "timm"))
    assert call("--encoder", run_folder, "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "torchvision: left out, torchvision's resnet18 has no argument for timm's channels" in said
    assert "timm: wrote" in said
    assert "deviates by features" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["timm"]


def test_the_teacher_is_another_encoder(run_folder, tmp_path):
    import timm

    found = {}
    for name, words in (("student", ()), ("teacher", ("--use_teacher", "true"))):
        out = tmp_path / name
        assert call("--encoder", run_folder, "--output_dir", out, "--format", "timm", *words) == 0
        model = timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True)
        source, _, _ = load_backbone(run_folder if name == "student" else run_folder / "teacher")
        found[name] = model.state_dict()["conv1.weight"]
        assert torch.equal(found[name], source.state_dict()["conv1.weight"])
    assert not torch.equal(found["student"], found["teacher"])


def test_overwriting_is_asked_for(run_folder, tmp_path, capsys):
    words = ("--encoder", run_folder, "--output_dir", tmp_path / "out", "--format", "timm")
    assert call(*words) == 0
    assert call(*words) == 2
    assert "--overwrite true" in capsys.readouterr().err
    assert call(*words, "--overwrite", "true") == 0
    (tmp_path / "out" / "timm" / "export.json").unlink()
    assert call(*words, "--overwrite", "true") == 2  # it is no export any more, and may be someone's work
    assert "is not empty and holds no export" in capsys.readouterr().err
    assert (tmp_path / "out" / "timm" / "model.safetensors").is_file()


def test_a_full_disk_leaves_nothing(run_folder, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "model_card", full)
    assert call("--encoder", run_folder, "--output_dir", tmp_path / "out", "--format", "timm") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


ERRORS = {
    "neither": ([], "give either encoder"),
    "both": (["--encoder", "{run}", "--import_from", "x.pth"], "give either encoder"),
    "format": (["--encoder", "{run}", "--format", "transformer"], r"did you mean 'transformers'\?"),
    "all and more": (["--encoder", "{run}", "--format", "all,timm"], "needs no other"),
    "no place": (["--encoder", "{run}", "--format", "torchvision"], "what can be written: timm, transformers"),
    "idle import setting": (["--encoder", "{run}", "--backbone", "resnet18"], "backbone goes with import_from"),
    "idle export setting": (["--import_from", "x.pth", "--format", "timm"], "format goes with encoder"),
    "no run": (["--encoder", "{tmp}/nothing"], "there is no such folder"),
    "no teacher": (["--encoder", "{run}/teacher", "--use_teacher", "true"], "no averaged teacher to export"),
    "license": (["--encoder", "{run}", "--license", "my own: free"], "SPDX identifier"),
    "std": (["--import_from", "x.pth", "--std", "0", "1", "1"], "std must be three numbers"),
    "no file": (["--import_from", "{tmp}/x.pth"], "x.pth is not there"),
    "backbone": (["--import_from", "{tmp}/x.pth", "--backbone", "resnet51"], r"did you mean 'resnet50'\?"),
    "a file in the way": (["--encoder", "{run}", "--output_dir", "{run}/backbone.json", "--format", "timm"], "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_message(name, run_folder, tmp_path, capsys):
    words, message = ERRORS[name]
    words = [word.format(run=run_folder, tmp=tmp_path) for word in words]
    assert call("--output_dir", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert re.search(message, said), said


def test_a_published_encoder_becomes_a_run(run_folder, tmp_path, capsys):
    module, _, _ = load_backbone(run_folder)
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in module.state_dict().items()}},
        tmp_path / "moco.pth",
    )
    words = (
        "--import_from", tmp_path / "moco.pth", "--backbone", "timm/resnet18", "--backbone_kwargs",
        '{"channels": [8, 16, 32, 64]}', "--image_size", "32", "--method", "moco", "--output_dir", tmp_path / "moco",
    )  # fmt: skip
    assert call(*words) == 0
    assert "from 'state_dict.module.encoder_q.'" in capsys.readouterr().out
    found, spec, facts = load_backbone(tmp_path / "moco")
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.state_dict().values(), module.state_dict().values(), strict=True)
    )
    assert (spec.name, facts["method"], facts["image_size"]) == ("timm/resnet18", "moco", 32)
    assert call(*words) == 2
    assert call(*words, "--overwrite", "true") == 0
    (tmp_path / "moco" / "summary.json").write_text("{}")
    assert call(*words, "--overwrite", "true") == 2
    assert call("--encoder", tmp_path / "moco", "--output_dir", tmp_path / "out", "--format", "timm") == 0


@pytest.mark.slow  # another interpreter imports everything again
def test_the_script_starts_as_a_file(tmp_path):
    script = Path(export.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--encoder", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_of_a_file_of_dinos_the_teacher_is_taken_and_the_student_can_be(saved, tmp_path, capsys):
    student, teacher = (
        load_backbone(saved("timm/resnet18", seed=seed, **NARROW))[0].state_dict() for seed in (1, 2)
    )
    content = {
        "student": {f"module.backbone.{name}": value for name, value in student.items()},
        "teacher": {f"backbone.{name}": value for name, value in teacher.items()},
    }
    torch.save(content, tmp_path / "dino.pth")
    words = (
        "--import_from",
        tmp_path / "dino.pth",
        "--backbone",
        "timm/resnet18",
        "--backbone_kwargs",
        '{"channels": [8, 16, 32, 64]}',
    )
    choices = (
        ((), teacher),
        (("--use_teacher", "false"), student),
        (("--prefix", "student.module.backbone"), student),
    )
    for number, (more, wanted) in enumerate(choices):
        assert call(*words, *more, "--output_dir", tmp_path / str(number)) == 0
        assert torch.equal(
            load_backbone(tmp_path / str(number))[0].state_dict()["conv1.weight"], wanted["conv1.weight"]
        )
        other = "student.module.backbone" if wanted is teacher else "teacher.backbone"
        assert f"(it also holds {other}: --prefix takes another)" in capsys.readouterr().out
