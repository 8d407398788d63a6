"""Pictures of a pretraining run: `python vision/pictures.py --run RUN_FOLDER`.

Augmented views, singular values over the epochs, features in two dimensions, and curves of training. The data set and
the augmentation are those of the run's recipe.yaml; what differs is given on the command line or in a --config file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mce_llm.vision.data import (
    ImageDataError,
    ImageSource,
    eval_view,
    open_images,
    sample_seed,
    train_views,
    view_loader,
)
from mce_llm.vision.data.sources import balanced_indices
from mce_llm.vision.drawing import (
    TsneUnavailableError,
    ViewRow,
    draw_curves,
    draw_projection,
    draw_spectra,
    draw_views,
    principal_components,
    read_journal,
    read_spectra,
    tsne,
    write_png,
)
from mce_llm.vision.drawing.curves import PANELS
from mce_llm.vision.drawing.settings import NothingToDrawError, Parsed, parse_pictures
from mce_llm.vision.models.backbone_files import FACTS
from mce_llm.vision.probing.encoders import EncoderSettings, open_encoder, prepared_as
from mce_llm.vision.probing.features import extract_features
from mce_llm.vision.running import run_script
from mce_llm.vision.running.launching import make_accelerator

MOST_CLASSES = 20  # in the picture of features; more colours and names cannot be told apart


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Its words, without the program's name; those of the process by default.

    Raises:
        NothingToDrawError: A picture that was asked for by name cannot be made, or none can.
    """
    parsed = parse_pictures(sys.argv[1:] if argv is None else argv, __doc__)
    makers: dict[str, Callable[[Parsed], Iterator[tuple[str, Figure]]]] = {
        "views": picture_of_views,
        "spectrum": picture_of_spectra,
        "features": pictures_of_features,
        "curves": picture_of_curves,
    }
    written: list[Path] = []
    for kind in parsed.settings.kinds:
        try:
            for name, figure in makers[kind](parsed):
                path = parsed.settings.destination / f"{name}.png"
                try:
                    write_png(figure, path)
                except OSError as error:
                    raise NothingToDrawError(f"cannot write {path}: {error.strerror or error}") from error
                written.append(path)
                print(f"{kind}: wrote {path}", flush=True)
        except NothingToDrawError as error:
            if not parsed.settings.wants_all:
                raise
            print(f"{kind}: left out, {error}", flush=True)
    if not written:
        raise NothingToDrawError(
            f"{parsed.settings.run} has nothing to draw; is it a pretraining run that ended an epoch?"
        )


def picture_of_views(parsed: Parsed) -> Iterator[tuple[str, Figure]]:
    """Some training images, and what the run's augmentation makes of them.

    Views are drawn as in pretraining, so with the run's seed those of draw k are the ones that its epoch k saw.
    """
    if parsed.data is None:
        raise NothingToDrawError("the run's recipe names no images; give --dataset")
    settings = parsed.settings
    source = open_images(replace(parsed.data, cache_images="false"), "train")
    transform = train_views(parsed.data.image_size, source.mean, source.std, parsed.augmentation)
    rows, state = [], torch.get_rng_state()
    try:
        for index in balanced_indices(source.labels, settings.images):
            image, label = source[index]
            draws = []
            for draw in range(settings.draws):
                torch.default_generator.manual_seed(sample_seed(settings.seed, draw, index))
                draws.append(transform(image))
            rows.append(ViewRow(image, draws, source.classes[label] if label >= 0 else ""))
    finally:
        torch.set_rng_state(state)
    yield "views", draw_views(rows, source.mean, source.std)


def picture_of_spectra(parsed: Parsed) -> Iterator[tuple[str, Figure]]:
    """Singular values of features and embeddings over the epochs."""
    spectra = read_spectra(parsed.settings.folder)
    if not spectra:
        raise NothingToDrawError("the run has no spectra.jsonl; monitor_every 0 measures none")
    yield "spectrum", draw_spectra(spectra)


def picture_of_curves(parsed: Parsed) -> Iterator[tuple[str, Figure]]:
    """Loss, accuracies and measures of collapse over the epochs."""
    journal = read_journal(parsed.settings.folder)
    if not any(name in journal.series for _, lines in PANELS for name, _ in lines):
        raise NothingToDrawError("the run has no metrics.jsonl with an epoch in it")
    yield "curves", draw_curves(journal)


def pictures_of_features(parsed: Parsed) -> Iterator[tuple[str, Figure]]:
    """Features of evaluation images in two dimensions, by principal components and by t-SNE."""
    settings = parsed.settings
    if parsed.data is None:
        raise NothingToDrawError("the run's recipe names no images; give --dataset")
    if not (settings.folder / FACTS).is_file():
        raise NothingToDrawError(f"the run has no {FACTS}, which is written at the end of its first epoch")
    accelerator = make_accelerator("no", cpu=settings.cpu)
    encoder = open_encoder(
        EncoderSettings(encoder=str(settings.folder), use_teacher=settings.use_teacher), settings.seed
    )
    # Every image is looked at once, so none is kept in memory.
    data = replace(prepared_as(encoder, parsed.data, parsed.given), cache_images="false")
    try:
        source = open_images(data, "eval")
    except ImageDataError as error:
        print(f"features: of training images, as there are none for evaluation ({error})", flush=True)
        source = open_images(data, "train")
    classes = len(source.classes)
    source = _some_of(source, settings.feature_images)
    loader = view_loader(
        source,
        eval_view(data.image_size, source.mean, source.std),
        settings.batch_size,
        shuffle=False,
        num_workers=data.num_workers,
    )
    found = extract_features(encoder.module, loader, accelerator)
    note = f", {MOST_CLASSES} of {classes} classes" if classes > MOST_CLASSES else ""
    what = f"{len(source):,} images of {Path(source.name).name}{note}"
    labels = found.labels.tolist()
    projection = principal_components(found.features, settings.seed)
    yield "features_pca", draw_projection(projection, labels, source.classes, f"Principal components: {what}")
    try:
        projection = tsne(found.features, settings.seed)
    except TsneUnavailableError as error:
        print(f"features: principal components alone, {error}", flush=True)
        return
    yield "features_tsne", draw_projection(projection, labels, source.classes, f"t-SNE: {what}")


def _some_of(source: ImageSource, limit: int) -> ImageSource:
    """So many images, as many of each class, of the first classes alone where there are too many."""
    source = source.subset([place for place, label in enumerate(source.labels) if label < MOST_CLASSES])
    if len(source) < 3:
        raise NothingToDrawError(f"{source.name} has {len(source)} images, and 3 are the fewest to project")
    return source.subset(balanced_indices(source.labels, limit))


if __name__ == "__main__":
    sys.exit(run_script(main))
