"""Every setting of a recipe is known to be applied, refused or without effect where a run goes on from a checkpoint."""

import json

import pytest

from helpers.scripts import ROOT
from mce_llm.finetuning.configuration import known_settings, parse_recipe
from mce_llm.finetuning.resuming import EFFECTS, going_on, restart_table, settings_of_recipe
from mce_llm.lm.training.manifest import vouch, write_manifest
from mce_llm.lm.training.resuming import Effect, continuation
from mce_llm.lm.training.run_settings import FILE, RunSettings
from mce_llm.running.folder import CheckpointError, write_record


def test_every_setting_has_its_effect():
    assert known_settings() <= EFFECTS.keys()


def test_the_table_in_the_documentation_is_this_one():
    assert restart_table() in (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")


WORDS = ["--model_name_or_path", "m", "--dataset", "d.jsonl", "--report_to", "none", "--use_cpu", "true"]


def recipe_of(**settings):
    return parse_recipe(
        [*WORDS, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with the settings of a recipe that is given; `processes` saved it."""

    def save(recipe, *, processes=1, record=True, best_metric=None):
        folder = tmp_path / "checkpoint-4"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4, "best_metric": best_metric}))
        if record:
            RunSettings(settings_of_recipe(recipe)).write(folder)
        write_manifest(folder, {"world_size": processes})
        return folder

    return save


def test_the_same_settings_go_on(checkpoint):
    folder = checkpoint(recipe_of(lora_r=4, learning_rate=1e-3))
    same = going_on(
        folder, recipe_of(lora_r=4, learning_rate="0.001", output_dir="elsewhere", overwrite="true")
    )
    assert (same.differences, same.rescheduled, same.said(4)) == ({}, frozenset(), [])
    assert same.recorded({}, 4).changes == ()


def test_what_is_applied_is_said_and_recorded(checkpoint):
    folder = checkpoint(recipe_of(learning_rate=2e-4))
    found = going_on(folder, recipe_of(learning_rate=1e-5, matrix_weight=0.5, logging_steps=3, tf32="false"))
    assert found.rescheduled == {"learning_rate"}
    assert found.said(4) == [
        "from step 5 on: learning_rate 0.0002 → 1e-05, matrix_weight 1.0 → 0.5",
        "reported otherwise from now on: logging_steps 500 → 3",
        "changed without effect on what is trained: tf32 null → false",
    ]
    record = found.recorded(settings_of_recipe(recipe_of(learning_rate=1e-5)), 4)
    assert record.settings["learning_rate"] == 1e-5
    assert record.history() == ["steps 1–4: learning_rate 0.0002 (then 1e-05), matrix_weight 1.0 (then 0.5)"]
    again = record.gone_on_with(record.settings, {"learning_rate": (1e-5, 2e-5)}, 9)
    assert again.history()[1] == "steps 5–9: learning_rate 1e-05 (then 2e-05)"
    again.write(folder)
    assert RunSettings.read(folder) == again


def test_a_setting_that_nobody_classified_is_refused(checkpoint):
    """As a later transformers may bring one; where it keeps its value, nothing is in the way."""
    folder = checkpoint(recipe := recipe_of())
    settings = settings_of_recipe(recipe)
    before = RunSettings(settings | {"turbo": False})
    continuation(folder, before, settings | {"turbo": False}, effects=EFFECTS)
    with pytest.raises(CheckpointError, match="turbo false → true"):
        continuation(folder, before, settings | {"turbo": True}, effects=EFFECTS)


def test_a_record_of_an_earlier_version_lacks_settings_that_had_their_default(checkpoint):
    folder = checkpoint(recipe_of())
    record = json.loads((folder / FILE).read_text())
    del record["settings"]["seed"]
    (folder / FILE).write_text(json.dumps(record))
    going_on(folder, recipe_of(seed=42))
    with pytest.raises(CheckpointError, match="seed 42 → 7"):
        going_on(folder, recipe_of(seed=7))


@pytest.mark.parametrize(
    ("before", "now", "processes", "refused"),
    [
        ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4}, 1, "8 → 4"),
        (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            1,
            None,
        ),
        (
            {"per_device_train_batch_size": 8, "total_batch_size": 16},
            {"per_device_train_batch_size": 2, "total_batch_size": 16},
            1,
            None,
        ),
        # The record holds the accumulation of each of two processes.
        ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 8}, 2, "16 → 8"),
        ({"per_device_train_batch_size": 8}, {"total_batch_size": 16}, 2, None),
    ],
)
def test_an_optimizer_step_keeps_its_rows(checkpoint, before, now, processes, refused):
    folder = checkpoint(recipe_of(**before), processes=processes)
    if refused is None:
        going_on(folder, recipe_of(**now))
        return
    with pytest.raises(CheckpointError, match=rf"rows of an optimizer step \(total_batch_size\) {refused}"):
        going_on(folder, recipe_of(**now))


@pytest.mark.parametrize(("best", "refused"), [(None, False), (0.7, True)])
def test_what_the_best_checkpoint_was_chosen_by(checkpoint, best, refused):
    folder = checkpoint(recipe_of(eval_dataset="one.jsonl"), best_metric=best)
    other = recipe_of(eval_dataset="other.jsonl")
    if refused:
        with pytest.raises(CheckpointError, match=r"eval_dataset one\.jsonl → other\.jsonl"):
            going_on(folder, other)
    else:
        assert going_on(folder, other).said(4) == [
            "reported otherwise from now on: eval_dataset one.jsonl → other.jsonl"
        ]


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-3}, {"max_steps": 20}, {"lr_scheduler_type": "cosine"}]
)
def test_a_schedule_that_reacts_to_the_run_cannot_change(checkpoint, change):
    reacting = {"lr_scheduler_type": "reduce_lr_on_plateau", "max_steps": 9, "eval_strategy": "epoch"}
    folder = checkpoint(recipe_of(**reacting))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        going_on(folder, recipe_of(**reacting | change))
    assert going_on(folder, recipe_of(**reacting, weight_decay=0.1)).rescheduled == {"weight_decay"}


def test_a_path_that_leads_to_the_same_place_is_the_same(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "d.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(recipe_of())
    going_on(folder, recipe_of(dataset=tmp_path / "d.jsonl"))
    with pytest.raises(CheckpointError, match=r"dataset d\.jsonl → e\.jsonl"):
        going_on(folder, recipe_of(dataset="e.jsonl"))


def test_a_checkpoint_without_a_record_is_compared_with_the_recipe(checkpoint, tmp_path, capsys):
    before = recipe_of(learning_rate="2e-4", total_batch_size=16, per_device_train_batch_size=8)
    folder = checkpoint(before, record=False)
    write_record(tmp_path, before.given, ())
    found = going_on(
        folder, recipe_of(learning_rate="1e-5", total_batch_size=16, per_device_train_batch_size=4)
    )
    said = capsys.readouterr().out
    assert (
        f"no record of the settings that it was trained with; compared with {tmp_path / 'recipe.yaml'}"
        in said
    )
    assert found.differences == {
        "learning_rate": (2e-4, 1e-5),
        "per_device_train_batch_size": (8, 4),
        "gradient_accumulation_steps": (2, 4),
    }
    with pytest.raises(CheckpointError, match="lora_r 0 → 4"):
        going_on(folder, recipe_of(learning_rate="2e-4", total_batch_size=16, lora_r=4))
    (tmp_path / "recipe.yaml").write_text("{")
    found = going_on(folder, recipe_of(lora_r=4))
    assert "trained with are unknown" in capsys.readouterr().out
    assert found.differences == {}


@pytest.mark.parametrize("record", [True, False])
def test_a_loss_that_changes_is_told_with_the_values_it_had(checkpoint, tmp_path, record):
    """With a record and, from the recipe alone, without: what a recipe leaves to the loss is a number."""
    before = recipe_of(matrix_shrinkage=0.1)
    expected = {"loss": ("mce", "emo"), "matrix_weight": (1.0, 0.0), "emo_weight": (None, 0.2)}
    expected |= {"emo_max_ratio": (None, 3.0), "emo_center": (None, False)}
    folder = checkpoint(before, record=record)
    write_record(tmp_path, before.given, ())
    found = going_on(folder, recipe_of(loss="emo", emo_weight=0.2, matrix_shrinkage=0.1))
    assert found.differences == expected
    assert "matrix_weight 1.0 → 0.0" in "".join(found.said(4))
    assert going_on(folder, recipe_of(matrix_weight=1.0, matrix_shrinkage=0.1)).differences == {}


def test_nothing_secret_is_recorded(checkpoint):
    folder = checkpoint(recipe_of(hub_token="hf_secret"))
    vouch(folder)
    assert "secret" not in (folder / FILE).read_text()
    assert EFFECTS["hub_token"] is Effect.REPORTED
