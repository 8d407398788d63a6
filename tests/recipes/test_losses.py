"""The losses that the matrix loss is compared with, through the recipe: what is trained, logged, recorded and refused."""

import json

import pytest
import yaml

from helpers.recipes import logged, words
from helpers.scripts import load_script
from mce_llm.errors import MceLlmError
from mce_llm.finetuning.configuration import parse_recipe
from mce_llm.running.messages import ConfigurationError

main = load_script("recipes/finetune.py").main

# Settings → the loss as a function of what is logged of its parts.
LOSSES = {
    "ce": ({"loss": "ce"}, lambda log: log["ce_loss"]),
    "label_smoothing": (
        {"loss": "label_smoothing", "smoothing": 0.2},
        lambda log: 0.8 * log["ce_loss"] + 0.2 * log["smoothing_loss"],
    ),
    "emo": (
        {"loss": "emo", "emo_weight": 0.4},
        lambda log: 0.6 * log["ce_loss"] + 0.4 * log["emo_loss"],
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_trained_and_logged(settings, name):
    changed, total = LOSSES[name]
    main(words(settings, eval_strategy="epoch", eval_dataset=settings["dataset"], **changed))
    output = settings["output_dir"]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    training = [entry for entry in history if "loss" in entry]
    assert training
    for entry in training:
        assert entry["loss"] == pytest.approx(total(entry), rel=1e-5)
        assert "mce_loss" not in entry
    (held_out, *_) = [entry for entry in history if "eval_loss" in entry]
    parts = {key.removeprefix("eval_"): value for key, value in held_out.items()}
    assert parts["loss"] == pytest.approx(total(parts), rel=1e-9)
    assert parts["mce_loss"] > 0
    assert parts["tail_mass"] >= 0
    if name == "emo":
        assert all(0 < value < 2 for value in logged(output, "emo_distance"))
    recorded = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recorded["loss"] == changed["loss"]
    again = parse_recipe(["--config", str(output / "recipe.yaml")]).training.matrix_loss
    assert again.objective == name
    assert again.weight == 0


def test_another_loss_is_another_training_and_ce_is_weight_zero(settings, tmp_path):
    """The same seeds and rows with each loss."""
    after = {}
    runs = {name: changed for name, (changed, _) in LOSSES.items()} | {"weight 0": {"matrix_weight": 0}}
    for name, changed in runs.items():
        main(
            words(
                settings,
                output_dir=tmp_path / name,
                max_steps=3,
                logging_steps=1,
                learning_rate=0.1,
                **changed,
            )
        )
        after[name] = logged(tmp_path / name, "ce_loss")
    assert after["ce"] == after["weight 0"]
    for name in ("emo", "label_smoothing"):
        assert after[name][0] == pytest.approx(after["ce"][0], rel=1e-6)  # before the first step
        assert after[name][-1] != pytest.approx(after["ce"][-1], rel=1e-6)
    assert after["emo"][-1] != pytest.approx(after["label_smoothing"][-1], rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        (
            {"loss": "emoo"},
            ["loss must be one of ce, label_smoothing, emo, mce, got 'emoo' (did you mean 'emo'?)"],
        ),
        (
            {"loss": "ce", "matrix_weight": 0.5, "smoothing": 0.1, "emo_center": "false"},
            [
                "matrix_weight belongs to the loss mce, and with loss ce it would do nothing: leave matrix_weight out, or "
                "set loss to mce",
                "smoothing belongs to the loss label_smoothing",
                "emo_center belongs to the loss emo",
            ],
        ),
        (
            {"loss": "label_smoothing", "smoothing": 1.5, "matrix_shrinkage": 2},
            [
                "in the matrix_* settings: shrinkage must be in [0, 1), got 2",
                "smoothing must be between 0 and 1",
            ],
        ),
        (
            {"loss": "emo", "emo_weight": 0, "emo_max_ratio": -2},
            [
                "emo_weight must be above 0 and at most 1, got 0",
                "emo_max_ratio must be a finite number ≥ 0, got -2",
            ],
        ),
        ({"matrix_weight": -1}, ["in the matrix_* settings: weight must be a finite number ≥ 0, got -1"]),
        (
            {"label_smoothing_factor": 0.1},
            ["set it to 0, and in its place loss to label_smoothing and smoothing to 0.1"],
        ),
    ],
)
def test_what_would_do_nothing_is_refused_all_at_once(settings, changed, messages, capsys):
    with pytest.raises((ConfigurationError, ValueError)) as error:
        main(words(settings, **changed))
    for message in messages:
        assert message in str(error.value)
    assert not settings["output_dir"].exists() or not any(settings["output_dir"].glob("checkpoint*"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision fp8 at the launch"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM was asked for"),
        (None, None, "label_smoothing_factor replaces the model's loss"),
    ],
)
def test_another_loss_is_refused_before_data_and_weights_are_read(
    settings, monkeypatch, variable, value, message
):
    if variable:
        monkeypatch.setenv(variable, value)
        changed = {"bf16": False}
    else:
        changed = {"label_smoothing_factor": 0.1}
    nothing = {"model_name_or_path": "no-such-model", "dataset": "no-such-file.jsonl"}
    with pytest.raises(MceLlmError, match=message):
        main(words({**settings, **changed, **nothing}))
