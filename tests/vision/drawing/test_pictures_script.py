"""The command line on a run's folder, made here with random weights and generated images."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.scripts import load_script
from mce_llm.vision.data import AugmentationSettings, DataSettings, open_images, sample_seed, train_views
from mce_llm.vision.drawing.settings import parse_pictures
from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone
from mce_llm.vision.running import run_script

pictures = load_script("vision/pictures.py")

RECIPE = """
output_dir: somewhere/else
dataset: shapes
image_size: 16
limit: 20
eval_limit: 30
num_workers: 0
seed: 3
blur: 'true'
crop_scale_min: 0.5
method: matrix_ssl
backbone: timm/resnet18
epochs: 2
"""


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    lines = [
        {
            "step": 5 * e,
            "epoch": e,
            "train/loss": 3.0 / e,
            "monitor/effective_rank": 2.5,
            "monitor/rankme": 3.0,
        }
        for e in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spectra = [
        {"step": 5 * e, "epoch": e, "encoder": [3.0, 2.0, 1.0], "embedding": [1.0, 0.1]} for e in (1, 2)
    ]
    (folder / "spectra.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spectra))
    torch.manual_seed(0)
    spec = BackboneSpec("timm/resnet18", "cifar", {"channels": [8, 8, 16, 16]})
    facts = {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    save_backbone(build_backbone(spec), spec, folder, facts)
    return folder


def call(*words):
    return run_script(lambda argv: pictures.main(argv), [str(word) for word in words])


def test_everything_that_can_be_drawn_is(run_folder, capsys):
    assert call("--run", run_folder, "--cpu", "true", "--images", 2, "--draws", 1) == 0
    said = capsys.readouterr().out
    there = {path.stem for path in (run_folder / "pictures").iterdir()}
    assert there - {"features_tsne"} == {"views", "spectrum", "features_pca", "curves"}
    assert ("features_tsne" in there) != ("t-SNE is scikit-learn's" in said)
    for path in (run_folder / "pictures").iterdir():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path


def test_views_are_those_that_pretraining_saw(run_folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "draw_views", lambda rows, mean, std: drawn.update(rows=rows))
    monkeypatch.setattr(pictures, "write_png", lambda figure, path: None)
    state = torch.get_rng_state()
    assert call("--run", run_folder, "--what", "views", "--images", 3) == 0
    assert torch.equal(torch.get_rng_state(), state)
    source = open_images(DataSettings(dataset="shapes", image_size=16, limit=20, num_workers=0), "train")
    transform = train_views(
        16, source.mean, source.std, AugmentationSettings(blur="true", crop_scale_min=0.5)
    )
    assert len(drawn["rows"]) == 3
    index = next(i for i in range(20) if torch.equal(source[i][0], drawn["rows"][0].original))
    for epoch, draw in enumerate(drawn["rows"][0].draws):
        torch.default_generator.manual_seed(sample_seed(3, epoch, index))
        for ours, theirs in zip(draw, transform(source[index][0]), strict=True):
            assert torch.equal(ours, theirs)


def test_the_command_line_is_over_the_recipe_and_the_recipe_over_defaults(run_folder):
    parsed = parse_pictures(["--run", str(run_folder), "--limit", "40", "--seed=9"])
    assert parsed.data is not None
    assert (parsed.data.limit, parsed.data.eval_limit, parsed.settings.seed) == (40, 30, 9)
    assert parsed.augmentation.crop_scale_min == 0.5
    assert parsed.settings.destination == run_folder / "pictures"  # not the recipe's output_dir


def test_a_file_of_settings_stands_between_the_run_s_recipe_and_the_command_line(run_folder, tmp_path):
    config = tmp_path / "pictures.yaml"
    config.write_text(f"run: {run_folder}\nlimit: 21\neval_limit: 31\n")
    parsed = parse_pictures(["--config", str(config), "--eval_limit=32"])
    assert (parsed.data.image_size, parsed.data.limit, parsed.data.eval_limit) == (16, 21, 32)
    assert parsed.given["image_size"] == 16


def test_what_a_run_has_not_is_left_out_or_refused(run_folder, tmp_path, capsys):
    (run_folder / "recipe.yaml").unlink()
    (run_folder / "spectra.jsonl").unlink()
    assert call("--run", run_folder, "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    for kind, reason in (
        ("views", "give --dataset"),
        ("features", "give --dataset"),
        ("spectrum", "no spectra.jsonl"),
    ):
        assert re.search(f"{kind}: left out, .*{reason}", said)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["curves.png"]
    assert call("--run", run_folder, "--what", "spectrum") == 2
    assert "no spectra.jsonl" in capsys.readouterr().err


ERRORS = {
    "no folder": (["--run", "/nowhere"], "run '/nowhere' is no folder"),
    "no run": ([], "run"),
    "what": (["--run", "{run}", "--what", "spectra"], r"did you mean 'spectrum'\?"),
    "config": (["--run", "{run}", "--config", "x.yaml"], "no configuration file 'x.yaml'"),
    "numbers": (["--run", "{run}", "--images", "0", "--feature_images", "2"], "feature_images must be at least 3"),
    "unknown": (["--run", "{run}", "--dataste", "shapes"], r"did you mean 'dataset'\?"),
    "nothing": (["--run", "{tmp}"], "has nothing to draw"),
    "no teacher": (["--run", "{run}", "--what", "features", "--use_teacher", "true"], "teacher"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_message(name, run_folder, tmp_path, capsys):
    words, message = ERRORS[name]
    assert call(*[word.format(run=run_folder, tmp=tmp_path) for word in words]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
