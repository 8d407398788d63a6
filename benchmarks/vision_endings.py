"""How long each vision script that loads images takes to end, whatever ends it, and whether it leaves processes behind.

    python benchmarks/vision_endings.py --work DIR [--scripts knn detection] [--endings crash] [--workers 4]

Every script is run for real on a CPU, with small networks and images that it makes itself. When it is at work, something
ends it: a broken image, Ctrl-C, SIGTERM, numbers that are not finite, or a worker that is killed. The table has the seconds
from that moment (from the error's line, where there is one) to the end of the process, and its exit code. A process that
takes longer than `--limit`, or leaves another one behind, is marked, and the exit code of this program is 1 then.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = ("error", "interrupt", "terminate", "nan", "crash")
# The exit codes that each ending may have: where nothing is trained, SIGTERM has nothing to wait for.
CODES = {"error": 2, "interrupt": 130, "terminate": 143, "nan": 2, "crash": 2}
NET = ["--backbone", "timm/resnet18", "--backbone_kwargs", '{"channels": [8, 8, 8, 8], "stem_width": 8}']
_MANY = 12_000  # images, so that a pass over them takes far longer than a script needs to be caught in it

_SECONDS_TO_BEGIN = 300  # for a script to be at work, or to come to the error that it is to end by


class Case(NamedTuple):
    """One run: its command line, and what stands in its output or its journal when it is at work."""

    words: list[str]
    output: Path
    sign: str  # a line of the output that begins so; empty: a line of the journal


def make_images(folder: Path, count: int, broken: bool) -> Path:
    """Class folders in train and val, links to a few files; one of those of training may be cut short."""
    if folder.exists():
        return folder
    numbers = np.random.default_rng(0)
    files = folder / ".files"
    files.mkdir(parents=True)
    for number in range(8):
        Image.fromarray(numbers.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(files / f"{number}.png")
    (files / "broken.png").write_bytes((files / "0.png").read_bytes()[:200])
    for split, images in (("train", count), ("val", max(count, 16) if count == _MANY else 16)):
        for number in range(images):
            place = folder / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            bad = broken and number == images // 6 and (split == "train" or count == _MANY)
            (place / f"{number:05}.png").symlink_to(files / ("broken.png" if bad else f"{number % 8}.png"))
    return folder


def make_coco(folder: Path, broken: bool) -> Path:
    """Thirty images with a rectangle each; one has another size than its annotation says."""
    numbers, images, instances = np.random.default_rng(0), [], []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 31):
        size = (43, 59, 3) if broken and number == 27 else (48, 64, 3)
        Image.fromarray(numbers.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0, "category_id": 1}
        outline = [[10, 10, 40, 10, 40, 30, 10, 30]]
        instances.append({"id": number, "image_id": number, "segmentation": outline, **box})
    whole = {"images": images, "annotations": instances, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(whole))
    return folder


def make_encoder(folder: Path, dataset: Path, finite: bool) -> Path:
    """The folder of a pretraining run, as far as the probes and the pictures look at it."""
    spec = BackboneSpec("timm/resnet18", "imagenet", {"channels": [8, 8, 8, 8], "stem_width": 8})
    module = build_backbone(spec)
    if not finite:
        torch.nn.init.constant_(next(module.parameters()), float("nan"))
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(module, spec, folder, {"image_size": 32, "epochs": 1})
    (folder / "recipe.yaml").write_text(f"dataset: {dataset}\nimage_size: 32\n")
    return folder


def make_case(script: str, ending: str, workers: int, work: Path) -> Case:
    """A run that would go on for minutes, or until the ending that it is for."""
    output = work / f"{script}_{ending}_{workers}"
    broken = ending == "error"
    # A probe's is multiplied by batch_size / 256; it makes infinite logits, and still is a float32 then.
    large_rate = "3e39" if script in ("linear_probe", "semi_supervised") else "1e30"
    rate = large_rate if ending == "nan" else "0.01"
    few = ["--dataset", str(make_images(work / f"few_{broken}", 48, broken))]
    large = make_images(work / f"many_{broken}", _MANY, broken)
    common = ["--output_dir", str(output), "--num_workers", str(workers), "--cpu", "true"]
    sized = [*few, *common, "--image_size", "32", "--batch_size", "16", "--epochs", "100000"]
    if script == "pretrain":
        small = [
            "--embedding_dim",
            "8",
            "--projector_dim",
            "8",
            "--predictor_dim",
            "8",
            "--monitor_every",
            "0",
        ]
        return Case([*NET, *sized, *small, "--base_learning_rate", rate, "--warmup_epochs", "0"], output, "")
    if script == "linear_probe":
        return Case([*NET, *sized, "--optimizer", "sgd", "--learning_rates", rate], output, "")
    if script == "semi_supervised":
        rates = ["--encoder_learning_rate", rate, "--classifier_learning_rate", rate]
        return Case([*NET, *sized, "--fraction", "1.0", *rates], output, "")
    if script == "detection":
        coco = make_coco(work / f"coco_{broken}", broken)
        good = make_coco(work / "coco_False", False)
        words = ["--architecture", "fpn", *NET, "--norm", "bn", "--anchor_sizes", "8", "16", "32", "48", "64"]
        for name in ("fpn_channels", "box_head_features", "mask_head_channels", "roi_samples", "rpn_samples"):
            words += [f"--{name}", "16"]
        for name in ("before_nms_train", "after_nms_train", "before_nms_eval", "after_nms_eval"):
            words += [f"--rpn_{name}", "60"]
        words += ["--train_images", str(coco), "--train_annotations", str(coco / "instances.json")]
        words += ["--eval_images", str(good), "--eval_annotations", str(good / "instances.json")]
        words += ["--short_sides", "48", "--eval_short_side", "48", "--max_size", "96", "--batch_size", "2"]
        words += ["--schedule", "none", "--iterations", "100000", "--steps", "90000", "--log_every", "1"]
        return Case([*words, "--warmup_iterations", "1", "--learning_rate", rate, *common], output, "")
    encoder = make_encoder(work / f"encoder_{ending}_{script}", large, ending != "nan")
    if script == "knn":
        words = ["--encoder", str(encoder), "--dataset", str(large), "--k", "3", "--encode_batch_size", "16"]
        return Case([*words, *common], output, "from the encoder's file")
    words = [
        "--run",
        str(encoder),
        "--what",
        "features",
        "--feature_images",
        str(_MANY),
        "--batch_size",
        "16",
    ]
    words += ["--num_workers", str(workers), "--cpu", "true"]
    return Case(words, output, "encoder:")


class Ended(NamedTuple):
    """How a run ended."""

    seconds: float | None  # None: not within the limit
    code: int | None
    left: int
    said: list[str]


def run_case(script: str, case: Case, ending: str, workers: int, limit: float) -> Ended:
    """Start a script, end it in the given way when it is at work, and see what becomes of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "vision" / f"{script}.py"), *case.words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    lines: queue.Queue[tuple[float, str]] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    said: list[str] = []
    family: list[psutil.Process] = []
    begun = _until_at_work(process, case, ending, workers, lines, said)
    family = _children(process)
    if ending == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    elif ending == "terminate":
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does
    elif ending == "crash":
        family[0].kill()
    try:
        code: int | None = process.wait(limit)
        seconds: float | None = time.monotonic() - begun
    except subprocess.TimeoutExpired:
        code, seconds = None, None
    _, left = psutil.wait_procs(family, 2)
    for each in [*left, *([psutil.Process(process.pid)] if code is None else [])]:
        each.kill()
    process.wait()
    reader.join(5)
    said += [line for _, line in _waiting(lines)]
    return Ended(seconds, code, len(left) if code is not None else 0, said)


