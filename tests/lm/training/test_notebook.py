"""A model in a notebook: outside of its trainer's calls it is what it was, and any other trainer may have it."""

import copy
import pickle

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from helpers.interrupted import Rows, same
from helpers.models import make_batch, make_model
from mce_llm.lm import (
    MatrixLossConfig,
    MatrixTrainer,
    MatrixTrainingArguments,
    UnsupportedModelError,
    patch_model,
)
from mce_llm.lm.instance_forward import PatchedModelError

COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def matrix_trainer(folder, model, callbacks=(), **changed):
    return MatrixTrainer(
        model=model,
        args=MatrixTrainingArguments(output_dir=str(folder), **{**COMMON, **changed}),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=list(callbacks),
    )


def stock_trainer(folder, model, **changed):
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **{**COMMON, **changed}),
        train_dataset=Rows(),
        eval_dataset=Rows(),
    )


def stock_weights(folder, **changed):
    trainer = stock_trainer(folder, make_model(), **changed)
    trainer.train()
    return trainer.model.state_dict()


def assert_as_it_was(model):
    """Loss, logits and gradients of the model's own forward."""
    own, batch = make_model(), make_batch()
    own.load_state_dict(model.state_dict())
    for each in (model, own):
        each.train()
        each.zero_grad()
    ours, theirs = model(**batch), own(**batch)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(ours.logits, theirs.logits)
    ours.loss.backward()
    theirs.loss.backward()
    for a, b in zip(model.parameters(), own.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    model.zero_grad()
    model.model(input_ids=batch["input_ids"])  # past the head, in training mode


def test_the_baseline_after_a_trainer_that_never_trained(tmp_path):
    model = make_model()
    matrix_trainer(tmp_path / "a", model)
    assert_as_it_was(model)
    stock = stock_trainer(tmp_path / "b", model)
    stock.train()
    assert same(model.state_dict(), stock_weights(tmp_path / "c"))


def test_the_patched_forward_would_be_caught(tmp_path):
    """The negative control of the one before: with the loss of `patch_model` the weights differ."""
    model = make_model()
    patch_model(model, MatrixLossConfig())
    stock_trainer(tmp_path / "b", model).train()
    assert not same(model.state_dict(), stock_weights(tmp_path / "c"))


class Fails(transformers.TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        raise self.error


@pytest.mark.parametrize(
    "error", [None, ValueError("broken"), KeyboardInterrupt()], ids=["end", "error", "Ctrl-C"]
)
def test_after_training_however_it_ends(tmp_path, error):
    model = make_model()
    trainer = matrix_trainer(tmp_path, model, [] if error is None else [Fails(error)])
    if error is None:
        trainer.train()
    else:
        with pytest.raises(type(error)):
            trainer.train()
    assert_as_it_was(model)
    metrics = trainer.evaluate()
    expected = metrics["eval_ce_loss"] + metrics["eval_mce_loss"]
    # Every row has as many labels, so that the mean over batches is the one over labels.
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-3)
    assert trainer.predict(Rows()).metrics["test_loss"] == pytest.approx(expected, rel=1e-3)
    assert_as_it_was(model)


def test_a_second_training_has_the_same_loss(tmp_path):
    model = make_model()
    trainer = matrix_trainer(tmp_path, model)
    trainer.train()
    model(**make_batch())
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    for entry in losses:
        assert entry["loss"] == pytest.approx(entry["ce_loss"] + entry["mce_loss"], rel=1e-3)
    trainer.save_model()


def test_the_cell_runs_again_and_each_trainer_has_its_own_loss(tmp_path):
    model = make_model()
    first = matrix_trainer(tmp_path / "a", model, matrix_weight=0.5)
    before = first.evaluate()
    second = matrix_trainer(tmp_path / "b", model, matrix_weight=2.0, matrix_support=8)
    third = matrix_trainer(tmp_path / "c", model, matrix_weight=0.0)
    for trainer, weight in ((third, 0.0), (first, 0.5), (second, 2.0), (first, 0.5)):
        metrics = trainer.evaluate()
        assert metrics["eval_ce_loss"] == before["eval_ce_loss"]
        expected = metrics["eval_ce_loss"] + weight * metrics["eval_mce_loss"]
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-3)
        assert_as_it_was(model)
    assert first.evaluate()["eval_mce_loss"] == before["eval_mce_loss"]
    second.train()
    assert_as_it_was(model)


def test_trained_in_mixed_precision_accelerate_leaves_its_wrapper_on(tmp_path):
    """Every trainer wraps the forward anew; the patch is found below, whoever came in between."""
    model = make_model()
    matrix_trainer(tmp_path / "a", model, bf16=True).train()
    later = matrix_trainer(tmp_path / "b", model, bf16=True, matrix_weight=2.0)
    later.train()
    entry = next(entry for entry in later.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(entry["ce_loss"] + 2.0 * entry["mce_loss"], rel=1e-2)
    again = make_model()
    matrix_trainer(tmp_path / "c", again, bf16=True)
    stock_trainer(tmp_path / "d", again, bf16=True).train()
    assert same(again.state_dict(), stock_weights(tmp_path / "e", bf16=True))


def test_adapters_on_a_model_that_a_trainer_had(tmp_path):
    model = make_model()
    matrix_trainer(tmp_path / "a", model).evaluate()
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    trainer = matrix_trainer(tmp_path / "b", adapted, matrix_weight=0.5)
    trainer.train()
    metrics = trainer.evaluate()
    expected = metrics["eval_ce_loss"] + 0.5 * metrics["eval_mce_loss"]
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-3)
    adapted.eval()
    outputs = adapted(**make_batch())
    assert outputs.logits is not None
    assert outputs.loss.item() == pytest.approx(
        cross_entropy(outputs.logits, make_batch()["labels"]), rel=1e-5
    )


def cross_entropy(logits, labels):
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1)).item()


def test_a_patch_of_ones_own_is_not_taken_off(tmp_path):
    model = make_model()
    trainer = matrix_trainer(tmp_path / "a", model)
    patch = patch_model(model, MatrixLossConfig(weight=0.5))
    assert model(**make_batch()).logits is None
    for use in (trainer.evaluate, trainer.train, lambda: matrix_trainer(tmp_path / "b", model)):
        with pytest.raises(
            UnsupportedModelError, match=r"patched already; .*model._matrix_loss_patch.remove\(\)"
        ):
            use()
    patch.remove()
    assert_as_it_was(model)
    assert "forward" not in model.__dict__
    trainer.train()
    assert trainer.state.global_step == 2
    assert_as_it_was(model)
    trainer.matrix_patch.remove()
    assert "forward" not in model.__dict__
    assert "_matrix_loss_patch" not in model.__dict__


def test_copies_and_pickles(tmp_path):
    model = make_model()
    trainer = matrix_trainer(tmp_path, model)
    twin = copy.deepcopy(model)
    trainer.train()
    assert_as_it_was(twin)
    assert twin._matrix_loss_patch.model is twin
    with pytest.raises(PatchedModelError, match=r"remove\(\) on its patch first \(trainer.matrix_patch"):
        pickle.dumps(model)
    trainer.matrix_patch.remove()
    pickle.dumps(model)
