"""How good an encoder's features are to a linear classifier: `accelerate launch vision/linear_probe.py --encoder DIR …`.

The encoder is frozen, batch norms included. Protocols of the literature are in vision/configs/linear_*.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from mce_llm.running.processes import say
from mce_llm.running.settings import parse_settings
from mce_llm.vision.data import DataSettings
from mce_llm.vision.data.settings import HOW_ALONE, when_not_given
from mce_llm.vision.probing.accuracy import accuracy_report, rank_of_label, sentence
from mce_llm.vision.probing.encoders import (
    EncoderSettings,
    open_encoder,
    preparation_of,
    prepared_as,
    what_is_read,
)
from mce_llm.vision.probing.images import open_labelled
from mce_llm.vision.probing.linear import LinearProbe, save_classifier
from mce_llm.vision.probing.protocol import ProbeSettings
from mce_llm.vision.running import (
    ResumeRules,
    RunSettings,
    images_per_process,
    open_run,
    run_script,
)

# A checkpoint is of these images, this encoder and this protocol.
_FIXED = (
    *("dataset", "train_split", "limit", "eval_from_train"),
    *("image_size", "mean", "std", "image_column", "label_column"),
    *("encoder", "use_teacher", "backbone", "stem", "backbone_kwargs", "pixels", "seed"),
    *("optimizer", "learning_rates", "batch_size", "epochs", "warmup_epochs", "schedule", "milestones"),
    *("momentum", "weight_decay", "batch_norm", "cached_features", "crop_scale_min", "held_out", "retrain"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train a linear classifier on frozen features, evaluate it once, and write it with summary.json.

    Args:
        argv: The command line; that of the process by default.

    Raises:
        ConfigurationError: Settings that cannot be used.
    """
    groups = (EncoderSettings, DataSettings, ProbeSettings, RunSettings)
    words = sys.argv[1:] if argv is None else argv
    (which, data, settings, running), given = parse_settings(groups, words, description=__doc__)
    rules = ResumeRules(
        (which, data, settings, running),
        _FIXED,
        (*HOW_ALONE, "encode_batch_size"),
        {**when_not_given(data), **preparation_of(which)},
    )
    run = open_run(running, given, rules=rules)
    images_per_process(settings.batch_size, run.accelerator.num_processes)
    encoder = open_encoder(which, running.seed)
    data = prepared_as(encoder, data, given)
    train, test = open_labelled(data)
    run.check_inputs(what_is_read(which, train, test))
    probe = LinearProbe(encoder, train, data, settings, run)
    probed = probe.fit()
    judged = probe.encode(test)
    ranks = rank_of_label(probed.heads.logits(judged.features, probed.head), judged.labels)
    report = accuracy_report(ranks, judged.labels, train.classes)
    say(f"{encoder.facts['name']}, linear classifier: {sentence(report)}")
    if run.accelerator.is_main_process:
        save_classifier(probed, list(train.classes), run.path)
    run.finish(
        {
            "method": "linear classifier on "
            + ("kept features" if settings.cached_features else "random crops"),
            **report,
            "learning_rate": probed.learning_rate,
            "choice": probed.choice or None,
            "protocol": asdict(settings),
            "encoder": encoder.facts,
            "train_images": probed.train_images,
            "feature_dim": judged.features.shape[1],
            "image_size": data.image_size,
        }
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
