"""Gradients stay sharded between the micro-batches of a step: two real processes of FSDP2, counted."""

from types import SimpleNamespace

import pytest
from torch import nn

from helpers.engines import deviations, run_engine, start_weights
from helpers.models import make_model
from mce_llm.lm import MatrixTrainingArguments
from mce_llm.lm.training.accumulation import keep_gradients_sharded, reduces_each_batch

WHOLE = {"gradient_accumulation_kwargs": {"sync_each_batch": False}}


def run(steps, **arguments):
    return {"arguments": {"gradient_accumulation_steps": steps, "monitor_steps": 0, **arguments}}


@pytest.mark.ci
@pytest.mark.slow
def test_fsdp2_keeps_its_gradients_sharded(tmp_path):
    """Between micro-batches a process has its half of the gradients, and none whole; the negative control has all whole.

    The sum is the same either way, but for its order.
    """
    runs = {"sharded": run(3), "whole": run(3, accelerator_config=WHOLE)}
    got = run_engine(tmp_path, "fsdp2", 2, runs)
    parameters = sum(p.numel() for p in make_model("llama", initializer_range=0.2, scale=1.0).parameters())
    for logs, between in ((got["sharded"][0], False), (got["whole"][0], True)):
        for log in logs:
            for number, (shards, whole) in enumerate(log["gradients"], 1):
                waits = between and number % 3
                assert whole == (parameters if waits else 0)
                # Rows are divided, and the odd row of a matrix goes to the first process.
                assert shards == pytest.approx(0 if waits else parameters / 2, rel=0.1)
    halves = [log["gradients"][0][0] for log in got["sharded"][0]]
    assert sum(halves) == parameters
    _, of_change = deviations(got["sharded"][1], got["whole"][1], start_weights())
    assert of_change < 2e-4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, True),
        ({"even_batches": True}, True),
        (WHOLE, False),
        ({"gradient_accumulation_kwargs": {"sync_each_batch": True}}, True),
    ],
)
def test_the_setting(given, expected, tmp_path):
    args = MatrixTrainingArguments(str(tmp_path), accelerator_config=given, use_cpu=True, report_to="none")
    assert reduces_each_batch(args) is expected


def test_other_engines_are_left_alone(tmp_path):
    """A model that is whole anyway has nothing to keep sharded."""
    args = MatrixTrainingArguments(
        str(tmp_path), gradient_accumulation_steps=4, use_cpu=True, report_to="none"
    )
    assert keep_gradients_sharded(SimpleNamespace(args=args, model_wrapped=nn.Linear(2, 2))) is None