def _until_at_work(
    process: subprocess.Popen[str],
    case: Case,
    ending: str,
    workers: int,
    lines: queue.Queue[tuple[float, str]],
    said: list[str],
) -> float:
    """The moment from which its end is counted."""
    signed, until = 0.0, time.monotonic() + _SECONDS_TO_BEGIN
    while process.poll() is None and time.monotonic() < until:
        for moment, line in _waiting(lines):
            said.append(line)
            if line.startswith("error:"):
                return moment
            if case.sign and line.startswith(case.sign):
                signed = moment
        if ending not in ("error", "nan") and len(_children(process)) >= workers:
            journal = case.output / "metrics.jsonl"
            if not case.sign and journal.exists() and journal.read_text().count("\n") >= 2:
                return time.monotonic()
            if signed and time.monotonic() - signed > 3:  # nothing says that images are being encoded
                return time.monotonic()
        time.sleep(0.02)
    if ending not in ("error", "nan") and process.poll() is not None:
        said += [line for _, line in _waiting(lines)]
        raise RuntimeError("ended before it was at work:\n" + "\n".join(said[-12:]))
    return time.monotonic()


def _read(stream: object, lines: queue.Queue[tuple[float, str]]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put((time.monotonic(), line.strip()))


def _waiting(lines: queue.Queue[tuple[float, str]]) -> list[tuple[float, str]]:
    found = []
    while not lines.empty():
        found.append(lines.get())
    return found


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> int:
    """Run all cases, one after the other, and print the table."""
    scripts = ("pretrain", "detection", "linear_probe", "semi_supervised", "knn", "pictures")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder for images and runs")
    parser.add_argument("--scripts", nargs="+", default=scripts, choices=scripts)
    parser.add_argument("--endings", nargs="+", default=ENDINGS, choices=ENDINGS)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 4])
    parser.add_argument("--limit", type=float, default=60, help="seconds that an end may take")
    asked = parser.parse_args()
    # A shell starts what runs in the background deaf to Ctrl-C, and the scripts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked.work.mkdir(parents=True, exist_ok=True)
    bad = 0
    print(
        "| script | ending | workers | seconds to the end | exit code | processes left | error |\n"
        "|---|---|---|---|---|---|---|"
    )
    for script, ending, workers in itertools.product(asked.scripts, asked.endings, asked.workers):
        if ending == "crash" and not workers:
            continue
        case = make_case(script, ending, workers, asked.work)
        ended = run_case(script, case, ending, workers, asked.limit)
        wrong = ended.code != CODES[ending] or ended.left > 0
        bad += wrong
        shown = "HANGS" if ended.seconds is None else f"{ended.seconds:.1f}"
        error = next((line for line in ended.said if line.startswith("error:")), "")[7:80]
        print(
            f"| {script} | {ending} | {workers} | {shown} | {ended.code} | {ended.left} | {error} |",
            flush=True,
        )
        if wrong:
            print("\n".join(f"    {line[:200]}" for line in ended.said[-12:]), file=sys.stderr, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
