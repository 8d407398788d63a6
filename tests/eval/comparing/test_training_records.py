"""What trainings recorded, and how their differences are told before a verdict."""

import json
from dataclasses import fields
from typing import get_args

import pytest

from helpers.evaluations import outcomes, write_run
from helpers.trainings import write_training
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.comparing.training_records import (
    _WITHOUT_EFFECT,
    _WITHOUT_EFFECT_PREFIXES,
    LOSS_DEFAULTS,
    LOSSES,
    read_record,
    why_no_record,
)
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.finetuning.resuming import EFFECTS
from mce_llm.lm.arguments import MatrixSettings
from mce_llm.lm.config import OWN_SETTINGS, SETTING_NAMES, Loss
from mce_llm.lm.training.resuming import Effect

BASE = {
    "model_name_or_path": "base",
    "dataset": "metamathqa",
    "seed": 3,
    "max_length": 512,
    "matrix_weight": 0,
}


@pytest.fixture
def trained(tmp_path):
    def write(name, right=None, *, model=None, steps=(10, 20, 30), **changes):
        folder = tmp_path / name
        settings = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        write_training(folder, steps, recipe=settings)
        return SavedRun.read(write_run(folder / "gsm8k", right or [True, False], model=model or str(folder)))

    return write


def test_defaults_of_the_loss_are_those_of_the_trainer():
    known = {item.name: item.default for item in fields(MatrixSettings) if item.name.startswith("matrix_")}
    assert known == LOSS_DEFAULTS
    own = {loss: {} for loss in get_args(Loss)}
    for name, (loss, default) in OWN_SETTINGS.items():
        own[loss][SETTING_NAMES[name]] = default
    assert own == LOSSES


@pytest.mark.parametrize(
    ("settings", "method", "text"),
    [
        ({"loss": "ce", "matrix_weight": None}, {"matrix_weight": 0}, "CE"),
        ({"loss": "mce", "matrix_weight": 0.0}, {"matrix_weight": 0}, "CE"),
        (
            {"loss": "label_smoothing"},
            {"loss": "label_smoothing", "smoothing": 0.1},
            "label smoothing 0.1",
        ),
        (
            {"loss": "label_smoothing", "smoothing": 0.05, "matrix_order": 3},
            {"loss": "label_smoothing", "smoothing": 0.05},
            "label smoothing 0.05",
        ),
        (
            {"loss": "emo", "matrix_weight": None, "matrix_shrinkage": 0.2},
            {
                "loss": "emo",
                "emo_weight": 0.5,
                "emo_max_ratio": 3.0,
                "emo_center": False,
                "matrix_embeddings": "output",
            },
            "EMO 0.5",
        ),
        (
            {"loss": "emo", "emo_weight": 0.2, "emo_max_ratio": 0, "matrix_embeddings": "input"},
            {
                "loss": "emo",
                "emo_weight": 0.2,
                "emo_max_ratio": 0,
                "emo_center": False,
                "matrix_embeddings": "input",
            },
            "EMO 0.2, max_ratio 0, embeddings input",
        ),
    ],
)
def test_the_method_of_every_loss(trained, settings, method, text):
    record = read_record(trained("x", **settings))
    assert (record.method, record.method_text, record.is_plain) == (method, text, text == "CE")
    assert record.others == {"model_name_or_path": "base", "dataset": "metamathqa", "max_length": 512}


def test_a_baseline_is_named_before_the_verdict(trained):
    overview, notes = told((trained("ls", loss="label_smoothing"), trained("mce", matrix_weight=1.0)))
    assert not [note for note in notes if "same settings of the loss" in note]
    rows = {setting.name: setting.values for setting in overview.settings}
    assert rows["loss"] == ("label smoothing 0.1", "CE + 1.0 MCE (token)")


def test_what_is_left_out_has_no_effect_on_the_weights():
    """And nothing is left out that a run that goes on could not change without training something else."""
    harmless = {
        name for name, effect in EFFECTS.items() if effect in (Effect.NONE, Effect.REPORTED, Effect.MEASURE)
    }
    shaping = EFFECTS.keys() - harmless
    left_out = {
        name for name in EFFECTS if name in _WITHOUT_EFFECT or name.startswith(_WITHOUT_EFFECT_PREFIXES)
    }
    assert not left_out & shaping


def test_a_record(trained):
    run = trained("mce", matrix_weight=None, matrix_support=32, output_dir="x", logging_steps=3)
    record = read_record(run)
    assert (record.seed, record.steps, record.is_plain) == (3, 30, False)
    assert record.method_text == "CE + 1.0 MCE (token), support 32"
    assert record.others == {"model_name_or_path": "base", "dataset": "metamathqa", "max_length": 512}
    assert read_record(trained("ce")).method == {"matrix_weight": 0}


def test_the_seed_that_was_not_given_is_the_default(trained):
    assert read_record(trained("ce", seed=None)).seed == 42


