"""What the trainer sets on the patch for one call does not outlive the call, not even where it raises."""

import pytest
import torch

from helpers.models import VOCABULARY, make_batch, make_model
from mce_llm.errors import LossInputError
from mce_llm.lm import MatrixLossConfig, MatrixTrainer, MatrixTrainingArguments, patch_model


def make_trainer(folder):
    arguments = MatrixTrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True
    )
    return MatrixTrainer(model=make_model(), args=arguments)


def settings(patch):
    return {
        name: getattr(patch, name)
        for name in ("config", "keep_logits", "keep_hidden", "process_group", "observer")
    }


def bad_batch():
    """Its loss raises after the hidden states were kept."""
    batch = make_batch()
    batch["labels"][0, -1] = VOCABULARY
    return batch


def test_a_step_after_one_that_raised_is_right(tmp_path):
    failed, fresh = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    patch = failed.matrix_patch
    before = settings(patch)
    with pytest.raises(LossInputError):
        failed.prediction_step(failed.model.eval(), bad_batch(), prediction_loss_only=True)
    assert patch.last_hidden is not None, "it raised too early to leave anything behind"
    assert settings(patch) == before
    with pytest.raises(LossInputError):
        failed.training_step(failed.model.train(), bad_batch())
    assert settings(patch) == before
    for trainer in (failed, fresh):
        trainer.model.zero_grad()
        trainer.loss = trainer.training_step(trainer.model, make_batch(), num_items_in_batch=torch.tensor(24))
        assert trainer.matrix_patch.last_hidden is None
        assert trainer._hidden_meter.effective_rank(trainer.accelerator) is None, (
            "of training no states are kept"
        )
    torch.testing.assert_close(failed.loss, fresh.loss)
    for a, b in zip(failed.model.parameters(), fresh.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    _, evaluated = (
        trainer.prediction_step(trainer.model.eval(), make_batch(), prediction_loss_only=True)[0]
        for trainer in (failed, fresh)
    )
    assert torch.isfinite(evaluated)
    ranks = [t._hidden_meter.effective_rank(t.accelerator) for t in (failed, fresh)]
    assert ranks[0] == ranks[1]
    assert ranks[0] is not None


def test_temporary_settings_end_with_their_block():
    patch = patch_model(make_model(), MatrixLossConfig())
    before = settings(patch)
    with patch.temporarily(keep_hidden=True, config=MatrixLossConfig(weight=0.0)):
        with patch.temporarily(keep_logits=True, keep_hidden=False):
            assert settings(patch) == {**before, "keep_logits": True, "config": MatrixLossConfig(weight=0.0)}
        assert settings(patch) == {**before, "keep_hidden": True, "config": MatrixLossConfig(weight=0.0)}
    assert settings(patch) == before
    with pytest.raises(TypeError, match="last cannot be set"), patch.temporarily(last=None):
        pass
