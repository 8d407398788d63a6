"""Packed rows laid end to end for FlashAttention: when, and that the loss stays what it is."""

import torch

from helpers.models import make_model
from mce_llm.lm import MatrixLossConfig, MatrixTrainer, MatrixTrainingArguments, patch_model
from mce_llm.lm.one_row import in_one_row, in_rows

LENGTHS = ((5, 3), (2, 6))


def packed_batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (2, 8), generator=generator)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    labels = torch.where(positions == 0, -100, ids)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "use_cache": False}


def flash_model():
    """Never run: only its configuration says FlashAttention, which this machine need not have."""
    model = make_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    return model


def test_only_packed_batches_of_flash_attention_are_laid_end_to_end():
    batch = packed_batch()
    flat = in_one_row(flash_model(), batch)
    assert flat["input_ids"].shape == flat["labels"].shape == flat["position_ids"].shape == (1, 16)
    assert flat["use_cache"] is False
    assert in_one_row(make_model(), batch) is batch  # sdpa gets a mask for each row
    with_mask = {**batch, "attention_mask": torch.ones(2, 8)}
    assert in_one_row(flash_model(), with_mask) is with_mask
    assert in_one_row(flash_model(), flat) is flat


def test_the_loss_is_that_of_the_rows():
    """Of the same weights with sdpa, which keeps examples apart in either form; padding at the end of a row included."""
    batch = packed_batch()
    batch["labels"][1, -2:], batch["position_ids"][1, -2:] = -100, torch.arange(2)
    model = make_model()
    patch_model(model, MatrixLossConfig(weight=0.5))
    in_rows_loss = model(**batch).loss
    flat_loss = model(**in_one_row(flash_model(), batch)).loss
    torch.testing.assert_close(flat_loss, in_rows_loss, rtol=1e-5, atol=1e-6)  # sums in another order


def test_logits_come_back_in_their_rows():
    logits = torch.arange(32.0).view(1, 16, 2)
    _, outputs = in_rows((torch.tensor(1.0), {"logits": logits}), 2)
    assert torch.equal(outputs["logits"], logits.view(2, 8, 2))
    assert in_rows(torch.tensor(1.0), 2) == 1


def test_the_trainer_hands_flash_attention_one_row(tmp_path, monkeypatch):
    """Rows of a batch stay rows for the trainer, which counts and masks them; the model alone gets one."""
    batch = packed_batch()
    model = make_model()
    rows = [
        {name: batch[name][n].tolist() for name in ("input_ids", "labels", "position_ids")} for n in (0, 1)
    ]
    arguments = MatrixTrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none")
    trainer = MatrixTrainer(model=model, args=arguments, train_dataset=rows)
    seen = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **kwargs: seen.append(kwargs["input_ids"].shape) or forward(**kwargs)
    )
    model.eval()
    expected = trainer.compute_loss(model, dict(batch))
    # From here on the trainer takes it for FlashAttention; the layers, which were made before, go on with sdpa's mask.
    monkeypatch.setattr("mce_llm.lm.one_row.is_flash", lambda attention: True)
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert seen == [(2, 8), (1, 16)]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert "logits" not in outputs


def test_the_first_label_of_a_row_has_nothing_before_it():
    """Rows whose first label is not masked: laid end to end, the row before would predict it."""
    batch = packed_batch()
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    kept = batch["labels"].clone()
    model = make_model()
    patch_model(model, MatrixLossConfig(weight=0.5))
    flat = in_one_row(flash_model(), batch)
    torch.testing.assert_close(model(**flat).loss, model(**batch).loss)
    assert torch.equal(batch["labels"], kept)