def test_settings_of_the_loss_without_effect_are_no_method(trained):
    one, other = trained("a", matrix_order=4), trained("b", matrix_kind="token")
    assert read_record(one).method == read_record(other).method
    one, other = (
        trained(n, matrix_weight=1, matrix_kind="marginal", matrix_order=k) for n, k in (("c", 4), ("d", 8))
    )
    assert read_record(one).method == read_record(other).method


def test_a_setting_given_as_its_default_is_no_difference(trained):
    a, b = read_record(trained("a", weight_decay=0.0)), read_record(trained("b", weight_decay=None))
    assert a.differences(b) == {}


def test_every_setting_counts_where_checkpoints_recorded_it(trained):
    runs = [trained(name) for name in ("a", "b")]
    for run, decay in zip(runs, (0.0, 0.1), strict=True):
        checkpoint = run.path.parent / "checkpoint-30"
        checkpoint.mkdir()
        settings = {**BASE, "weight_decay": decay, "train_digest": "d"}
        (checkpoint / "run_settings.json").write_text(json.dumps({"settings": settings, "changes": []}))
    a, b = (read_record(run) for run in runs)
    assert a.differences(b) == {"weight_decay": (0.0, 0.1)}


def test_a_checkpoint_and_a_merged_model_are_of_their_training(tmp_path):
    write_training(tmp_path / "ce", recipe=BASE)
    for name in ("checkpoint-10", "merged"):
        (tmp_path / "ce" / name).mkdir()
        if name != "merged":
            write_training(tmp_path / "ce" / name, steps=(10,))
        run = SavedRun.read(write_run(tmp_path / f"of-{name}", [True], model=str(tmp_path / "ce" / name)))
        record = read_record(run)
        assert record.folder == tmp_path / "ce"
        assert record.steps == (10 if name != "merged" else 30)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "recipe.yaml").unlink(), "has no recipe.yaml"),
        (lambda folder: (folder / "recipe.yaml").write_text("a: [1"), "recipe.yaml cannot be read"),
        (lambda folder: (folder / "recipe.yaml").write_bytes(b"a: \xff"), "recipe.yaml cannot be read"),
    ],
)
def test_records_that_are_none(trained, damage, why):
    run = trained("ce")
    damage(run.path.parent)
    assert read_record(run) is None
    assert why in why_no_record(run)


def test_the_base_model_is_not_what_the_training_made(trained):
    run = trained("ce", model="base")
    assert read_record(run) is None
    assert "the model that the training in" in why_no_record(run)


def told(*pairs):
    comparison = compare_runs(list(pairs), resamples=100)
    return comparison.trainings, [note.text for note in comparison.notes if "train" in note.text]


A, B = outcomes(4, 1, 2, 3)


def test_method_and_seed_alone_are_no_warning(trained):
    overview, notes = told(
        (trained("ce1", A), trained("mce1", B, matrix_weight=1)),
        (trained("ce2", A, seed=4), trained("mce2", B, seed=4, matrix_weight=1)),
    )
    assert not [text for text in notes if "two training seeds hardly" not in text]
    assert [(row.name, row.kind) for row in overview.settings] == [("loss", "method"), ("seed", "seed")]
    assert overview.settings[1].values == ("3", "3", "4", "4")


def test_any_other_difference_is_named_before_the_verdict(trained):
    a = trained("ce", A, learning_rate=2e-5)
    b = trained("mce", B, matrix_weight=1, learning_rate=1e-5, dataset="other", max_length=None, steps=(5, 9))
    overview, (note, *others) = told((a, b))
    assert not others
    for part in (
        "learning_rate: 2e-05 in ce, 1e-05 in mce",
        "dataset: metamathqa in ce, other in mce",
        "max_length: 512 in ce, not given in mce",
        "steps trained: 30 in ce, 9 in mce",
        "the difference may be one of the training",
    ):
        assert part in note
    assert {row.name for row in overview.others} == {
        "learning_rate",
        "dataset",
        "max_length",
        "steps trained",
    }


def test_the_split_of_the_same_batch_is_no_difference(trained):
    a = trained("ce", A, total_batch_size=128, per_device_train_batch_size=4)
    b = trained("mce", B, matrix_weight=1, total_batch_size=128, per_device_train_batch_size=2)
    assert told((a, b))[1] == []


def test_seeds_and_methods_that_do_not_fit_are_told(trained):
    notes = told((trained("a", A), trained("b", B, seed=9)))[1]
    assert any("trained with the same settings of the loss" in text for text in notes)
    assert any("A was trained with seed 3, B with seed 9" in text for text in notes)


def test_what_is_not_known_is_said(trained, make):
    overview, _ = told((trained("ce", A), make("mce", B)))
    assert overview.runs == ("ce",)
    assert overview.missing.startswith("no record of 1 training, so whether it differs")
    assert "mce: no recipe.yaml" in overview.missing
