"""Pretrain an image encoder without labels, with Matrix-SSL or one of the losses it is compared with.

    accelerate launch vision/pretrain.py --config vision/configs/cifar10_matrix_ssl.yaml

Every setting of the YAML file can be overridden on the command line; --help lists them. The same command, started
again after an interruption, goes on from the last checkpoint; exit code 143 asks for that.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mce_llm.running.preemption import training
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.data import AugmentationSettings, DataSettings, open_images, train_views, view_loader
from mce_llm.vision.losses import build_loss
from mce_llm.vision.models import (
    MomentumTeacher,
    build_backbone,
    channels_last_is_safe,
    feature_dim,
    save_backbone,
    synchronise_norms,
)
from mce_llm.vision.running import (
    RunSettings,
    leave_if_asked,
    load_checkpoint,
    open_run,
    progress_bar,
    run_script,
    save_checkpoint,
)
from mce_llm.vision.running.checkpoint import restore_random_state
from mce_llm.vision.training.method import METHODS, Student, targets
from mce_llm.vision.training.optimizers import build_optimizer
from mce_llm.vision.training.schedules import learning_rate, set_learning_rate, warmup_cosine
from mce_llm.vision.training.settings import FIXED, PretrainSettings
from mce_llm.vision.training.watching import Watcher, epoch_values

_REFUSED = {
    "gradient_accumulation_steps": "the loss is of the covariance of a whole batch, which a sum over parts of it is "
    "not; use more processes, a smaller image_size or mixed_precision: bf16",
    "learning_rate": "give base_learning_rate, for 256 images; it is scaled by batch_size / 256",
}


def main(argv: list[str] | None = None) -> None:
    """Pretrain, as the configuration says."""
    groups = (PretrainSettings, DataSettings, AugmentationSettings, RunSettings)
    (settings, data, augmentation, where), given = parse_settings(
        groups, sys.argv[1:] if argv is None else argv, description=__doc__, refused=_REFUSED
    )
    run = open_run(where, given, fixed=FIXED)
    accelerator = run.accelerator
    ranks = accelerator.num_processes
    if settings.batch_size % ranks:
        raise ConfigurationError(
            f"batch_size {settings.batch_size} cannot be dealt out evenly to {ranks} processes; "
            f"{settings.batch_size // ranks * ranks or ranks} can"
        )
    method = METHODS[settings.method]

    # 1. Images, two views of each.
    train = open_images(data, "train")
    evaluation = open_images(data, "eval") if settings.monitor_every else None
    loader = view_loader(
        train,
        train_views(data.image_size, train.mean, train.std, augmentation),
        settings.batch_size // ranks,
        seed=where.seed,
        rank=accelerator.process_index,
        world_size=ranks,
        num_workers=data.num_workers,
    )
    steps = len(loader)
    total, warmup = settings.epochs * steps, round(settings.warmup_epochs * steps)
    say(f"{train.name}: {len(train):,} images, {steps} steps of {settings.batch_size} an epoch")

    # 2. Networks: the same random weights in all processes, whatever their number.
    torch.manual_seed(where.seed)
    encoder = build_backbone(settings.spec)
    width = feature_dim(encoder, data.image_size)
    student = Student(
        encoder,
        width,
        method,
        embedding_dim=settings.embedding_dim,
        projector_dim=settings.projector_dim,
        predictor_dim=settings.predictor_dim,
        classes=len(train.classes) if settings.online_probe and min(train.labels) >= 0 else 0,
    )
    if ranks > 1:
        student = synchronise_norms(student, accelerator.device)  # type: ignore[assignment]
    last = settings.channels_last and channels_last_is_safe(encoder, accelerator.device)
    if settings.channels_last and not last:
        say("channels_last is left out: this encoder's narrow 1×1 convolutions are not safe with it on a CPU")
    layout = torch.channels_last if last else torch.contiguous_format
    student = student.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    teacher = (
        MomentumTeacher(student.online, settings.teacher_momentum) if method.target == "teacher" else None
    )
    loss_of = build_loss(settings.method, **settings.loss_arguments)
    parameters = sum(p.numel() for p in encoder.parameters())
    say(f"{settings.backbone}: {parameters:,} parameters, {width} features; loss: {loss_of}")

    # 3. Optimizers: one for what is pretrained, one for the classifier that watches.
    rate = learning_rate(settings.base_learning_rate, settings.batch_size)
    trained = nn.ModuleList([student.online, *([student.predictor] if student.predictor is not None else [])])
    optimizer = build_optimizer(settings.optimizer, trained, rate, settings.momentum, settings.weight_decay)
    optimizers = [optimizer]
    if student.probe is not None:
        probe_rate = learning_rate(settings.probe_learning_rate, settings.batch_size)
        optimizers.append(build_optimizer("sgd", student.probe, probe_rate, 0.9, 0.0))
    prepared = accelerator.prepare(student, *optimizers)
    wrapped, optimizers = prepared[0], list(prepared[1:])
    forward = torch.compile(wrapped) if settings.compile else wrapped

    # 4. Go on from where an earlier start got to.
    step = 0
    state_of = partial(_state, student, teacher, optimizers, accelerator.scaler)
    watcher = (
        Watcher(run, settings, data, train, evaluation, settings.batch_size // ranks)
        if settings.monitor_every
        else None
    )
    if run.checkpoint is not None:
        state = load_checkpoint(run.checkpoint)
        step = _restore(state, student, teacher, optimizers, accelerator.scaler)
        restore_random_state(state)
        say(f"{step} of {total} steps are done")
    run.rewind(step)
    if watcher is not None:
        watcher.rewind(step)
        if step == 0:  # where every curve begins, and what a run has to rise above
            start = watcher.measure(student.online, 0, 0)
            run.log(0, {"epoch": 0, **start})
            say(f"untrained: {epoch_values(start)}")
    facts = {
        "image_size": data.image_size,
        "mean": list(train.mean),
        "std": list(train.std),
        "method": settings.method,
        "loss_options": settings.loss_arguments,
        "dataset": train.name,
        "batch_size": settings.batch_size,
        "seed": where.seed,
    }

    def save() -> None:
        save_checkpoint(run.checkpoint_file, state_of(step))

    # 5. Train.
    values: dict[str, Any] = {}
    with training():
        for epoch in range(step // steps, settings.epochs):
            loader.set_epoch(epoch, skip=step % steps)
            student.train()
            begun, seen, taken, sums = time.monotonic(), 0, 0, dict[str, Any]()
            right = torch.zeros((), device=accelerator.device)
            bar = progress_bar(steps, f"epoch {epoch + 1}/{settings.epochs}", initial=step % steps)
            for batch in loader:
                views = [
                    v.to(accelerator.device, memory_format=layout, non_blocking=True) for v in batch.views
                ]
                share = warmup_cosine(step, total, warmup, 1.0)
                for each in optimizers:
                    set_learning_rate(each, share)
                with accelerator.autocast():
                    encoded = forward(*views)
                    p1, p2 = targets(method, teacher, encoded, *views)
                loss_of.set_epoch(step / steps)
                parts = loss_of.components(encoded.z1, encoded.z2, p1, p2)
                watched = parts["loss"].new_zeros(())
                if encoded.logits is not None:
                    labels = batch.labels.to(accelerator.device)
                    watched = cross_entropy(encoded.logits.float(), labels)
                    right += (encoded.logits.argmax(1) == labels).sum()
                accelerator.backward(parts["loss"] + watched)
                for each in optimizers:
                    each.step()
                    each.zero_grad(set_to_none=True)
                step += 1
                if teacher is not None:
                    teacher.update(student.online, step / total)
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value.detach()
                seen += len(batch.labels)
                taken += 1
                bar.update()
                if step % steps:  # at the end of an epoch this waits for what is due there
                    if settings.checkpoint_steps and step % settings.checkpoint_steps == 0:
                        save()
                    leave_if_asked(save, run.checkpoint_file)
            bar.close()

            # 6. The end of an epoch: numbers, the encoder's files, a checkpoint.
            right, count = accelerator.reduce(torch.stack([right, right.new_tensor(seen)]), "sum").tolist()
            values = {
                "epoch": epoch + 1,
                **{f"train/{name}": float(value) / taken for name, value in sums.items()},
                "train/learning_rate": rate * warmup_cosine(step - 1, total, warmup, 1.0),
                "train/images_per_second": count / (time.monotonic() - begun),
            }
            if student.probe is not None:
                values["train/probe_top1"] = right / count
            if teacher is not None:
                values["train/teacher_momentum"] = teacher.momentum_at(step / total)
            due = settings.monitor_every and (epoch + 1) % settings.monitor_every == 0
            if watcher is not None and (due or epoch + 1 == settings.epochs):
                values.update(watcher.measure(student.online, step, epoch + 1))
            run.log(step, values)
            say(f"epoch {epoch + 1}/{settings.epochs}: {epoch_values(values)}")
            if accelerator.is_main_process:
                noted = {**facts, "epochs": epoch + 1}
                save_backbone(student.encoder, settings.spec, run.path, noted)
                if teacher is not None:
                    averaged = teacher.network.get_submodule("encoder")
                    save_backbone(averaged, settings.spec, run.path / "teacher", noted)
            if (epoch + 1) % settings.checkpoint_epochs == 0 or epoch + 1 == settings.epochs:
                save()
            leave_if_asked(save, run.checkpoint_file)
    run.finish({**facts, "epochs": settings.epochs, "steps": step, **values})


def _state(
    student: Student, teacher: MomentumTeacher | None, optimizers: list[Any], scaler: Any, step: int
) -> dict[str, Any]:
    """All that training goes on from."""
    return {
        "step": step,
        "student": student.state_dict(),
        "teacher": None if teacher is None else teacher.state_dict(),
        "optimizers": [each.state_dict() for each in optimizers],
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def _restore(
    state: dict[str, Any],
    student: Student,
    teacher: MomentumTeacher | None,
    optimizers: list[Any],
    scaler: Any,
) -> int:
    """Put a state back; gives the number of steps that were done."""
    student.load_state_dict(state["student"])
    if teacher is not None:
        teacher.load_state_dict(state["teacher"])
    for each, saved in zip(optimizers, state["optimizers"], strict=True):
        each.load_state_dict(saved)
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return int(state["step"])


if __name__ == "__main__":
    sys.exit(run_script(main))
