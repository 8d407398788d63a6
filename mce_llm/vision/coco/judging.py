"""Judging a detector as part of a run: predictions of all processes, their scores, and the files and pictures of both.

The scores themselves are computed in `evaluation`.
"""

from __future__ import annotations

import json
from typing import Any

from PIL import Image
from torch import nn

from mce_llm.running.files import whole_file, write_text
from mce_llm.running.processes import gather, say
from mce_llm.vision.coco.annotations import CocoAnnotations
from mce_llm.vision.coco.batches import evaluation_loader
from mce_llm.vision.coco.dataset import EvaluationImages, read_image
from mce_llm.vision.coco.drawing import draw_detections, sheet
from mce_llm.vision.coco.evaluation import KINDS, Scores, category_table, evaluate_detections, percent
from mce_llm.vision.coco.predictions import detect, gather_results, predict
from mce_llm.vision.coco.settings import CocoDataSettings, ScheduleSettings
from mce_llm.vision.running import RunFolder, progress_bar

_NAMES = {"bbox": "box", "segm": "mask"}
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}


def evaluate_run(
    detector: nn.Module,
    judged: CocoAnnotations,
    data: CocoDataSettings,
    schedule: ScheduleSettings,
    run: RunFolder,
    *,
    step: int,
) -> dict[str, Scores]:
    """Predict with all processes; judge and write on the main one, which tells the others. All processes call this.

    Args:
        detector: Not wrapped for data parallelism.
        judged: The images, with their ground truth.
        data: Sizes of the images.
        schedule: Images at once.
        run: Where predictions_bbox.json, predictions_segm.json, categories.txt and the journal go.
        step: The iteration, for the journal.

    Returns:
        The scores of boxes (`bbox`) and masks (`segm`).
    """
    accelerator = run.accelerator
    share = range(accelerator.process_index, len(judged.images), accelerator.num_processes)
    dataset = EvaluationImages(
        judged, short_side=data.eval_short_side, max_size=data.max_size, positions=list(share)
    )
    batches = evaluation_loader(
        dataset,
        batch_size=schedule.eval_batch_size,
        num_workers=data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    seen = progress_bar(batches, "evaluation", total=len(batches))
    local, positions = predict(detector, seen, judged, accelerator.device, accelerator.autocast())
    results = gather_results(local, positions, [image.id for image in judged.images])
    scores: dict[str, Scores] | None = None
    if accelerator.is_main_process:
        assert judged.ground_truth is not None
        scores = {kind: evaluate_detections(judged.ground_truth, results, kind) for kind in KINDS}
        _write(run, results, scores, judged)
        run.log(step, {f"evaluation/{n}": v for n, v in summary_of(scores).items() if v is not None})
        texts = [
            f"{_NAMES[kind]} AP {percent(part['AP'])}, AP50 {percent(part['AP50'])}, AP75 {percent(part['AP75'])}"
            for kind in KINDS
            if (part := scores[kind].overall)
        ]
        say(
            f"iteration {step}: {'; '.join(texts)} ({len(results)} detections in {len(judged.images)} images)"
        )
    told = gather(scores)[0]
    assert told is not None
    return told


def summary_of(scores: dict[str, Scores]) -> dict[str, float | None]:
    """The scores as box_AP, box_AP50, …, mask_AP, …: shares in [0, 1], None where there is nothing to be found."""
    return {f"{_NAMES[kind]}_{name}": value for kind in KINDS for name, value in scores[kind].overall.items()}


def draw_run(
    detector: nn.Module,
    judged: CocoAnnotations,
    data: CocoDataSettings,
    schedule: ScheduleSettings,
    run: RunFolder,
    *,
    step: int,
) -> None:
    """Draw the detections in the first images, as detections.png and for TensorBoard; on the main process alone.

    Args:
        detector: Not wrapped for data parallelism; it is put in evaluation mode.
        judged: The images.
        data: Their sizes.
        schedule: How many are drawn, and from which score on.
        run: Where the picture goes.
        step: The iteration, for TensorBoard.
    """
    if not run.accelerator.is_main_process or not schedule.drawn_images:
        return
    first = range(min(schedule.drawn_images, len(judged.images)))
    dataset = EvaluationImages(
        judged, short_side=data.eval_short_side, max_size=data.max_size, positions=first
    )
    detector.eval()
    drawn = []
    for scaled, position in (dataset[i] for i in first):
        record = judged.images[position]
        with run.accelerator.autocast():
            found = detect(detector, [scaled], [(record.height, record.width)], run.accelerator.device)[0]
        drawn.append(
            draw_detections(read_image(record), found, judged.category_names, schedule.drawn_threshold)
        )
    picture = sheet(drawn)
    path = run.path / "detections.png"
    with whole_file(path) as beside:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(beside, format="PNG")
    run.picture("detections", picture, step)
    say(f"wrote {path}")


def _write(
    run: RunFolder, results: list[dict[str, Any]], scores: dict[str, Scores], judged: CocoAnnotations
) -> None:
    """The predictions, a file for boxes and one for masks, and AP by category."""
    for kind, field in _FIELDS.items():
        kept = ("image_id", "category_id", "score", field)
        text = json.dumps([{name: result[name] for name in kept} for result in results])
        write_text(run.path / f"predictions_{kind}.json", text)
    names = dict(zip(judged.category_ids, judged.category_names, strict=True))
    write_text(run.path / "categories.txt", category_table(names, scores) + "\n")
