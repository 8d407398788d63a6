"""Pretrain an image encoder without labels, with Matrix-SSL or one of the losses it is compared with.

    accelerate launch vision/pretrain.py --config vision/configs/cifar10_matrix_ssl.yaml

Every setting of the YAML file can be overridden on the command line; --help lists them. The same command, started
again after an interruption, goes on from the last checkpoint; exit code 143 asks for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mce_llm.running.preemption import training
from mce_llm.running.processes import say
from mce_llm.running.settings import parse_settings
from mce_llm.vision.data import (
    UNLABELED,
    AugmentationSettings,
    DataSettings,
    ImageSource,
    ViewLoader,
    open_images,
    train_views,
    view_loader,
    why_not_classified,
)
from mce_llm.vision.data.settings import when_not_given
from mce_llm.vision.losses import ViewLoss, build_loss, loss_options
from mce_llm.vision.models import (
    TEACHER,
    MomentumTeacher,
    build_backbone,
    channels_last_is_safe,
    feature_dim,
    save_backbone,
    synchronise_norms,
)
from mce_llm.vision.running import (
    ResumeRules,
    RunFolder,
    RunSettings,
    images_per_process,
    input_of_images,
    leave_if_asked,
    open_run,
    progress_bar,
    run_script,
)
from mce_llm.vision.training.epoch_means import EpochMeans
from mce_llm.vision.training.method import METHODS, Encoded, Student, targets
from mce_llm.vision.training.optimizers import build_optimizer
from mce_llm.vision.training.schedules import learning_rate, set_learning_rate, warmup_cosine
from mce_llm.vision.training.settings import FIXED, WITHOUT_EFFECT, PretrainSettings
from mce_llm.vision.training.state import PretrainState
from mce_llm.vision.training.watching import Watcher, epoch_values, open_evaluation

_REFUSED = {
    "gradient_accumulation_steps": "the loss is of the covariance of a whole batch, which a sum over parts of it is "
    "not; use more processes, a smaller image_size or mixed_precision: bf16",
    "learning_rate": "give base_learning_rate, for 256 images; it is scaled by batch_size / 256",
}


@dataclass(frozen=True)
class Task:
    """What stays as it is from the first step to the last."""

    run: RunFolder
    settings: PretrainSettings
    loader: ViewLoader
    loss: ViewLoss
    forward: Callable[
        [Tensor, Tensor], Encoded
    ]  # the student, wrapped for data parallelism, compiled if wished
    layout: torch.memory_format
    watcher: Watcher | None
    facts: dict[str, Any]  # of the images and the method, for backbone.json and summary.json

    @property
    def total(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.epochs * len(self.loader)

    def share(self, step: int) -> float:
        """The share of the highest learning rate that a step is made with."""
        warmup = round(self.settings.warmup * len(self.loader))
        return warmup_cosine(step, self.total, warmup, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain, as the configuration says.

    Args:
        argv: The command line; that of the process by default.
    """
    groups = (PretrainSettings, DataSettings, AugmentationSettings, RunSettings)
    words = sys.argv[1:] if argv is None else argv
    (settings, data, augmentation, running), given = parse_settings(
        groups, words, description=__doc__, refused=_REFUSED
    )
    defaults = {"warmup_epochs": settings.warmup, **when_not_given(data)}
    options = {"loss_options": loss_options(settings.method)}
    rules = ResumeRules((settings, data, augmentation, running), FIXED, WITHOUT_EFFECT, defaults, options)
    run = open_run(running, given, rules=rules)
    if settings.warmup_epochs is None:
        say(f"warm-up: {settings.warmup:g} of {settings.epochs} epochs (warmup_epochs is not set)")
    batch_size = images_per_process(settings.batch_size, run.accelerator.num_processes)

    train = open_images(data, "train")
    if (lack := why_not_classified(train)) is not None:
        say(f"{train.name} {lack}: pretraining goes without the online probe and the kNN monitor")
    elif missing := train.labels.count(UNLABELED):
        say(
            f"{train.name}: {missing:,} images have no label; the online probe and the kNN monitor use the others"
        )
    evaluation = open_evaluation(data, train) if settings.monitor_every else None
    inputs = {"training images": input_of_images(train)}
    if evaluation is not None:
        inputs["images for evaluation"] = input_of_images(evaluation, fixed=False)
    run.check_inputs(inputs)
    loader = open_loader(train, data, augmentation, batch_size, run)
    say(f"{train.name}: {len(train):,} images, {len(loader)} steps of {settings.batch_size} an epoch")

    student, layout = build_student(settings, data.image_size, train, run)
    loss = build_loss(settings.method, **settings.loss_arguments)
    parameters = sum(p.numel() for p in student.encoder.parameters())
    width = feature_dim(student.encoder, data.image_size)
    say(f"{settings.backbone}: {parameters:,} parameters, {width} features; loss: {loss}")
    state, forward = prepare_training(student, loss, settings, run.accelerator)

    watcher = Watcher(run, settings, data, train, evaluation, batch_size) if settings.monitor_every else None
    facts = {
        "image_size": data.image_size,
        "mean": list(train.mean),
        "std": list(train.std),
        "method": settings.method,
        "loss_options": settings.loss_arguments,
        "dataset": train.name,
        "batch_size": settings.batch_size,
        "seed": running.seed,
    }
    task = Task(run, settings, loader, loss, forward, layout, watcher, facts)

    begin(task, state)
    values: dict[str, Any] = {}
    with training():
        for epoch in range(state.step // len(loader), settings.epochs):
            means = train_epoch(task, state, epoch)
            values = finish_epoch(task, state, epoch + 1, means)
    run.finish({**facts, "epochs": settings.epochs, "steps": state.step, **values})


def open_loader(
    train: ImageSource,
    data: DataSettings,
    augmentation: AugmentationSettings,
    batch_size: int,
    run: RunFolder,
) -> ViewLoader:
    """Two views of each training image, in an order and with crops that are functions of the seed."""
    return view_loader(
        train,
        train_views(data.image_size, train.mean, train.std, augmentation),
        batch_size,
        seed=run.settings.seed,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        num_workers=data.num_workers,
    )


def build_student(
    settings: PretrainSettings, image_size: int, train: ImageSource, run: RunFolder
) -> tuple[Student, torch.memory_format]:
    """Encoder, projector, predictor and online probe on the device: the same random weights in all processes."""
    device = run.accelerator.device
    torch.manual_seed(run.settings.seed)
    encoder = build_backbone(settings.spec)
    student = Student(
        encoder,
        feature_dim(encoder, image_size),
        METHODS[settings.method],
        embedding_dim=settings.embedding_dim,
        projector_dim=settings.projector_dim,
        predictor_dim=settings.predictor_dim,
        classes=len(train.classes) if settings.online_probe and why_not_classified(train) is None else 0,
    )
    if run.accelerator.num_processes > 1:
        student = synchronise_norms(student, device)  # type: ignore[assignment]
    channels_last = settings.channels_last and channels_last_is_safe(encoder, device)
    if settings.channels_last and not channels_last:
        say("channels_last is left out: this encoder's narrow 1×1 convolutions are not safe with it on a CPU")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return student.to(device, memory_format=layout), layout  # type: ignore[call-overload]


def prepare_training(
    student: Student, loss: ViewLoss, settings: PretrainSettings, accelerator: Accelerator
) -> tuple[PretrainState, Callable[[Tensor, Tensor], Encoded]]:
    """The teacher, an optimizer for what is pretrained and one for the online probe, and the student to call."""
    teacher = (
        MomentumTeacher(student.online, settings.teacher_momentum)
        if METHODS[settings.method].target == "teacher"
        else None
    )
    pretrained = nn.ModuleList([student.online, *([] if student.predictor is None else [student.predictor])])
    rate = learning_rate(settings.base_learning_rate, settings.batch_size)
    optimizers = [
        build_optimizer(settings.optimizer, pretrained, rate, settings.momentum, settings.weight_decay)
    ]
    if student.probe is not None:
        probe_rate = learning_rate(settings.probe_learning_rate, settings.batch_size)
        optimizers.append(build_optimizer("sgd", student.probe, probe_rate, 0.9, 0.0))
    wrapped, *prepared = accelerator.prepare(student, *optimizers)
    state = PretrainState(student, teacher, prepared, accelerator.scaler, loss)
    return state, torch.compile(wrapped) if settings.compile else wrapped


def begin(task: Task, state: PretrainState) -> None:
    """Go on from the checkpoint, or measure the untrained encoder: where every curve begins."""
    run = task.run
    if run.checkpoint is not None:
        state.restore(run.checkpoint)
        say(f"{state.step} of {task.total} steps are done")
    run.rewind(state.step)
    if task.watcher is None:
        return
    task.watcher.rewind(state.step)
    if state.step == 0:
        start = task.watcher.measure(state.student.online, 0, 0)
        run.log(0, {"epoch": 0, **start})
        say(f"untrained: {epoch_values(start)}")


def train_epoch(task: Task, state: PretrainState, epoch: int) -> EpochMeans:
    """What is left of an epoch; saves and leaves in the middle of it where that is due."""
    accelerator, settings, steps = task.run.accelerator, task.settings, len(task.loader)
    save = partial(state.save, task.run.checkpoint_file)
    done = state.step % steps
    task.loader.set_epoch(epoch, skip=done)
    state.student.train()
    means = EpochMeans(accelerator)
    bar = progress_bar(steps, f"epoch {epoch + 1}/{settings.epochs}", initial=done)
    for batch in task.loader:
        view1, view2 = (
            view.to(accelerator.device, memory_format=task.layout, non_blocking=True) for view in batch.views
        )
        for optimizer in state.optimizers:
            set_learning_rate(optimizer, task.share(state.step))
        with accelerator.autocast():
            encoded = task.forward(view1, view2)
            p1, p2 = targets(METHODS[settings.method], state.teacher, encoded, view1, view2)
        task.loss.set_epoch(state.step / steps)
        parts = task.loss.components(encoded.z1, encoded.z2, p1, p2)
        probe_loss, correct, judged = judge_probe(encoded.logits, batch.labels, accelerator.device)
        accelerator.backward(parts["loss"] + probe_loss)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.teacher is not None:
            state.teacher.update(state.student.online, state.step / task.total)
        means.add(parts, len(batch.labels), correct, judged)
        bar.update()
        if state.step % steps:  # the last step of an epoch waits for what is due then
            if settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0:
                save()
            leave_if_asked(save, task.run.checkpoint_file)
    bar.close()
    return means


def judge_probe(
    logits: Tensor | None, labels: Tensor, device: torch.device
) -> tuple[Tensor | float, Tensor | None, Tensor | None]:
    """The online probe's mean cross-entropy over images with a label, whose gradient does not reach the encoder.

    And of how many it got how many right. A batch without any label gives 0.
    """
    if logits is None:
        return 0.0, None, None
    labels = labels.to(device)
    judged = (labels != UNLABELED).sum()
    total = cross_entropy(logits.float(), labels, ignore_index=UNLABELED, reduction="sum")
    return total / judged.clamp(min=1), (logits.argmax(1) == labels).sum(), judged


def finish_epoch(task: Task, state: PretrainState, epochs: int, means: EpochMeans) -> dict[str, Any]:
    """After so many epochs: a line of the journal, which is returned, the encoder's files, a checkpoint."""
    run, settings = task.run, task.settings
    rate = learning_rate(settings.base_learning_rate, settings.batch_size)
    values = {
        "epoch": epochs,
        **means.losses(),
        "train/learning_rate": rate * task.share(state.step - 1),
        **means.throughput(),
    }
    if state.teacher is not None:
        values["train/teacher_momentum"] = state.teacher.momentum_at(state.step / task.total)
    last = epochs == settings.epochs
    if task.watcher is not None and (epochs % settings.monitor_every == 0 or last):
        values.update(task.watcher.measure(state.student.online, state.step, epochs))
    run.log(state.step, values)
    say(f"epoch {epochs}/{settings.epochs}: {epoch_values(values)}")
    if run.accelerator.is_main_process:
        facts = {**task.facts, "epochs": epochs}
        save_backbone(state.student.encoder, settings.spec, run.path, facts)
        if state.teacher is not None:
            averaged = state.teacher.network.get_submodule("encoder")
            save_backbone(averaged, settings.spec, run.path / TEACHER, facts)
    save = partial(state.save, run.checkpoint_file)
    if epochs % settings.checkpoint_epochs == 0 or last:
        save()
    leave_if_asked(save, run.checkpoint_file)
    return values


if __name__ == "__main__":
    sys.exit(run_script(main))
