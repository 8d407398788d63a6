import pytest

from helpers.scripts import ROOT
from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.data import DataSettings
from mce_llm.vision.probing import EncoderSettings, FineTuningSettings, ProbeSettings
from mce_llm.vision.running import RunSettings

CONFIGS = ROOT / "vision" / "configs"


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"optimizer": "adam"}, "optimizer must be sgd or lars, got 'adam'"),
        ({"schedule": "cosin"}, r"schedule must be cosine or step, got 'cosin' \(did you mean 'cosine'\?\)"),
        ({"learning_rates": [0.1, -1.0]}, "learning_rates must be positive, got -1.0"),
        ({"learning_rates": [0.1, 0.1]}, "learning_rates has one twice"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_norm needs a batch_size of at least 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"encode_batch_size": 0}, "encode_batch_size must be at least 1"),
        ({"epochs": 5, "warmup_epochs": 6.0}, r"warmup_epochs must be in \[0, epochs = 5\], got 6.0"),
        ({"schedule": "step", "warmup_epochs": 1.0}, "warmup_epochs goes with schedule cosine"),
        ({"schedule": "step", "epochs": 70}, r"milestones must be in \(0, epochs = 70\), got \[60, 80\]"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"crop_scale_min": 0.0}, r"crop_scale_min must be in \(0, 1\]"),
        ({"held_out": 1.0}, r"held_out must be in \(0, 1\), got 1.0"),
        ({"optimizer": "adam", "epochs": 0}, "(?s)optimizer must.*epochs must"),
    ],
)
def test_protocols_that_make_no_sense(given, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        ProbeSettings(**given)


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({}, "give one of subset_file and fraction, got none"),
        ({"subset_file": "a", "fraction": 0.1}, "got both"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        (
            {"fraction": 0.1, "encoder_learning_rate": -1.0},
            "encoder_learning_rate must be at least 0 and finite",
        ),
        (
            {"fraction": 0.1, "classifier_learning_rate": float("inf")},
            "classifier_learning_rate must .* got inf",
        ),
        ({"fraction": 0.1, "epochs": 0, "batch_size": 0}, "(?s)batch_size must.*epochs must"),
        ({"fraction": 0.1, "warmup_epochs": 21.0}, r"warmup_epochs must be in \[0, epochs = 20\]"),
        ({"fraction": 0.1, "momentum": -0.1}, "momentum must"),
        ({"fraction": 0.1, "crop_scale_min": 2.0}, "crop_scale_min must"),
    ],
)
def test_fine_tunings_that_make_no_sense(given, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        FineTuningSettings(**given)


def test_schedules():
    cosine = ProbeSettings(epochs=10, warmup_epochs=0.5)
    assert [cosine.share(step, 4) for step in (0, 1, 2, 21, 40)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    step = ProbeSettings(schedule="step", epochs=100)
    assert [step.share(n, 3) for n in (0, 179, 180, 239, 240, 299)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("linear_*.yaml")))
def test_linear_configurations_are_whole(name):
    words = ["--config", str(CONFIGS / name), "--encoder", "x", "--output_dir", "y"]
    words += [] if name == "linear_cifar10.yaml" else ["--dataset", "z"]
    (_, _, settings, _), _ = parse_settings(
        (EncoderSettings, DataSettings, ProbeSettings, RunSettings), words
    )
    batch, rates = settings.batch_size, settings.learning_rates
    assert (settings.optimizer, batch, rates) in [
        ("lars", 4096, [0.03]),
        ("sgd", 256, [30.0]),
        ("sgd", 256, [0.01, 0.03, 0.1, 0.3, 1.0]),
    ]


@pytest.mark.parametrize(("name", "rates"), [("1pct", (0.002, 0.5)), ("10pct", (0.01, 0.1))])
def test_semi_supervised_configurations_ask_for_a_list(name, rates):
    groups = (EncoderSettings, DataSettings, FineTuningSettings, RunSettings)
    words = ["--config", str(CONFIGS / f"semi_imagenet_{name}.yaml"), "--encoder", "x", "--output_dir", "y"]
    words += ["--dataset", "z"]
    with pytest.raises(ConfigurationError, match="give one of subset_file and fraction"):
        parse_settings(groups, words)
    (_, _, settings, _), _ = parse_settings(groups, [*words, "--subset_file", f"{name}.txt"])
    assert (settings.encoder_learning_rate, settings.classifier_learning_rate) == rates
    assert (settings.batch_size, settings.epochs) == (256, 20)


def test_the_small_semi_supervised_configuration_is_whole():
    words = ["--config", str(CONFIGS / "semi_cifar10.yaml"), "--encoder", "x", "--output_dir", "y"]
    (_, data, settings, _), _ = parse_settings(
        (EncoderSettings, DataSettings, FineTuningSettings, RunSettings), words
    )
    assert data.limit * settings.fraction == 500
