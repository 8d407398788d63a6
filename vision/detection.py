"""Train Mask R-CNN on COCO around a pretrained ResNet, and judge it as COCO does.

    accelerate launch vision/detection.py --config vision/configs/coco_c4_1x.yaml \
        --backbone_checkpoint runs/matrix_ssl --output_dir runs/coco_c4

Every setting of the YAML file can be overridden on the command line; --help lists them. The same command, started
again after an interruption, goes on from its last checkpoint. With --evaluate_only true --detector runs/coco_c4 a
trained detector is judged and nothing is trained. summary.json has the AP of boxes and of masks, categories.txt that of
each category; predictions_bbox.json and predictions_segm.json are in COCO's result format; detections.png shows some.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mce_llm.running.preemption import training
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.coco.annotations import CocoAnnotations, read_annotations
from mce_llm.vision.coco.batches import training_loader
from mce_llm.vision.coco.body import Body, load_body
from mce_llm.vision.coco.categories import check_same_categories
from mce_llm.vision.coco.dataset import TrainingImages
from mce_llm.vision.coco.detector import build_detector, with_synchronized_norms
from mce_llm.vision.coco.detector_files import (
    BEST,
    LAST,
    TrainedDetector,
    load_detector,
    write_facts,
    write_weights,
)
from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.evaluation import KINDS, Scores, percent
from mce_llm.vision.coco.judging import draw_run, evaluate_run, summary_of
from mce_llm.vision.coco.settings import CocoDataSettings, DetectorSettings, ScheduleSettings
from mce_llm.vision.coco.training import TrainingState, make_optimizer, train_stretch
from mce_llm.vision.running import (
    ResumeRules,
    RunFolder,
    RunSettings,
    images_per_process,
    input_of_file,
    leave_if_asked,
    load_checkpoint,
    open_run,
    progress_bar,
    run_script,
    save_checkpoint,
)
from mce_llm.vision.training.optimizers import restore_optimizer

# A run that goes on with other values of these would not fit its state, or would be neither run.
_FIXED = (
    "architecture",
    "backbone",
    "backbone_kwargs",
    "backbone_checkpoint",
    "backbone_weights",
    "norm",
    "trainable_layers",
    "anchor_sizes",
    "fpn_channels",
    "box_head_features",
    "mask_head_channels",
    "train_annotations",
    "train_limit",
    "image_orientation",
    "filter_empty",
    "group_by_shape",
    "batch_size",
    "seed",
    "evaluate_only",
    "detector",
)
# `schedule` is a name for `iterations` and `steps`; where images lie does not matter, as their annotations do.
_WITHOUT_EFFECT = ("schedule", "eval_at_start", "eval_batch_size", "train_images", "eval_images")


@dataclass(frozen=True)
class Task:
    """A run of training: what is trained, on which images, judged on which, and its state, which moves on."""

    run: RunFolder
    data: CocoDataSettings
    schedule: ScheduleSettings
    trained: CocoAnnotations
    positions: list[int]  # the images among them that are trained on
    judged: CocoAnnotations
    detector: nn.Module
    model: nn.Module  # the detector, wrapped for data parallelism
    optimizer: Any
    state: TrainingState


def main(argv: Sequence[str] | None = None) -> None:
    """Train and evaluate, or evaluate alone, as the configuration says.

    Args:
        argv: The command line; that of the process by default.

    Raises:
        ConfigurationError: Settings that cannot be used.
    """
    groups = (CocoDataSettings, DetectorSettings, ScheduleSettings, RunSettings)
    words = sys.argv[1:] if argv is None else argv
    (data, settings, schedule, running), given = parse_settings(groups, words, description=__doc__)

    rules = ResumeRules((data, settings, schedule, running), _FIXED, _WITHOUT_EFFECT)
    # Data are checked before anything is written.
    judged, trained = _read(data, train=not schedule.evaluate_only)
    if schedule.evaluate_only:
        run = open_run(running, given, rules=rules)
        say(judged.summary())
        judge(judged, data, schedule, run, given)
        return
    if trained is None:
        raise ConfigurationError("nothing to train on: give train_images and train_annotations")
    _same_categories(trained, judged, trained.path)
    positions = _positions(trained, data)
    run = open_run(running, given, rules=rules)
    say(judged.summary())
    images_per_process(schedule.batch_size, run.accelerator.num_processes)
    run.check_inputs(
        {
            "training images": input_of_file(trained.path, [image.path for image in trained.images]),
            "images for evaluation": input_of_file(
                judged.path, [image.path for image in judged.images], fixed=False
            ),
        }
    )

    body, detector = build(settings, trained, run)
    say(schedule.summary())
    model, optimizer = run.accelerator.prepare(detector, make_optimizer(detector, schedule))
    detector = run.accelerator.unwrap_model(model)
    state = restore(run, detector, optimizer, schedule)
    task = Task(run, data, schedule, trained, positions, judged, detector, model, optimizer, state)
    scores = train(task)
    say(f"best box AP {percent(state.best)} at iteration {state.best_iteration} ({BEST})")
    draw_run(detector, judged, data, schedule, run, step=state.iteration)
    run.finish(
        {
            "iterations": state.iteration,
            **summary_of(scores),
            "best_box_AP": state.best,
            "best_iteration": state.best_iteration,
            "backbone": body.spec.name,
            "backbone_weights": body.origin,
        }
    )


def judge(
    judged: CocoAnnotations,
    data: CocoDataSettings,
    schedule: ScheduleSettings,
    run: RunFolder,
    given: Mapping[str, Any],
) -> None:
    """Evaluate a trained detector and train nothing."""
    assert schedule.detector is not None
    loaded = load_detector(schedule.detector, given)
    _same_categories(loaded, judged, loaded.origin)
    say(f"detector: {loaded.origin}")
    module = loaded.module.to(run.accelerator.device)
    scores = evaluate_run(module, judged, data, schedule, run, step=0)
    draw_run(module, judged, data, schedule, run, step=0)
    run.finish({"detector": str(loaded.origin), **summary_of(scores)})


def build(settings: DetectorSettings, trained: CocoAnnotations, run: RunFolder) -> tuple[Body, nn.Module]:
    """The detector around its backbone, and detector.json, which describes it."""
    accelerator = run.accelerator
    torch.manual_seed(run.settings.seed)
    body = load_body(settings)
    detector: nn.Module = build_detector(body, len(trained.category_ids), settings)
    say(trained.summary())
    say(
        f"backbone: {body.spec.name}, {body.origin}; images are normalised by mean {body.mean}, std {body.std}"
    )
    if settings.norm == "sync_bn":
        detector, sentence = with_synchronized_norms(
            detector, world_size=accelerator.num_processes, device=accelerator.device
        )
        say(sentence)
    if accelerator.is_main_process:
        write_facts(run.path, body, settings, trained)
    return body, detector


def save(task: Task) -> None:
    """Write the checkpoint."""
    scaler = task.run.accelerator.scaler
    save_checkpoint(
        task.run.checkpoint_file,
        {
            "state": task.state.as_dict(),
            "detector": task.detector.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
    )


def restore(run: RunFolder, detector: nn.Module, optimizer: Any, schedule: ScheduleSettings) -> TrainingState:
    """Go on from the checkpoint, if there is one. Random states are not restored: each step has a seed of its own.

    Raises:
        ConfigurationError: It is beyond the end of the schedule.
    """
    if run.checkpoint is None:
        return TrainingState()
    saved, scaler = load_checkpoint(run.checkpoint), run.accelerator.scaler
    state = TrainingState(**saved["state"])
    detector.load_state_dict(saved["detector"])
    restore_optimizer(optimizer, saved["optimizer"])
    if scaler is not None and saved["scaler"] is not None:
        scaler.load_state_dict(saved["scaler"])
    if state.iteration > (schedule.iterations or 0):
        raise ConfigurationError(
            f"iterations {schedule.iterations} is before the {state.iteration} that are done; give at least as many"
        )
    run.rewind(state.iteration)
    return state


def train(task: Task) -> dict[str, Scores]:
    """Train from one evaluation to the next; gives the last scores."""
    schedule, state = task.schedule, task.state
    assert schedule.iterations is not None
    if schedule.eval_at_start and state.iteration == 0 and state.evaluated < 0:
        evaluate(task)
    with progress_bar(schedule.iterations, "training", initial=state.iteration) as bar:
        while state.iteration < schedule.iterations:
            due = schedule.eval_every and state.iteration and state.iteration % schedule.eval_every == 0
            if due and state.evaluated != state.iteration:  # also where a run was stopped while it evaluated
                evaluate(task)
            stop = schedule.iterations
            if schedule.eval_every:
                stop = min(stop, (state.iteration // schedule.eval_every + 1) * schedule.eval_every)
            train_until(stop, task, bar)
            save(task)
    return evaluate(task)


def train_until(stop: int, task: Task, bar: Any) -> None:
    """Train from the iteration that the run has come to until another one."""
    data, accelerator, seed = task.data, task.run.accelerator, task.run.settings.seed
    dataset = TrainingImages(
        task.trained,
        seed=seed,
        short_sides=data.short_sides,
        max_size=data.max_size,
        flip_probability=data.flip_probability,
    )
    batches = training_loader(
        dataset,
        task.trained,
        positions=task.positions,
        group_by_shape=data.group_by_shape,
        batch_size=task.schedule.batch_size,
        seed=seed,
        start=task.state.iteration,
        stop=stop,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )

    def after_step() -> None:
        if task.state.iteration % task.schedule.save_every == 0:
            save(task)
        leave_if_asked(partial(save, task), task.run.checkpoint_file)

    with training():
        train_stretch(
            task.model,
            task.optimizer,
            batches,
            task.state,
            task.schedule,
            accelerator,
            seed=seed,
            after_step=after_step,
            log=task.run.log,
            bar=bar,
        )


def evaluate(task: Task) -> dict[str, Scores]:
    """Judge the detector as it is, keep its weights, those of the best one apart, and save."""
    state = task.state
    scores = evaluate_run(
        task.detector, task.judged, task.data, task.schedule, task.run, step=state.iteration
    )
    state.evaluated = state.iteration
    ap = scores[KINDS[0]].overall["AP"] or 0.0
    better = ap > state.best
    if better:
        state.best, state.best_iteration = ap, state.iteration
    if task.run.accelerator.is_main_process:
        write_weights(task.run.path / LAST, task.detector)
        if better:
            write_weights(task.run.path / BEST, task.detector)
    save(task)
    return scores


def _read(data: CocoDataSettings, *, train: bool) -> tuple[CocoAnnotations, CocoAnnotations | None]:
    """The annotations to be judged on and those to train on; what is wrong in either is said at once."""
    found: list[CocoAnnotations] = []
    problems = []
    for split in ("eval", "train")[: 1 + (train and data.train_annotations is not None)]:
        annotations, images, limit = (
            getattr(data, f"{split}_{name}") for name in ("annotations", "images", "limit")
        )
        try:
            found.append(
                read_annotations(
                    annotations,
                    images,
                    keep_ground_truth=split == "eval",
                    limit=limit,
                    upright=data.image_orientation == "upright",
                )
            )
        except CocoDataError as error:
            problems.append(str(error))
    if problems:
        raise CocoDataError("\n".join(dict.fromkeys(problems)))  # one file may be both
    return found[0], found[1] if len(found) > 1 else None


def _positions(trained: CocoAnnotations, data: CocoDataSettings) -> list[int]:
    """Which images are trained on."""
    positions = trained.with_instances() if data.filter_empty else list(range(len(trained.images)))
    if not positions:
        raise CocoDataError(f"{trained.path} has no image with instances to train on")
    return positions


def _same_categories(known: CocoAnnotations | TrainedDetector, judged: CocoAnnotations, source: Path) -> None:
    """A detector is judged on the categories that it knows."""
    check_same_categories(
        known.category_ids,
        known.category_names,
        str(source),
        judged.category_ids,
        judged.category_names,
        str(judged.path),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
