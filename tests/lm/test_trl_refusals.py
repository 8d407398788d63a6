"""What MatrixSFTTrainer refuses, so that no other loss is trained on than was asked for."""

import importlib.metadata
import re
import sys

import datasets
import pytest
import torch
import transformers

import mce_llm.lm

trl = pytest.importorskip("trl", minversion="1.0")

from helpers.sft import ROWS, common, make_model, make_tokenizer, trained  # noqa: E402
from mce_llm.lm import (  # noqa: E402
    BypassedLossError,
    MatrixLossConfig,
    MatrixLossMixin,
    MatrixSFTConfig,
    MatrixSFTTrainer,
    MatrixTrainingArguments,
    UnsupportedModelError,
    UnsupportedTrainerError,
    patch_model,
)
from mce_llm.running.installation import install_hint  # noqa: E402

# TRL sets this one under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_an_adapter_on_the_head_is_refused(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises((UnsupportedModelError, ValueError), match="adapter"):
        trained(tokenizer, tmp_path, peft_config=config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "dft"}, "loss_type 'dft' is another loss in the place of cross-entropy"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor replaces the model's loss"),
        ({"use_liger_kernel": True}, "use_liger_kernel replaces the forward"),
        ({"matrix_kind": "tokn"}, "did you mean 'token'"),
    ],
)
def test_settings_that_would_put_another_loss_in_place(tokenizer, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trained(tokenizer, tmp_path, **changes)


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
@pytest.mark.parametrize("by_position", [True, False])
def test_another_loss_function_is_refused(tokenizer, tmp_path, by_position):
    rows = datasets.Dataset.from_list(ROWS)
    positional = (None, rows, None, tokenizer, _zero) if by_position else ()
    named = (
        {}
        if by_position
        else {"train_dataset": rows, "processing_class": tokenizer, "compute_loss_func": _zero}
    )
    with pytest.raises(ValueError, match="compute_loss_func replaces the model's loss"):
        MatrixSFTTrainer(make_model(tokenizer), MatrixSFTConfig(**common(tmp_path)), *positional, **named)


def _zero(*_, **__):
    return torch.zeros(())


def test_a_trainer_that_never_runs_the_model_forward_with_labels_is_an_error(tokenizer, tmp_path):
    class FromLogits(transformers.Trainer):
        def compute_loss(self, model, inputs, *_, **__):
            return model(input_ids=inputs["input_ids"]).logits.square().mean()

    class Mixed(MatrixLossMixin, FromLogits):
        pass

    trainer = Mixed(
        make_model(tokenizer),
        MatrixTrainingArguments(**common(tmp_path)),
        train_dataset=[{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 8,
        data_collator=transformers.default_data_collator,
    )
    with pytest.raises(
        UnsupportedTrainerError, match=r"FromLogits.compute_loss never ran the model's own forward"
    ):
        trainer.train()


def test_a_patched_model_in_the_stock_trainer_is_an_error_and_not_plain_cross_entropy(tokenizer, tmp_path):
    model = make_model(tokenizer)
    patch_model(model, MatrixLossConfig(), tokenizer=tokenizer)
    # By version: TRL trains past the model's forward, or looks for logits in what it returns.
    with pytest.raises((BypassedLossError, TypeError, AttributeError)):
        trained(tokenizer, tmp_path, trainer_class=trl.SFTTrainer, config=trl.SFTConfig, model=model)


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, re.escape(f"MatrixSFTTrainer needs TRL, which is not installed: {install_hint('trl')}")),
        ("0.24.0", r"MatrixSFTTrainer needs TRL 1.0 or newer, 0.24.0 is installed: pip install"),
    ],
)
def test_a_trl_that_is_missing_or_too_old(monkeypatch, installed, message):
    def version(name):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.delitem(sys.modules, "mce_llm.lm.trl")
    with pytest.raises(ImportError, match=message):
        _ = mce_llm.lm.MatrixSFTTrainer


def opt(tokenizer):
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=128,
    )
    return transformers.OPTForCausalLM(config)


@pytest.mark.parametrize(
    "changes", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}]
)
def test_packing_that_leaks_is_refused(tokenizer, tmp_path, changes):
    with pytest.raises(
        UnsupportedModelError, match="OPTForCausalLM: packing: examples in one row see each other"
    ):
        MatrixSFTTrainer(
            model=opt(tokenizer),
            args=MatrixSFTConfig(**common(tmp_path, **changes)),
            train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
