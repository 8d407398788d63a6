"""What a pretraining run looks at between epochs: kNN accuracy, spectra of features and embeddings, and its journal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mce_llm.running.processes import say
from mce_llm.running.step_log import StepLog
from mce_llm.vision.data import (
    UNLABELED,
    DataSettings,
    ImageDataError,
    ImageSource,
    NoSuchSplitError,
    eval_view,
    open_images,
    view_loader,
    why_not_classified,
    with_classes_of,
)
from mce_llm.vision.data.sources import balanced_indices
from mce_llm.vision.probing.features import extract_features
from mce_llm.vision.probing.neighbours import knn_accuracy
from mce_llm.vision.running import RunFolder
from mce_llm.vision.running.folder import SPECTRA
from mce_llm.vision.training.monitors import spectrum_of
from mce_llm.vision.training.settings import PretrainSettings


class Watcher:
    """Measures an encoder on images as they are, without augmentation. All processes call it together.

    The kNN monitor compares evaluation images with a class-balanced part of the training images, classes matched by name.
    Both need labels, and training two classes or more; where they have none, only the spectra are measured, and that is said.
    Training images without a label among others are not compared with.

    Args:
        run: Where measurements are written.
        settings: How many neighbours and images.
        data: The size of views, and the workers.
        train: The training images.
        evaluation: The images to classify, and whose spectrum is taken; None for the training images' spectrum alone.
        batch_size: Images encoded at a time in this process.

    Raises:
        ImageDataError: Images for evaluation are of classes that the training images do not have.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: PretrainSettings,
        data: DataSettings,
        train: ImageSource,
        evaluation: ImageSource | None,
        batch_size: int,
    ) -> None:
        self._run, self._settings = run, settings
        self._spectra = StepLog(run.path / SPECTRA)
        known = [place for place, label in enumerate(train.labels) if label != UNLABELED] or range(len(train))
        balanced = balanced_indices([train.labels[place] for place in known], settings.monitor_images)
        bank = train.subset([known[place] for place in balanced])
        self._classes = len(train.classes)
        evaluation, self._labelled = _comparable(train, evaluation)
        transform = eval_view(data.image_size, train.mean, train.std)
        self._loaders = [
            view_loader(
                source,
                transform,
                batch_size,
                shuffle=False,
                rank=run.accelerator.process_index,
                world_size=run.accelerator.num_processes,
                num_workers=data.num_workers,
            )
            for source in (
                [bank, evaluation] if self._labelled and evaluation is not None else [evaluation or bank]
            )
        ]

    def rewind(self, step: int) -> None:
        """Forget what was measured beyond a step."""
        if self._run.accelerator.is_main_process:
            self._spectra.rewind(step)

    def measure(self, online: nn.Sequential, step: int, epoch: int) -> dict[str, float]:
        """Measure, write spectra.jsonl, and give the numbers for the journal.

        Args:
            online: Encoder and projector.
            step: Optimizer steps done.
            epoch: Epochs done.

        Returns:
            monitor/effective_rank, rankme and alpha_req of the features, embedding_effective_rank, and, with labels,
            knn_top1 in [0, 1].
        """
        both = _FeaturesAndEmbeddings(online)
        was_training = online.training
        online.eval()
        extracted = [extract_features(both, loader, self._run.accelerator) for loader in self._loaders]
        online.train(was_training)
        features, embeddings = both.split(extracted[-1].features)
        values: dict[str, float] = {}
        if self._run.accelerator.is_main_process:
            of_features, of_embeddings = spectrum_of(features), spectrum_of(embeddings)
            self._spectra.append(
                step,
                {
                    "epoch": epoch,
                    "encoder": of_features.singular_values,
                    "embedding": of_embeddings.singular_values,
                },
            )
            values = {
                "monitor/effective_rank": of_features.effective_rank,
                "monitor/rankme": of_features.rankme,
                "monitor/alpha_req": of_features.alpha_req,
                "monitor/embedding_effective_rank": of_embeddings.effective_rank,
            }
            if self._labelled:
                bank, queries = extracted
                values["monitor/knn_top1"] = knn_accuracy(
                    both.split(bank.features)[0],
                    bank.labels,
                    features,
                    queries.labels,
                    k=min(self._settings.knn_k, len(bank.labels)),
                    temperature=self._settings.knn_temperature,
                    num_classes=self._classes,
                )
        return values


def open_evaluation(data: DataSettings, train: ImageSource) -> ImageSource | None:
    """The images to watch an encoder on; None where training has no labels and nothing is set apart for evaluation.

    Args:
        data: Where they are.
        train: The training images.

    Returns:
        The images. Without any, spectra are measured on training images, which is said.

    Raises:
        NoSuchSplitError: There are none although the training images have labels, or although they were asked for by name.
        ImageDataError: They cannot be opened.
    """
    try:
        return open_images(data, "eval")
    except NoSuchSplitError as error:
        if why_not_classified(train) is None or data.eval_split is not None or data.eval_dataset is not None:
            raise NoSuchSplitError(f"{error}; or go without the monitor: --monitor_every 0") from error
        say(f"{train.name}: no images are set apart for evaluation; spectra are measured on training images")
        return None


def _comparable(train: ImageSource, evaluation: ImageSource | None) -> tuple[ImageSource | None, bool]:
    """The images for evaluation with the classes of training, and whether the kNN monitor can compare the two."""
    if why_not_classified(train) is not None or evaluation is None:
        return evaluation, False
    if missing := sum(label == UNLABELED for label in evaluation.labels):
        say(
            f"the kNN monitor is left out: {missing:,} of the {len(evaluation):,} images of {evaluation.name} have no label"
        )
        return evaluation, False
    try:
        return with_classes_of(train, evaluation), True
    except ImageDataError as error:
        raise ImageDataError(f"{error}; or go without the monitor: --monitor_every 0") from error


class _FeaturesAndEmbeddings(nn.Module):
    """Both outputs of encoder and projector side by side, so that images are decoded and encoded once."""

    def __init__(self, online: nn.Sequential) -> None:
        super().__init__()
        self.online = online
        self._width = 0

    def forward(self, images: Tensor) -> Tensor:
        features = self.online[0](images)
        self._width = features.shape[1]
        return torch.cat([features, self.online[1](features)], dim=1)

    def split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Features and embeddings."""
        return both[:, : self._width], both[:, self._width :]


def epoch_values(values: dict[str, Any]) -> str:
    """The numbers of an epoch on one line, for people."""
    shown = {
        "train/loss": "loss {:.4f}",
        "train/floored_eigenvalues": "{:.2g} eigenvalues below the floor a step",
        "train/images_per_second": "{:.0f} images/s",
        "train/probe_top1": "online probe {:.1%}",
        "monitor/knn_top1": "kNN {:.1%}",
        "monitor/effective_rank": "effective rank {:.1f}",
        "monitor/rankme": "RankMe {:.1f}",
        "monitor/alpha_req": "α {:.2f}",
    }
    return ", ".join(
        text.format(values[name])
        for name, text in shown.items()
        if name in values and (values[name] or name != "train/floored_eigenvalues")
    )
