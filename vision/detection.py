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

import torch
from torch import nn

from mce_llm.running.preemption import training
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.coco.annotations import CocoAnnotations, read_annotations
from mce_llm.vision.coco.batches import training_loader
from mce_llm.vision.coco.body import load_body
from mce_llm.vision.coco.dataset import TrainingImages
from mce_llm.vision.coco.detector import build_detector, with_synchronized_norms
from mce_llm.vision.coco.detector_files import BEST, LAST, load_detector, write_facts, write_weights
from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.evaluation import KINDS, Scores, percent
from mce_llm.vision.coco.judging import draw_run, evaluate_run, summary_of
from mce_llm.vision.coco.settings import CocoDataSettings, DetectorSettings, ScheduleSettings
from mce_llm.vision.coco.training import TrainingState, make_optimizer, train_stretch
from mce_llm.vision.running import (
    RunSettings,
    leave_if_asked,
    load_checkpoint,
    open_run,
    progress_bar,
    run_script,
    save_checkpoint,
)

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
    "filter_empty",
    "group_by_shape",
    "batch_size",
    "seed",
)


def main(argv: list[str] | None = None) -> None:
    """Train and evaluate, or evaluate alone, as the configuration says."""
    groups = (CocoDataSettings, DetectorSettings, ScheduleSettings, RunSettings)
    (data, model_settings, schedule, running), given = parse_settings(
        groups, sys.argv[1:] if argv is None else argv, description=(__doc__ or "").split("\n")[0]
    )

    # 1. Data, checked before anything is written.
    judged = _read(data.eval_annotations, data.eval_images, data.eval_limit, keep_ground_truth=True)
    if not schedule.evaluate_only:
        if data.train_annotations is None:
            raise ConfigurationError("nothing to train on: give train_images and train_annotations")
        trained = _read(data.train_annotations, data.train_images, data.train_limit)
        _same_categories(trained.category_ids, judged, str(trained.path))
    run = open_run(running, given, fixed=_FIXED)
    accelerator = run.accelerator
    say(judged.summary())

    if schedule.evaluate_only:
        assert schedule.detector is not None
        loaded = load_detector(schedule.detector, given)
        _same_categories(loaded.category_ids, judged, str(loaded.origin))
        say(f"detector: {loaded.origin}")
        module = loaded.module.to(accelerator.device)
        scores = evaluate_run(module, judged, data, schedule, run, step=0)
        draw_run(module, judged, data, schedule, run, step=0)
        run.finish({"detector": str(loaded.origin), **summary_of(scores)})
        return

    # 2. The detector.
    if schedule.batch_size % accelerator.num_processes:
        raise ConfigurationError(
            f"batch_size must be a multiple of the {accelerator.num_processes} processes, got {schedule.batch_size}"
        )
    torch.manual_seed(running.seed)
    body = load_body(model_settings)
    detector: nn.Module = build_detector(body, len(trained.category_ids), model_settings)
    say(trained.summary())
    say(
        f"backbone: {body.spec.name}, {body.origin}; images are normalised by mean {body.mean}, std {body.std}"
    )
    if model_settings.norm == "sync_bn":
        detector, sentence = with_synchronized_norms(
            detector, world_size=accelerator.num_processes, device=accelerator.device
        )
        say(sentence)
    if accelerator.is_main_process:
        write_facts(run.path, body, model_settings, trained)
    assert schedule.iterations is not None
    say(
        f"{schedule.iterations} iterations of {schedule.batch_size} images; learning rate "
        f"{schedule.peak_learning_rate:g}{' (scaled to the batch)' if schedule.scale_learning_rate else ''}, a tenth of "
        f"it after each of {schedule.steps}"
    )

    # 3. Where the run stands.
    optimizer = make_optimizer(detector, schedule)
    state = TrainingState()
    model, optimizer = accelerator.prepare(detector, optimizer)
    detector = accelerator.unwrap_model(model)
    if run.checkpoint is not None:
        saved = load_checkpoint(run.checkpoint)
        state = TrainingState(**saved["state"])
        detector.load_state_dict(saved["detector"])
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        run.rewind(state.iteration)

    def save() -> None:
        scaler = accelerator.scaler
        save_checkpoint(
            run.checkpoint_file,
            {
                "state": state.as_dict(),
                "detector": detector.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        )

    def after_step() -> None:
        if state.iteration % schedule.save_every == 0:
            save()
        leave_if_asked(save, run.checkpoint_file)

    def evaluate() -> dict[str, Scores]:
        scores = evaluate_run(detector, judged, data, schedule, run, step=state.iteration)
        state.evaluated = state.iteration
        ap = scores[KINDS[0]].overall["AP"] or 0.0
        better = ap > state.best
        if better:
            state.best, state.best_iteration = ap, state.iteration
        if accelerator.is_main_process:
            write_weights(run.path / LAST, detector)
            if better:
                write_weights(run.path / BEST, detector)
        save()
        return scores

    # 4. Train, from one evaluation to the next.
    dataset = TrainingImages(
        trained,
        seed=running.seed,
        short_sides=data.short_sides,
        max_size=data.max_size,
        flip_probability=data.flip_probability,
    )
    positions = trained.with_instances() if data.filter_empty else list(range(len(trained.images)))
    if not positions:
        raise CocoDataError(f"{trained.path} has no image with instances to train on")
    if schedule.eval_at_start and state.iteration == 0 and state.evaluated < 0:
        evaluate()
    with progress_bar(schedule.iterations, "training", initial=state.iteration) as bar:
        while state.iteration < schedule.iterations:
            due = schedule.eval_every and state.iteration and state.iteration % schedule.eval_every == 0
            if due and state.evaluated != state.iteration:  # also where a run was stopped while it evaluated
                evaluate()
            stop = schedule.iterations
            if schedule.eval_every:
                stop = min(stop, (state.iteration // schedule.eval_every + 1) * schedule.eval_every)
            batches = training_loader(
                dataset,
                trained,
                positions=positions,
                group_by_shape=data.group_by_shape,
                batch_size=schedule.batch_size,
                seed=running.seed,
                start=state.iteration,
                stop=stop,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                num_workers=data.num_workers,
                pin_memory=accelerator.device.type == "cuda",
            )
            with training():
                train_stretch(
                    model,
                    optimizer,
                    batches,
                    state,
                    schedule,
                    accelerator,
                    seed=running.seed,
                    after_step=after_step,
                    log=run.log,
                    bar=bar,
                )
            save()
    scores = evaluate()
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


def _read(
    annotations: str | None, images: str | None, limit: int | None, *, keep_ground_truth: bool = False
) -> CocoAnnotations:
    assert annotations is not None
    assert images is not None
    return read_annotations(annotations, images, keep_ground_truth=keep_ground_truth, limit=limit)


def _same_categories(known: list[int], judged: CocoAnnotations, source: str) -> None:
    """A detector is judged on the categories that it knows."""
    if known != judged.category_ids:
        only_here = sorted(set(known) - set(judged.category_ids))
        only_there = sorted(set(judged.category_ids) - set(known))
        raise CocoDataError(
            f"{source} and {judged.path} have different categories: {len(only_here)} only in the first "
            f"({only_here[:5]}), {len(only_there)} only in the second ({only_there[:5]})"
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
