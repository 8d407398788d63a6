"""A run that is started again with other settings: what is announced as applied is, and what is refused changes nothing."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.recipes import contents, logged, words
from helpers.scripts import load_script
from mce_llm.finetuning.resuming import EFFECTS
from mce_llm.lm import MatrixTrainer
from mce_llm.lm.training.manifest import vouch
from mce_llm.lm.training.resuming import Effect
from mce_llm.lm.training.run_settings import FILE, RunSettings
from mce_llm.running.folder import release_folders

finetune = load_script("recipes/finetune.py")
main, run = finetune.main, finetune.run

STEPS = 6
KINDS = {"weights": {}, "adapters": {"lora_r": 2, "lora_dropout": 0.1}}


class Interrupted(BaseException):
    """Ends a run as a kill would."""


@pytest.fixture(scope="module")
def begun(folder, tmp_path_factory):
    """Of each kind, the settings of a run, and its folder as an interruption after step 4 of 6 left it."""
    step = MatrixTrainer.training_step
    made = {}
    for kind, changed in KINDS.items():
        output = tmp_path_factory.mktemp(kind) / "out"
        settings = {
            "model_name_or_path": folder / "model",
            "dataset": folder / "data.jsonl",
            "eval_dataset": folder / "held_out.jsonl",
            "prompt": "plain",
            "output_dir": output,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 4,
            "report_to": "none",
            "use_cpu": "true",
            "dataloader_pin_memory": "false",
            **changed,
        }
        taken = []

        def interrupted(self, *given, taken=taken, **named):
            if len(taken) == 4:
                raise Interrupted
            taken.append(1)
            return step(self, *given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MatrixTrainer, "training_step", interrupted)
            with pytest.raises(Interrupted):
                main(words(settings))

        made[kind] = settings
    release_folders()  # as the end of a process does
    return made


@pytest.fixture
def start(begun, tmp_path):
    """The settings of an interrupted run in a folder of its own."""

    def copy(kind="weights"):
        settings = dict(begun[kind])
        output = tmp_path / "out"
        shutil.copytree(settings["output_dir"], output)
        return settings | {"output_dir": output}

    return copy


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that are made, each with what its optimizer and patch held at the first step."""
    made = []

    class Watched(MatrixTrainer):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.seen = None
            made.append(self)

        def training_step(self, *given, **named):
            if self.seen is None:
                keys = ("lr", "weight_decay", "betas", "eps")
                self.seen = [{key: group[key] for key in keys} for group in self.optimizer.param_groups]
            return super().training_step(*given, **named)

    monkeypatch.setattr(finetune, "MatrixTrainer", Watched)
    return made


SCHEDULES = {
    "learning_rate": {"learning_rate": 0.0005},
    "schedule": {"lr_scheduler_type": "linear"},
    "warm-up": {"warmup_steps": 5},
    "length": {"max_steps": 9},
    "epochs": {"max_steps": -1, "num_train_epochs": 0.6},
    "everything": {
        "learning_rate": 0.1,
        "lr_scheduler_type": "polynomial",
        "warmup_steps": 0.5,
        "max_steps": 8,
    },
    "minimum": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 0.001}'},
}


@pytest.mark.parametrize("change", SCHEDULES)
def test_the_learning_rate_is_that_of_the_new_schedule_at_every_step(start, tmp_path, capsys, change):
    changed = SCHEDULES[change]
    settings = start() | changed
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert "from step 5 on: " in said
    for name in changed:
        assert f"{name} " in said.split("from step 5 on: ")[1].splitlines()[0]
    whole = tmp_path / "whole"
    assert run(words(settings, output_dir=whole, eval_dataset=None)) == 0
    rates, expected = (logged(folder, "learning_rate") for folder in (settings["output_dir"], whole))
    assert len(rates) == len(expected) > STEPS - 1
    assert rates[4:] == expected[4:]
    assert rates[:4] != expected[:4]


def test_the_optimizer_has_the_new_hyperparameters_from_the_next_step_on(start, trainers, tmp_path):
    changed = {
        "learning_rate": 0.002,
        "weight_decay": 0.3,
        "adam_beta1": 0.8,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-6,
    }
    settings = start() | changed
    assert run(words(settings)) == 0
    (trainer,) = trainers
    assert [group["weight_decay"] for group in trainer.seen] == [0.3, 0.0]
    assert all((group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6) for group in trainer.seen)
    # cosine: warm-up for 2 of 6 steps, then half a wave over 4, of which 2 are done before step 5
    assert [group["lr"] for group in trainer.seen] == pytest.approx([0.002 * 0.5] * 2)


