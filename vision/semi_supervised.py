"""How good an encoder is where labels are few: `accelerate launch vision/semi_supervised.py --encoder DIR --fraction 0.01`.

The whole encoder and a new classifier are trained on the images of a list, or on a balanced share of the training images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.data import DataSettings, ImageSource, classify_view, view_loader
from mce_llm.vision.data.settings import HOW_ALONE, when_not_given
from mce_llm.vision.models import feature_dim, save_backbone
from mce_llm.vision.probing.accuracy import accuracy_report, rank_of_label, sentence
from mce_llm.vision.probing.encoders import (
    EncoderSettings,
    open_encoder,
    preparation_of,
    prepared_as,
    what_is_read,
)
from mce_llm.vision.probing.fine_tuning import FineTuningSettings, fine_tune, with_classifier
from mce_llm.vision.probing.images import encode_images, open_labelled
from mce_llm.vision.probing.linear import write_classifier
from mce_llm.vision.probing.subsets import balanced_subset, read_subset, write_subset
from mce_llm.vision.running import (
    ResumeRules,
    RunFolder,
    RunSettings,
    images_per_process,
    open_run,
    run_script,
)

LIST = "subset.txt"
# A checkpoint is of these images, this encoder and this protocol.
_FIXED = (
    *("dataset", "train_split", "limit", "eval_from_train"),
    *("image_size", "mean", "std", "image_column", "label_column"),
    *("encoder", "use_teacher", "backbone", "stem", "backbone_kwargs", "seed"),
    *("subset_file", "fraction", "batch_size", "epochs", "warmup_epochs", "momentum", "weight_decay"),
    *("encoder_learning_rate", "classifier_learning_rate", "crop_scale_min", "sync_batch_norm"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune on few labels, evaluate once, and write encoder, classifier and summary.json.

    Args:
        argv: The command line; that of the process by default.

    Raises:
        ConfigurationError: Settings that cannot be used.
    """
    groups = (EncoderSettings, DataSettings, FineTuningSettings, RunSettings)
    words = sys.argv[1:] if argv is None else argv
    (which, data, settings, running), given = parse_settings(groups, words, description=__doc__)
    if which.pixels:
        raise ConfigurationError("pixels has nothing to fine-tune; give encoder or backbone")
    rules = ResumeRules(
        (which, data, settings, running),
        _FIXED,
        (*HOW_ALONE, "encode_batch_size"),
        {**when_not_given(data), **preparation_of(which)},
    )
    run = open_run(running, given, rules=rules)
    accelerator = run.accelerator
    batch_size = images_per_process(settings.batch_size, accelerator.num_processes)
    encoder = open_encoder(which, running.seed)
    assert encoder.spec is not None
    data = prepared_as(encoder, data, given)
    whole, test = open_labelled(data)
    train, told = _few(whole, settings, run)
    run.check_inputs(what_is_read(which, train, test))
    width = feature_dim(encoder.module, data.image_size)
    model = with_classifier(encoder.module, width, len(whole.classes), running.seed)
    loader = view_loader(
        train,
        classify_view(data.image_size, whole.mean, whole.std, crop_scale_min=settings.crop_scale_min),
        batch_size,
        seed=running.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
    )
    fine_tune(model, loader, settings, run)
    judged = encode_images(model, test, whole, data, accelerator, settings.encode_batch_size)
    report = accuracy_report(rank_of_label(judged.features, judged.labels), judged.labels, whole.classes)
    say(f"{encoder.facts['name']}, fine-tuned on {len(train):,} labels: {sentence(report)}")
    if accelerator.is_main_process:
        prepared = {"image_size": data.image_size, "mean": list(whole.mean), "std": list(whole.std)}
        facts = {"method": f"fine-tuned on {told}", "epochs": settings.epochs, **prepared}
        save_backbone(model.get_submodule("encoder"), encoder.spec, run.path, facts)
        write_classifier(model.get_submodule("classifier").state_dict(), list(whole.classes), run.path)
    run.finish(
        {
            "method": "fine-tuning on few labels",
            **report,
            "labels": told,
            "train_images": len(train),
            "protocol": asdict(settings),
            "encoder": encoder.facts,
            "image_size": data.image_size,
        }
    )


def _few(whole: ImageSource, settings: FineTuningSettings, run: RunFolder) -> tuple[ImageSource, str]:
    """The images to train on, and in words which they are."""
    if settings.subset_file is not None:
        train = whole.subset(read_subset(settings.subset_file, whole))
        told = f"{len(train):,} images of the list {settings.subset_file}"
    else:
        assert settings.fraction is not None
        indices = balanced_subset(whole, settings.fraction)
        train = whole.subset(indices)
        told = f"{len(train):,} images, a balanced {settings.fraction:.3g} of {whole.name}"
        if run.accelerator.is_main_process:
            write_subset(run.path / LIST, whole, indices)
        say(f"our own choice of images, not a published list; their names are in {run.path / LIST}")
    missing = len(whole.classes) - len(set(train.labels))
    say(f"labels: {told}" + (f"; {missing} classes have none" if missing else ""))
    return train, told


if __name__ == "__main__":
    sys.exit(run_script(main))
