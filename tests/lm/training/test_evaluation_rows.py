"""Every row of an evaluation counts once, in whichever way accelerate deals rows to processes."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import engines
from mce_llm.lm.training.evaluation_rows import EvaluationCollator, NumberedStream

WORKER = Path(engines.__file__).with_name("loader_worker.py")
ROWS = (1, 2, 4, 5, 7, 12, 13)
LOADERS = {
    "map": {"kind": "map", "batch": 3},
    "joined": {"kind": "map", "batch": 3, "collator": "joined"},
    "map, workers": {"kind": "map", "batch": 2, "workers": 2},
    "joined, workers": {"kind": "map", "batch": 2, "workers": 1, "collator": "joined"},
    "split": {"kind": "map", "batch": 6, "accelerator": {"split_batches": True}},
    "joined, split": {
        "kind": "map",
        "batch": 6,
        "accelerator": {"split_batches": True},
        "collator": "joined",
    },
    "dispatched": {"kind": "map", "batch": 3, "accelerator": {"dispatch_batches": True}},
    "stream": {"kind": "stream", "batch": 3},
    "sized stream": {"kind": "sized stream", "batch": 3},
    "read by all": {"kind": "stream", "batch": 3, "accelerator": {"dispatch_batches": False}},
    "sized, read by all": {"kind": "sized stream", "batch": 3, "accelerator": {"dispatch_batches": False}},
    "joined, read by all": {
        "kind": "stream",
        "batch": 3,
        "accelerator": {"dispatch_batches": False},
        "collator": "joined",
    },
    "read by all, split": {
        "kind": "stream",
        "batch": 6,
        "accelerator": {"dispatch_batches": False, "split_batches": True},
    },
    "read by all, a worker": {
        "kind": "stream",
        "batch": 3,
        "workers": 1,
        "accelerator": {"dispatch_batches": False},
    },
}


def seen(folder, processes, cases):
    job = folder / "job.json"
    job.write_text(json.dumps({"out": str(folder), "cases": cases}))
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    done = subprocess.run(
        [*launcher, str(WORKER), str(job)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((folder / "seen.json").read_text())


def once(rows):
    """The labels of every row, without the first, which nothing predicts."""
    return sorted(10 + index for index in range(rows) for _ in range(index % 3 + 1))


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_row_counts_once(tmp_path, processes):
    cases = {f"{name}, {rows}": {**loader, "rows": rows} for name, loader in LOADERS.items() for rows in ROWS}
    results = seen(tmp_path, processes, cases)
    wrong = {name: labels for name, (labels, _, _) in results.items() if labels != once(cases[name]["rows"])}
    assert not wrong


def test_faults_and_collators_that_tell_nothing(tmp_path):
    """Negative control: without the mask, rows count twice. And what cannot be told apart is an error."""
    cases = {
        "counted": {"kind": "map", "batch": 3, "rows": 4, "fault": True},
        "unknown": {"kind": "map", "batch": 4, "rows": 5, "collator": "mixed"},
        "known": {"kind": "map", "batch": 4, "rows": 8, "collator": "mixed"},
        "all or nothing": {"kind": "map", "batch": 4, "rows": 12, "collator": "mixed"},
        "unknown stream": {
            "kind": "stream",
            "batch": 4,
            "rows": 8,
            "collator": "mixed",
            "accelerator": {"dispatch_batches": False},
        },
    }
    results = seen(tmp_path, 2, cases)
    assert len(results["counted"][0]) > len(once(4))
    for name, rows in (("known", 8), ("all or nothing", 12)):
        pairs = rows // 2  # of two rows side by side, the first label of the second one is predicted, too
        assert len(results[name][0]) == len(once(rows)) + pairs
    for name in ("unknown", "unknown stream"):
        message = "LossInputError: evaluation in several processes repeats rows, .* made labels of shape "
        assert re.match(message + r"\(2, 8\) of 4 rows", results[name][1]), results[name]


def test_a_stream_keeps_its_attributes_and_can_be_sent_to_a_worker():
    class Sized(list):
        epoch = 3

    stream = NumberedStream(Sized("abc"))
    assert (len(stream), stream.epoch) == (3, 3)
    assert [(row.index, row.row) for row in stream] == [(0, "a"), (1, "b"), (2, "c")]
    assert not hasattr(stream, "set_epoch")
    with pytest.raises(TypeError, match="has no len"):
        len(NumberedStream(iter("abc")))
    assert len(pickle.loads(pickle.dumps(NumberedStream([1, 2])))) == 2


def test_batches_that_are_no_mapping_pass():
    assert EvaluationCollator(tuple)([1, 2]) == (1, 2)
