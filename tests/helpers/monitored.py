"""A short training run with the monitoring on, for the tests of its callbacks."""

import json
from pathlib import Path

import torch

from helpers.models import make_batch, make_model
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments


class Rows(torch.utils.data.Dataset):
    """Rows whose number of trained tokens differs from 1 to 8."""

    def __init__(self, count=16, seed=5):
        batch = make_batch(count, 10, seed, masked=0)
        self._rows = []
        for index in range(count):
            labels = batch["labels"][index].clone()
            labels[: 9 - (index * 3) % 8] = -100
            self._rows.append({"input_ids": batch["input_ids"][index], "labels": labels})

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


class InOrder(MatrixTrainer):
    """Draws the rows in order, so that a test knows every batch."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def collate(rows):
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "monitor_steps": 2,
        **changes,
    }
    return MatrixTrainingArguments(**settings)


def trainer_for(folder, model=None, rows=16, tokenizer=None, **changes):
    return InOrder(
        model=model or make_model(),
        args=arguments(folder, **changes),
        train_dataset=Rows(rows),
        eval_dataset=Rows(7, seed=9),
        data_collator=collate,
        processing_class=tokenizer,
    )


def trained(folder, resume=None, **changes):
    trainer = trainer_for(folder, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
