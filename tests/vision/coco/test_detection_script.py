"""The detection script, as it is run: trained, interrupted, judged again, and started wrongly."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from helpers.scripts import ROOT, load_script
from helpers.waiting import HANG, wait_until
from mce_llm.vision.running import run_script

detection = load_script("vision/detection.py")


@pytest.fixture
def words(hard_set, tiny_settings):
    """The command line of a run of a few seconds."""

    def make(output, **changed):
        tiny = {
            name: value
            for name, value in vars(tiny_settings(architecture="fpn")).items()
            if value is not None
        }
        settings = {
            **tiny,
            "train_images": hard_set.folder,
            "train_annotations": hard_set.path,
            "eval_images": hard_set.folder,
            "eval_annotations": hard_set.path,
            "short_sides": [48, 64],
            "eval_short_side": 64,
            "max_size": 96,
            "num_workers": 0,
            "filter_empty": False,
            "schedule": "none",
            "iterations": 6,
            "steps": [5],
            "batch_size": 2,
            "warmup_iterations": 2,
            "learning_rate": 0.01,
            "log_every": 2,
            "save_every": 2,
            "eval_every": 4,
            "drawn_images": 2,
            "drawn_threshold": 0.0,
            "output_dir": output,
            "cpu": True,
            **changed,
        }
        line = []
        for name, value in settings.items():
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            line += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
        return line

    return make


def journal(folder):
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        return [{n: v for n, v in json.loads(line).items() if n != "time"} for line in file]


def weights(folder, name="detector.safetensors"):
    return load_file(folder / name)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def stop_after(monkeypatch, iterations):
    """End the process's work at the end of a step, as a kill would: without a save."""
    seen = []

    def leave(save, path):
        seen.append(1)
        if len(seen) == iterations:
            raise KeyboardInterrupt

    monkeypatch.setattr(detection, "leave_if_asked", leave)


