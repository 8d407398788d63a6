"""What each process of a test of evaluation loaders does: which rows it was left with, by kind of loader."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import Dataset, IterableDataset

import mce_llm.lm.training.mixin as mixin
from helpers.models import make_model
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments
from mce_llm.running.processes import gather, leave_processes

JOB = json.loads(Path(sys.argv[1]).read_text())
FIRST = 10  # row i has i % 3 + 2 tokens, and all its labels are FIRST + i


def make_row(index):
    ids = torch.full((index % 3 + 2,), FIRST + index)
    return {"input_ids": ids, "labels": ids}


class Rows(Dataset):
    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return make_row(index)


class Stream(IterableDataset):
    def __init__(self, count):
        self._count = count

    def __iter__(self):
        return map(make_row, range(self._count))


class SizedStream(Stream):
    def __len__(self):
        return self._count


KINDS = {"map": Rows, "stream": Stream, "sized stream": SizedStream}


def padded(rows):
    """Stacked rows, all of one width: what the first process deals out has to be."""

    def fill(row, name, value):
        return torch.nn.functional.pad(row[name], (0, 4 - len(row[name])), value=value)

    return {
        "input_ids": torch.stack([fill(row, "input_ids", 0) for row in rows]),
        "labels": torch.stack([fill(row, "labels", -100) for row in rows]),
    }


def joined(rows):
    """Rows laid end to end, and the labels a second time as the positions that predict them have them."""
    ids = torch.cat([row["input_ids"] for row in rows])
    labels = torch.cat([torch.nn.functional.pad(row["labels"][1:], (1, 0), value=-100) for row in rows])
    positions = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    batch["shift_labels"] = torch.nn.functional.pad(labels[1:], (0, 1), value=-100)
    return {name: value.unsqueeze(0) for name, value in batch.items()}


def mixed(rows):
    """Two rows in each row of the batch, side by side."""
    batch = padded(rows + rows[: len(rows) % 2])
    return {name: value.reshape(len(value) // 2, -1) for name, value in batch.items()}


COLLATORS = {"padded": padded, "joined": joined, "mixed": mixed}


def labels_seen(case):
    """(labels that were evaluated over all ranks, and how often; what was raised)."""
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    args = MatrixTrainingArguments(
        output_dir=JOB["out"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        per_device_eval_batch_size=case["batch"],
        remove_unused_columns=False,
        dataloader_num_workers=case.get("workers", 0),
        accelerator_config=case.get("accelerator", {}),
    )
    trainer = MatrixTrainer(
        model=make_model(vocab_size=FIRST + 40),
        args=args,
        data_collator=COLLATORS[case.get("collator", "padded")],
    )
    own_loss, seen, error = trainer.matrix_patch._loss, [], ""

    def loss_of(hidden, request):
        labels = request.labels if request.shifted else request.labels[:, 1:]
        seen.extend(labels[labels != -100].tolist())
        return own_loss(hidden, request)

    trainer.matrix_patch._loss = loss_of
    own = mixin.without_repeated
    if case.get("fault"):
        mixin.without_repeated = lambda inputs, _: (inputs.pop("row_lengths", None), inputs)[1]
    try:
        metrics = trainer.evaluate(KINDS[case["kind"]](case["rows"]))
    except ValueError as problem:
        error, metrics = f"{type(problem).__name__}: {problem}", {}
    mixin.without_repeated = own
    return sorted(label for rank in gather(seen) for label in rank), error, metrics.get("eval_loss")


results = {name: labels_seen(case) for name, case in JOB["cases"].items()}
if torch.distributed.get_rank() == 0:
    (Path(JOB["out"]) / "seen.json").write_text(json.dumps(results))
leave_processes()