def test_the_same_settings_are_the_same_run(start, tmp_path):
    settings = start()
    assert run(words(settings)) == 0
    assert run(words(settings, output_dir=tmp_path / "whole")) == 0
    one, other = (load_file(f / "model.safetensors") for f in (settings["output_dir"], tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_matrix_loss_changes_and_the_card_and_the_record_know_since_when(start, trainers, capsys):
    settings = start() | {"matrix_weight": 0.25, "matrix_shrinkage": 0.1}
    assert run(words(settings)) == 0
    output = settings["output_dir"]
    history = "steps 1–4: matrix_weight 1.0 (then 0.25), matrix_shrinkage 0.05 (then 0.1)"
    assert "from step 5 on: matrix_weight 1.0 → 0.25, matrix_shrinkage 0.05 → 0.1" in capsys.readouterr().out
    (trainer,) = trainers
    assert (trainer.matrix_patch.config.weight, trainer.matrix_patch.config.shrinkage) == (0.25, 0.1)
    last = trainer.state.log_history[-3]
    for entry in trainer.state.log_history:
        if entry.get("step", 0) > 4 and "mce_loss" in entry:
            assert entry["loss"] == pytest.approx(entry["ce_loss"] + 0.25 * entry["mce_loss"], rel=1e-4), last
    for card in (output / "README.md", output / "checkpoint-6" / "README.md"):
        assert f"`{history}`" in card.read_text()
    assert "steps 1–4" not in (output / "checkpoint-4" / "README.md").read_text()
    record = (output / "recipe.yaml").read_text()
    assert record.startswith(f"# {history}\n")
    assert yaml.safe_load(record)["matrix_weight"] == 0.25
    assert RunSettings.read(output / "checkpoint-6").settings["matrix_weight"] == 0.25
    assert RunSettings.read(output / "checkpoint-4").settings["matrix_weight"] == 1.0


def test_the_scale_of_adapters(start, trainers, capsys):
    settings = start("adapters") | {"lora_alpha": 48}
    assert run(words(settings)) == 0
    assert "from step 5 on: lora_alpha 16 → 48" in capsys.readouterr().out
    (trainer,) = trainers
    adapted = [module for module in trainer.model.modules() if hasattr(module, "lora_A")]
    assert adapted
    assert {module.scaling["default"] for module in adapted} == {24.0}
    assert json.loads((settings["output_dir"] / "adapter_config.json").read_text())["lora_alpha"] == 48
    assert "`steps 1–4: lora_alpha 16 (then 48)`" in (settings["output_dir"] / "README.md").read_text()


def test_smaller_micro_batches_of_the_same_step(start, tmp_path, capsys):
    """As after a full memory; rows and their order stay, so the weights do but for rounding."""
    settings = start() | {"per_device_train_batch_size": 2, "total_batch_size": 4}
    assert run(words(settings)) == 0
    assert "gradient_accumulation_steps 1 → 2" in capsys.readouterr().out
    assert run(words(start_of(settings), output_dir=tmp_path / "whole")) == 0
    one, other = (load_file(f / "model.safetensors") for f in (settings["output_dir"], tmp_path / "whole"))
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)


def start_of(settings):
    """The settings of the run as it began."""
    return {k: v for k, v in settings.items() if k != "total_batch_size"} | {"per_device_train_batch_size": 4}


def test_logs_evaluations_and_saves_follow_the_new_steps(start, capsys):
    """The state of a checkpoint holds those of its time, and transformers goes by them."""
    changed = {
        "max_steps": 12,
        "logging_steps": 3,
        "save_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 6,
    }
    settings = start() | changed
    assert run(words(settings)) == 0
    assert "reported otherwise from now on: " in capsys.readouterr().out
    output = settings["output_dir"]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 6, 9, 12]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [6, 12, 12]
    assert {p.name for p in output.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (4, 5, 10, 12)}


def test_the_end_lies_before_the_checkpoint(start, capsys):
    settings = start() | {"max_steps": 3}
    before = contents(settings["output_dir"])
    assert run(words(settings)) == 2
    error = capsys.readouterr().err
    assert "it was saved at step 4, and the training ends at step 3; raise max_steps" in error
    assert contents(settings["output_dir"]) == before


OTHERS = {
    "model_name_or_path": "elsewhere",
    "tokenizer_name_or_path": "elsewhere",
    "dtype": "bfloat16",
    "lora_r": 4,
    "lora_target_modules": "q_proj",
    "lora_modules_to_save": "lm_head",
    "use_dora": "true",
    "quantization": "4bit",
    "dataset": "other.jsonl",
    "dataset_split": "train[:50%]",
    "dataset_name": "main",
    "dataset_revision": "main",
    "dataset_format": "gsm8k",
    "columns": "{question: q}",
    "limit": 8,
    "prompt": "metamath",
    "system_prompt": {"system_prompt": "Be brief.", "prompt": "chat"},
    "chat_template_kwargs": {"chat_template_kwargs": "{enable_thinking: false}", "prompt": "chat"},
    "train_turns": "last",
    "chat_template": "{{ messages[0].content }}",
    "resize_embeddings": "true",
    "max_length": 64,
    "overlong": "drop",
    "packing": "true",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "total_batch_size": 8,
    "optim": "sgd",
    "optim_args": "amsgrad=True",
    "optim_target_modules": "all-linear",
    "average_tokens_across_devices": "false",
    "label_smoothing_factor": 0.1,
    "bf16": "true",
    "auto_find_batch_size": "true",
    "seed": 1,
    "data_seed": 1,
    "accelerator_config": '{"even_batches": false}',
    "dataloader_drop_last": "true",
    "dataloader_in_order": "false",
    "remove_unused_columns": "false",
    "label_names": "labels",
    "train_sampling_strategy": "sequential",
    "length_column_name": "size",
}
# Another path, another machine or another library is needed to give them another value.
UNTRIED = {
    "model_config",
    "model_revision",
    "tokenizer_revision",
    "deepspeed",
    "parallelism_config",
    "fp16",
    "use_liger_kernel",
    "liger_kernel_config",
}