def test_a_run_that_is_killed_and_goes_on_ends_with_the_same_weights(
    words, hard_set, tmp_path, monkeypatch, capsys
):
    assert run_script(detection.main, words(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run_script(detection.main, words(tmp_path / "parts")) == 130
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert run_script(detection.main, words(tmp_path / "parts")) == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert journal(tmp_path / "whole") == journal(tmp_path / "parts")
    assert f"going on from {tmp_path / 'parts' / 'checkpoint.pt'}" in capsys.readouterr().out

    # What a run leaves behind.
    folder = tmp_path / "whole"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 6
    assert {"box_AP", "mask_AP", "box_AP50", "mask_APl", "best_box_AP", "backbone_weights"} <= summary.keys()
    assert not (folder / "checkpoint.pt").exists()
    assert (folder / "detections.png").stat().st_size > 1000
    assert len((folder / "categories.txt").read_text().splitlines()) == 4
    steps = [line["step"] for line in journal(folder)]
    assert steps == [2, 4, 4, 6, 6]
    rates = [line["learning_rate"] for line in journal(folder) if "learning_rate" in line]
    assert rates == pytest.approx([0.01 * 0.5005, 0.01, 0.001])

    # The two files of predictions are COCO's, and pycocotools finds in them what the summary says.
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        truth = COCO()
        truth.dataset = json.loads(hard_set.path.read_text())
        # It cannot read a polygon of two points.
        truth.dataset["annotations"][7]["segmentation"] = {"size": [48, 64], "counts": [48 * 64]}
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(str(folder / f"predictions_{kind}.json")), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        for position, statistic in ((0, "AP"), (1, "AP50"), (6, "AR1"), (8, "AR100")):
            assert summary[f"{name}_{statistic}"] == pytest.approx(evaluator.stats[position], abs=1e-9)

    # The same detector, judged again.
    again = words(tmp_path / "again", evaluate_only=True, detector=folder, steps=None, iterations=None)
    assert run_script(detection.main, again) == 0
    judged = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert {n: judged[n] for n in judged if "_A" in n} == {
        n: summary[n] for n in summary if "_A" in n and not n.startswith("best")
    }
    other = other_file(hard_set, tmp_path / "renamed.json", renamed)
    renaming = words(
        tmp_path / "other",
        evaluate_only=True,
        detector=folder,
        steps=None,
        iterations=None,
        eval_annotations=other,
    )
    assert run_script(detection.main, renaming) == 2
    assert "3 is 'car' there and 'cat' here" in capsys.readouterr().err
    best = words(
        tmp_path / "best", evaluate_only=True, detector=folder / "detector_best.safetensors", steps=None
    )
    assert run_script(detection.main, [*best, "--fpn_channels", "16"]) == 2
    assert (
        "trained with other settings than given: fpn_channels 16 (the detector has 8)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"train_images": None, "train_annotations": None}, "nothing to train on"),
        ({"eval_annotations": "nowhere.json"}, "there is no file nowhere.json"),
        (
            {"backbone": "resnet18", "backbone_checkpoint": "runs/none", "backbone_kwargs": None},
            "no such folder",
        ),
        ({"evaluate_only": True, "detector": "runs/none"}, "there is no file runs/none/detector.safetensors"),
        ({"image_orientation": "upwards"}, "image_orientation must be one of stored, upright"),
        ({"learning_rat": 1}, r"unknown setting 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ({"learning_rate": 1e30, "warmup_iterations": 0}, "the loss is not finite at iteration"),
    ],
)
def test_what_is_refused(words, tmp_path, capsys, changed, pattern):
    assert run_script(detection.main, words(tmp_path / "out", **changed)) == 2
    assert re.search(pattern, capsys.readouterr().err)


def other_file(hard_set, path, change):
    content = json.loads(hard_set.path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def more(content):
    content["categories"] += [{"id": 44, "name": "bus"}]


def renamed(content):
    content["categories"][1]["name"], content["categories"][2]["name"] = "cat", "car"


def renumbered(content):
    for record in content["categories"]:
        record["id"] += 1
    for record in content["annotations"]:
        record["category_id"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more, "different categories: 0 only in the first (–), 1 only in the second (44 bus)"),
        (
            renamed,
            "call 2 of their 3 categories by different names: 3 is 'car' there and 'cat' here, 17 is 'cat' there",
        ),
        (renumbered, "the names are the same, so number the categories alike in both"),
    ],
)
def test_other_categories_are_refused(words, hard_set, tmp_path, capsys, change, message):
    other = other_file(hard_set, tmp_path / "other.json", change)
    assert run_script(detection.main, words(tmp_path / "out", eval_annotations=other)) == 2
    assert message in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_pixels(words, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run_script(detection.main, words(tmp_path / "out")) == 130
    assert run_script(detection.main, words(tmp_path / "out", image_orientation="upright")) == 2
    assert "cannot go on with other settings: image_orientation" in capsys.readouterr().err


def test_problems_of_both_files_are_said_at_once(words, hard_set, tmp_path, capsys):
    def nothing(content):
        content["annotations"][0]["bbox"] = None

    files = {
        f"{split}_annotations": other_file(hard_set, tmp_path / f"{split}.json", nothing)
        for split in ("train", "eval")
    }
    assert run_script(detection.main, words(tmp_path / "out", **files)) == 2
    said = capsys.readouterr().err
    for file in files.values():
        assert f"{file} cannot be used:" in said
    assert not (tmp_path / "out").exists()


def launch(line, processes=1, **options):
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes > 1:
        command += [
            "--config_file",
            str(ROOT / "recipes/accelerate/cpu.yaml"),
            "--num_processes",
            str(processes),
        ]
    else:
        command += [
            "--num_processes",
            "1",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
        ]
        command += ["--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, str(ROOT / "vision" / "detection.py"), *line],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finished(process, timeout=900):
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_two_processes_judge_every_image_once(words, tmp_path):
    """Six images over two processes, then over one: the same predictions, in the same order.

    Training is another matter, see the next test.
    """
    finished(launch(words(tmp_path / "trained")))
    files = {}
    for processes in (1, 2):
        line = words(
            tmp_path / f"by{processes}", evaluate_only=True, detector=tmp_path / "trained", steps=None
        )
        finished(launch(line, processes))
        files[processes] = [
            (tmp_path / f"by{processes}" / f"predictions_{kind}.json").read_text()
            for kind in ("bbox", "segm")
        ]
    assert len(json.loads(files[1][0])) >= 6
    assert files[1] == files[2]


@pytest.mark.slow
def test_two_processes_see_the_batch_of_one_and_their_norms_too(words, tmp_path):
    """What is the same for two processes, after one step on two images of equal size, and what is not.

    The images are the same, so the norms of body and pyramid see the same; with norms of each process alone (the
    control) they do not. The losses differ: the samplers of RPN and RoI heads draw on each process by itself, and the
    mask loss is a mean over the positive boxes of a process. So weights agree roughly, and not to the bit.
    """
    step = {
        "iterations": 1,
        "warmup_iterations": 0,
        "steps": None,
        "eval_every": None,
        "short_sides": [64],
        "filter_empty": True,
        "log_every": 1,
        "drawn_images": 0,
    }
    output = finished(launch(words(tmp_path / "two", norm="sync_bn", **step), processes=2))
    assert "SyncBN over 2 processes" in output
    finished(launch(words(tmp_path / "one", norm="sync_bn", **step)))
    finished(launch(words(tmp_path / "apart", norm="bn", **step), processes=2))
    two, one, apart = (weights(tmp_path / name) for name in ("two", "one", "apart"))
    assert two.keys() == one.keys() == apart.keys()
    statistics = [name for name in one if "running" in name and name.startswith("backbone.")]
    assert len(statistics) > 40
    for name in statistics:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    assert sum(not torch.allclose(apart[n], one[n], rtol=1e-3, atol=1e-4) for n in statistics) > 30
    assert journal(tmp_path / "two")[0]["loss"] == pytest.approx(
        journal(tmp_path / "one")[0]["loss"], rel=0.1
    )


@pytest.mark.slow
def test_killed_launches_go_on_to_the_same_weights(words, tmp_path):
    settings = {"iterations": 24, "steps": [16], "eval_every": None, "save_every": 4, "log_every": 4}
    finished(launch(words(tmp_path / "whole", **settings)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        folder = tmp_path / number.name
        line = words(folder, **settings)
        process = launch(line, start_new_session=True)
        wait_until((folder / "checkpoint.pt").exists, process)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=HANG)
        assert process.returncode != 0, output
        assert not (folder / "summary.json").exists(), "it was too quick to be killed"
        if number == signal.SIGTERM:
            assert "the same command goes on from" in output
        output = finished(launch(line))
        assert "going on from" in output
        assert_same(weights(tmp_path / "whole"), weights(folder))
        assert journal(tmp_path / "whole") == journal(folder)
