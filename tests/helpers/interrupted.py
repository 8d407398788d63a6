"""Short runs of a small model with dropout, to be interrupted, and what their ends are compared by."""

from pathlib import Path

import torch

from helpers.models import make_batch, make_model
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments


class Rows(torch.utils.data.Dataset):
    """Ten rows: at a batch size of 4, an epoch is three steps."""

    def __init__(self):
        self.batch = make_batch(10, 10)

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


def make_trainer(folder, callbacks=(), **changed):
    """A trainer of four steps, with a save at every other one, into `folder / "out"`."""
    settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = MatrixTrainingArguments(output_dir=str(folder / "out"), **{**settings, **changed})
    return MatrixTrainer(
        model=make_model(attention_dropout=0.3),
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=list(callbacks),
    )


def weights(trainer):
    """A copy of all weights by name."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(ours, theirs):
    """Whether all weights agree to the last bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], value) for name, value in theirs.items()
    )


def checkpoint_names(output):
    """The checkpoints in a folder, whole or not."""
    return sorted(path.name for path in Path(output).glob("checkpoint-*"))