def test_every_setting_that_is_refused_is_tried_below():
    refused = {name for name, effect in EFFECTS.items() if effect in (Effect.REFUSED, Effect.BATCH)}
    assert OTHERS.keys() | UNTRIED == refused


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_change_on_the_way_is_refused_and_nothing_in_the_folder_changes(start, capsys, name):
    kind = "adapters" if name.startswith(("lora_", "use_dora", "quantization")) else "weights"
    settings = start(kind)
    output = settings["output_dir"]
    before = contents(output)
    changed = OTHERS[name]
    assert run(words(settings, **(changed if isinstance(changed, dict) else {name: changed}))) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot go on from {output / 'checkpoint-4'} with other settings")
    named = "rows of an optimizer step" if EFFECTS[name] is Effect.BATCH else f"{name} "
    assert named in error
    assert "--resume false --overwrite true" in error
    assert contents(output) == before


def test_after_a_refusal_the_first_command_goes_on(start, capsys):
    settings = start("adapters")
    assert run(words(settings, lora_r=8)) == 2
    capsys.readouterr()
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert "resuming from" in said
    assert "from step 5 on" not in said


@pytest.mark.parametrize("known", [True, False])
def test_a_refusal_deep_in_loading_changes_nothing_either(start, capsys, known):
    """Weights that do not fit are only found out when they are loaded; here behind a record that says otherwise."""
    settings = start()
    output = settings["output_dir"]
    checkpoint = output / "checkpoint-4"
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][:, :8].contiguous()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    if not known:
        (checkpoint / FILE).unlink()
    vouch(checkpoint)
    (output / "checkpoint-5").mkdir()  # in the way, to be removed once training begins
    before = contents(output)
    assert run(words(settings, learning_rate=0.5)) == 2
    captured = capsys.readouterr()
    assert f"error: cannot go on from {checkpoint}" in captured.err
    assert "size mismatch for" in captured.err
    assert "from step 5 on" not in captured.out, "nothing is announced that does not happen"
    assert ("compared with" in captured.out) == (not known)
    assert contents(output) == before


def test_a_data_file_that_has_grown(start, folder, tmp_path, capsys):
    """The settings are the same, and yet the rows would come in another order."""
    settings = start()
    output = settings["output_dir"]
    rows = (folder / "data.jsonl").read_text()
    data = tmp_path / "data.jsonl"
    data.write_text(rows + rows.splitlines()[0] + "\n")
    record = json.loads((output / "checkpoint-4" / FILE).read_text())
    record["settings"]["dataset"] = str(data)
    (output / "checkpoint-4" / FILE).write_text(json.dumps(record))
    vouch(output / "checkpoint-4")
    before = contents(output)
    assert run(words(settings, dataset=data)) == 2
    assert "the data have changed, from 60 examples with" in capsys.readouterr().err
    assert contents(output) == before
    data.write_text("".join(f"{line}\n" for line in reversed(rows.splitlines())))
    assert run(words(settings, dataset=data)) == 2
    assert "its examples are others than before, or in another order" in capsys.readouterr().err
    assert contents(output) == before
    data.write_text(rows)
    assert run(words(settings, dataset=data)) == 0


def test_other_weights_under_the_adapters(start, folder, tmp_path, capsys):
    """The name of the base model is the same, and its weights are not."""
    base = tmp_path / "base"
    shutil.copytree(folder / "model", base)
    settings = start("adapters") | {"model_name_or_path": base}
    checkpoint = settings["output_dir"] / "checkpoint-4"
    record = json.loads((checkpoint / FILE).read_text())
    record["settings"]["model_name_or_path"] = str(base)
    (checkpoint / FILE).write_text(json.dumps(record))
    vouch(checkpoint)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    earlier = (base / "model.safetensors").read_bytes()
    save_file({**weights, name: weights[name] + 0.01}, base / "model.safetensors", metadata={"format": "pt"})
    before = contents(settings["output_dir"])
    assert run(words(settings)) == 2
    assert "are not those that its adapters were trained on" in capsys.readouterr().err
    assert contents(settings["output_dir"]) == before
    (base / "model.safetensors").write_bytes(earlier)
    assert run(words(settings)) == 0
