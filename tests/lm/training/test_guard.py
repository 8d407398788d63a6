"""A loss or gradient that is not a number: stopped or skipped on all ranks, before the optimizer, and said where."""

import re

import pytest
import torch

from helpers.engines import deviations, run_engine, start_weights
from mce_llm.lm import NonFiniteLossError
from mce_llm.lm.training.guard import StepGuard


def guard(action="stop", **changes):
    return StepGuard(**{"action": action, "patience": 2, "device": torch.device("cpu"), **changes})


def micro_batch(one, model, loss, scale, rows=None):
    one.note(torch.tensor(loss), rows)
    (model(torch.ones(1, 2)) * scale).sum().backward()


@pytest.mark.parametrize(
    ("loss", "scale", "what"),
    [
        (float("nan"), 1.0, "the loss is nan"),
        (float("-inf"), 1.0, "the loss is -inf"),
        (1.5, float("inf"), r"the gradient is not finite \(its loss is 1.5\)"),
        (1.5, float("nan"), r"the gradient is not finite \(its loss is 1.5\)"),
    ],
)
def test_what_and_where(loss, scale, what):
    model, one = torch.nn.Linear(2, 2), guard()
    one.watch(model)
    micro_batch(one, model, 1.0, 1.0, torch.tensor([3, 1]))
    micro_batch(one, model, loss, scale, torch.tensor([17, 4]))
    micro_batch(one, model, 1.0, 1.0, torch.tensor([8, 9]))
    pattern = f"step 12: {what} on rank 0, micro-batch 2 of 3, training rows 17, 4. Training stopped"
    with pytest.raises(NonFiniteLossError, match=pattern):
        one.agree(12)


def test_rows_without_a_number_and_many_rows():
    for rows, text in ((None, "training rows unknown"), (torch.arange(40), "14, 15 and 24 more")):
        one = guard()
        one.note(torch.tensor(float("nan")), rows)
        with pytest.raises(NonFiniteLossError, match=text):
            one.agree(1)


def test_finite_steps_pass_whatever_their_size():
    model, one = torch.nn.Linear(2, 2), guard()
    one.watch(model)
    for step in range(3):
        micro_batch(one, model, 3e38, 1e30)
        assert one.agree(step + 1)
        assert one.step_begins
    assert not one.skipped_steps


def test_patience_ends():
    one = guard("skip")
    for step in (1, 2):
        one.note(torch.tensor(float("nan")), None)
        assert not one.agree(step)
        assert one.step_is_bad
    one.note(torch.tensor(1.0), None)
    assert one.agree(3)
    assert not one.step_is_bad
    for step in (4, 5):
        one.note(torch.tensor(float("nan")), None)
        assert not one.agree(step)
    one.note(torch.tensor(float("nan")), None)
    with pytest.raises(NonFiniteLossError, match="step 6, skipped steps in a row: 2: the loss is nan"):
        one.agree(6)
    assert one.skipped_steps == 4


def test_a_loss_scaler_keeps_its_gradients():
    model, one = torch.nn.Linear(2, 2), guard(watch_gradients=False)
    one.watch(model)
    micro_batch(one, model, 1.0, float("inf"))
    assert one.agree(1)


def test_hooks_come_off():
    model, one = torch.nn.Linear(2, 2), guard()
    one.watch(model)
    one.unwatch()
    micro_batch(one, model, 1.0, float("inf"))
    assert one.agree(1)


def test_a_request_to_stop_is_heard():
    asked = []
    one = guard(stop_requested=lambda: bool(asked))
    one.note(torch.tensor(1.0), None)
    assert one.agree(1)
    assert not one.stop
    asked.append(True)
    one.note(torch.tensor(1.0), None)
    assert one.agree(2)
    assert one.stop


def run(fault, where, **arguments):
    settings = {
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "report_to": "none",
        "monitor_steps": 0,
    }
    return {"fault": fault, "where": where, "arguments": {**settings, **arguments}}


def check_stop_and_skip(folder, engine):
    """On step 2, rank 1 alone sees it in its second micro-batch."""
    runs = {
        "undisturbed": run(None, [], max_steps=1),
        "stop": run("loss", [[2, 1, 1]]),
        "stop at gradient": run("gradient", [[2, 1, 1]]),
        "skip": run("loss", [[2, 1, 1]], on_nonfinite="skip", max_steps=2),
        "skip at gradient": run("gradient", [[2, 1, 1]], on_nonfinite="skip"),
        "skip then go on": run("loss", [[2, 1, 1]], on_nonfinite="skip"),
    }
    got = run_engine(folder, engine, 2, runs)
    before, start = got["undisturbed"][1], start_weights()
    rows = "training rows 14, 15"  # 8 rows a step; of those of step 2, rank 1 has 10, 11 and then 14, 15
    for name, what in (("stop", "the loss is nan"), ("stop at gradient", "the gradient is not finite")):
        logs, weights = got[name]
        for log in logs:  # every rank says the same
            pattern = rf"NonFiniteLossError: step 2: {what}.* on rank 1, micro-batch 2 of 2, {rows}\. "
            assert re.match(pattern, log["error"]), log["error"]
        assert all(torch.equal(weights[n], before[n]) for n in before)
    logs, weights = got["skip"]
    assert not logs[0]["error"]
    assert logs[0]["skipped_steps"] == [1]
    assert all(torch.equal(weights[n], before[n]) for n in before)
    # The third step is taken, from the weights and moments of the first, whatever was wrong with the second.
    for name in ("skip at gradient", "skip then go on"):
        assert got[name][0][0]["skipped_steps"] == [1, 1]
        assert all(torch.isfinite(w).all() for w in got[name][1].values())
        assert any(not torch.equal(got[name][1][n], before[n]) for n in before)
        assert got[name][0][0]["loss"][2] > 0
    of_weight, _ = deviations(got["skip at gradient"][1], got["skip then go on"][1], start)
    assert of_weight == 0


def test_two_processes_stop_and_skip_together(tmp_path):
    check_stop_and_skip(tmp_path, "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2", pytest.param("zero3", marks=pytest.mark.ci)])
def test_every_engine_stops_and_skips(tmp_path, engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    check_stop_and_skip(tmp_path, engine)
