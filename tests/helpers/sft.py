"""TRL's supervised trainer and ours on the same few rows, and `MatrixTrainer` on the same tokens."""

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data import train_tokenizer

pytest.importorskip("trl", minversion="1.0")

from mce_llm.lm import (
    MatrixSFTConfig,
    MatrixSFTTrainer,
    MatrixTrainer,
    MatrixTrainingArguments,
)

# Completions of 1 to 8 words, so that wrong averaging shows.
ROWS = [
    {
        "prompt": f"what is {i} and {i * 7 % 5} ?",
        "completion": " " + " ".join(["so", "it", "is", "now"] * 2)[: 2 + 3 * i],
    }
    for i in range(8)
]
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}it is {% generation %}{{ m['content'] }}"
    "{% endgeneration %} now {% else %}what {{ m['content'] }} ? {% endif %}{% endfor %}"
)


def make_tokenizer():
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in ROWS] * 3, vocab_size=300)
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + 3,  # rows that are no tokens
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def common(folder, **changes):
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def trained(*args, **changes):
    trainer = made(*args, **changes)
    trainer.train()
    return trainer


def made(
    tokenizer,
    folder,
    rows=ROWS,
    trainer_class=MatrixSFTTrainer,
    config=MatrixSFTConfig,
    model=None,
    **changes,
):
    named = {name: changes.pop(name) for name in ("peft_config", "eval_dataset") if name in changes}
    return trainer_class(
        model=model if model is not None else make_model(tokenizer),
        args=config(**common(folder, **changes)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **named,
    )


def reference(tokenizer, folder, mask_prompt=True, rows=ROWS, model=None, **changes):
    """MatrixTrainer on the same ids, with one padded row for each example."""
    examples = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        examples.append((ids, len(prompt) if mask_prompt else 0))

    def collate(batch):
        width = max(len(ids) for ids, _ in batch)
        pad = tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
            "labels": torch.tensor(
                [[-100] * masked + ids[masked:] + [-100] * (width - len(ids)) for ids, masked in batch]
            ),
        }

    settings = common(folder, remove_unused_columns=False, **changes)
    settings.pop("gradient_checkpointing")
    trainer = MatrixTrainer(
        model=model if model is not None else make_model(tokenizer),
        args=MatrixTrainingArguments(**settings),
        train_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(ours, other, names=("loss", "ce_loss", "mce_loss")):
    for name in names:
        assert logged(ours, name) == pytest.approx(logged(other, name), rel=1e-5), name
        assert len(logged(ours, name)) == 3
    assert_same_weights(ours.model, other.model)


def assert_same_weights(a, b):
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)
