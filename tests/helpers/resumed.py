"""Vision scripts that are stopped, and started again with one setting changed: for every setting of every one of them."""

import importlib
import json
import shutil
import signal
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from helpers.scripts import load_script
from mce_llm.vision.coco.settings import CocoDataSettings, DetectorSettings, ScheduleSettings
from mce_llm.vision.data import AugmentationSettings, DataSettings
from mce_llm.vision.probing.encoders import EncoderSettings
from mce_llm.vision.probing.fine_tuning import FineTuningSettings
from mce_llm.vision.probing.protocol import ProbeSettings
from mce_llm.vision.running import RunSettings, run_script
from mce_llm.vision.training.settings import PretrainSettings

NET = {
    "backbone": "timm/resnet18",
    "stem": "cifar",
    "backbone_kwargs": "{channels: [8, 8, 8, 8], stem_width: 8}",
}
DATA = {"dataset": "shapes", "limit": 40, "eval_limit": 20, "image_size": 32, "num_workers": 0, "cpu": True}
PRETRAIN = {
    **NET,
    **DATA,
    "embedding_dim": 12,
    "projector_dim": 12,
    "predictor_dim": 6,
    "teacher_momentum": 0.9,
    "epochs": 3,
    "batch_size": 10,
    "base_learning_rate": 1.0,
    "warmup_epochs": 1,
    "monitor_images": 20,
    "knn_k": 3,
    "blur": "true",
}
PROBE = {
    **NET,
    **DATA,
    "optimizer": "sgd",
    "batch_size": 10,
    "epochs": 3,
    "learning_rates": 0.1,
    "image_size": 8,
}
SEMI = {
    **NET,
    **DATA,
    "fraction": 1.0,
    "batch_size": 10,
    "epochs": 3,
    "encoder_learning_rate": 0.05,
    "image_size": 8,
}
DETECTION = {
    "architecture": "fpn",
    "backbone": "timm/resnet18",
    "norm": "bn",
    "fpn_channels": 8,
    "cpu": True,
    "backbone_kwargs": NET["backbone_kwargs"],
    "box_head_features": 16,
    "mask_head_channels": 8,
    "anchor_sizes": "8 16 32 48 64",
    "rpn_before_nms_train": 60,
    "rpn_after_nms_train": 30,
    "rpn_before_nms_eval": 60,
    "rpn_after_nms_eval": 30,
    "rpn_samples": 32,
    "roi_samples": 16,
    "score_threshold": 0.0,
    "detections_per_image": 5,
    "short_sides": 48,
    "eval_short_side": 48,
    "max_size": 96,
    "num_workers": 0,
    "schedule": "none",
    "iterations": 6,
    "steps": 5,
    "batch_size": 2,
    "train_limit": 8,
    "eval_limit": 4,
    "warmup_iterations": 5,
    "warmup_factor": 0.5,
    "log_every": 1,
    "learning_rate": 0.01,
    "save_every": 2,
    "eval_every": 5,
    "drawn_images": 2,
    "drawn_threshold": 0.0,
}


class Script(NamedTuple):
    """A script that can be gone on with.

    Attributes:
        path: Where it is.
        base: The settings of the run.
        groups: Its dataclasses.
        loop: The module whose `leave_if_asked` is called at each step, and whose `save_checkpoint` writes; None: itself.
        stop: The step at which the run is stopped.
    """

    path: str
    base: dict
    groups: tuple
    loop: str | None
    stop: int


SCRIPTS = {
    "pretrain": Script(
        "vision/pretrain.py",
        PRETRAIN,
        (PretrainSettings, DataSettings, AugmentationSettings, RunSettings),
        None,
        5,
    ),
    "linear_probe": Script(
        "vision/linear_probe.py",
        PROBE,
        (EncoderSettings, DataSettings, ProbeSettings, RunSettings),
        "mce_llm.vision.probing.fitting",
        5,
    ),
    "semi_supervised": Script(
        "vision/semi_supervised.py",
        SEMI,
        (EncoderSettings, DataSettings, FineTuningSettings, RunSettings),
        "mce_llm.vision.probing.fine_tuning",
        5,
    ),
    "detection": Script(
        "vision/detection.py",
        DETECTION,
        (CocoDataSettings, DetectorSettings, ScheduleSettings, RunSettings),
        None,
        3,
    ),
}


def command_line(settings):
    """The words of a command, a list where a value has several."""
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{name}={text}"] if text.startswith("{") else [f"--{name}", *text.split()]
    return words


def start(script, settings, patch, *, stop=0):
    """Run a script in this process; (exit code, what was measured and saved on the way). `stop`: SIGTERM at that step."""
    module = load_script(script.path)
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision, maybe
    loop = importlib.import_module(script.loop) if script.loop else module
    seen = {"saves": 0, "neighbours": []}
    leave, steps = loop.leave_if_asked, [0]

    def leaving(save, checkpoint):
        steps[0] += 1
        if steps[0] == stop:
            signal.raise_signal(signal.SIGTERM)
        leave(save, checkpoint)

    def counted(function):
        def saving(*args, **named):
            seen["saves"] += 1
            return function(*args, **named)

        return saving

    saver = (
        importlib.import_module("mce_llm.vision.training.state")
        if script.path.endswith("pretrain.py")
        else loop
    )
    watching = importlib.import_module("mce_llm.vision.training.watching")
    accuracy = watching.knn_accuracy

    def voting(bank, labels, queries, *args, **named):
        seen["neighbours"].append((len(bank), len(queries), named["k"], named["temperature"]))
        return accuracy(bank, labels, queries, *args, **named)

    with patch.context() as patched:
        patched.setattr(loop, "leave_if_asked", leaving)
        patched.setattr(saver, "save_checkpoint", counted(saver.save_checkpoint))
        patched.setattr(watching, "knn_accuracy", voting)
        code = run_script(module.main, command_line(settings))
    return code, seen


def result(folder):
    """What a finished run left: weights by file and name, and everything else that does not depend on the clock."""
    weights, rest = {}, {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            weights |= {f"{name}/{key}": value for key, value in load_file(path).items()}
        elif path.suffix in (".png", ".txt") or name.startswith(("predictions", "spectra")):
            rest[name] = [_timeless(line) for line in path.read_bytes().decode("latin1").splitlines()]
        elif name == "metrics.jsonl":
            rest[name] = [_timeless(line) for line in path.read_text().splitlines()]
        elif name == "summary.json":
            rest[name] = _timeless(path.read_text())
    return weights, rest


def _timeless(text):
    """A line of JSON without what the clock says and without the protocol's own words; other text as it is."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    clock = ("time", "seconds", "train/images_per_second", "protocol")
    return {k: v for k, v in values.items() if k not in clock} if isinstance(values, dict) else values


def go_on(script, base, settings, folder, patch):
    """A stopped run gone on with other settings: (exit code, weights, the rest)."""
    shutil.copytree(base, folder)
    code, seen = start(script, {**settings, "output_dir": folder}, patch)
    weights, rest = result(folder)
    return code, weights, {**rest, **seen}


def equal(one, other):
    """Whether weights agree to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def class_folders(folder, count):
    """Two classes of so many images each, to train on and to be judged on."""
    for kind in ("one", "two"):
        for split in ("train", "val"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", (40, 40), (9 * number, 200, 30)).save(
                    folder / split / kind / f"{number}.png"
                )
