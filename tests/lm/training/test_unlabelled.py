"""Rows without a trained label: nothing within a step, and a step of nothing else is stopped or left out, and says so."""

import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from transformers import TrainerControl, TrainerState

from helpers.engines import run_engine
from helpers.models import make_batch, make_model
from helpers.monitored import InOrder, Rows, arguments, collate, logged
from mce_llm.lm import LossInputError, MatrixLossConfig, linear_matrix_cross_entropy, patch_model
from mce_llm.lm.training.guard import StepGuard
from mce_llm.lm.training.guard_callback import GuardCallback

KINDS = ("token", "marginal", "expected")
WITHOUT = r"no trained label in training rows {}\. Training stopped on all ranks before the optimizer; "
WITHOUT += r"the weights are those of step {}\. Drop these rows, or raise max_length"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_items", [None, 0, 5])
def test_without_a_label_the_loss_is_a_zero_of_the_graph(kind, num_items):
    hidden = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(9, 6, requires_grad=True)
    labels = torch.full((4,), -100)
    count = None if num_items is None else torch.tensor(num_items)
    output = linear_matrix_cross_entropy(hidden, weight, labels, MatrixLossConfig(kind=kind), num_items=count)
    assert [output.loss.item(), output.cross_entropy.item(), output.matrix_cross_entropy.item()] == [0, 0, 0]
    output.loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_labels_that_only_the_shift_removes_are_none():
    model, batch = make_model(), make_batch()
    batch["labels"][:, 1:] = -100
    batch["labels"][:, 0] = 5
    patch = patch_model(model, MatrixLossConfig())
    assert model(**batch).loss.item() == 0
    assert patch.last.num_tokens == 0
    shifted = torch.full_like(batch["labels"], -100)
    shifted[0, 0] = 5  # given as such, the first position has a label
    batch.pop("labels")
    assert model(**batch, shift_labels=shifted).loss.item() > 0
    assert patch.last.num_tokens == 1


def test_one_label_is_enough_and_none_is_said():
    one = StepGuard("stop", 0, torch.device("cpu"))
    for labels in (0, 3, 0):
        one.note(torch.tensor(0.0), torch.tensor([1, 2]), labels)
    assert one.agree(1)
    for rows in (torch.tensor([7, 4]), torch.tensor([9, 0])):
        one.note(torch.tensor(0.0), rows, 0)
    with pytest.raises(LossInputError, match="^step 2: " + WITHOUT.format("7, 4, 9, 0", 1)):
        one.agree(2)
    one.note(torch.tensor(0.0), None, 0)
    with pytest.raises(LossInputError, match="no trained label in training rows unknown"):
        one.agree(3)
    skipping = StepGuard("skip", 1, torch.device("cpu"))
    skipping.note(torch.tensor(0.0), torch.tensor([5]), 0)
    assert not skipping.agree(1)
    assert skipping.last_report == "step 1 left out on all ranks: no trained label in training rows 5"
    skipping.note(torch.tensor(0.0), torch.tensor([6]), 0)
    with pytest.raises(
        LossInputError, match=r"^step 2, skipped steps in a row: 1: no trained label in training rows 6"
    ):
        skipping.agree(2)


@pytest.mark.parametrize(("max_grad_norm", "norm_taken"), [(0.0, False), (0.0, True), (1.0, True)])
def test_a_loss_scaler_takes_no_step_either(tmp_path, max_grad_norm, norm_taken):
    """It looks for gradients that are not finite, and would take a step of zeros, with its decay and moments."""
    args = arguments(tmp_path, max_grad_norm=max_grad_norm)
    AcceleratorState._reset_state(reset_partial_state=False)
    Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = AcceleratedOptimizer(
        torch.optim.AdamW(model.parameters(), weight_decay=0.5),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
    )
    one = StepGuard("skip", 3, torch.device("cpu"), watch_gradients=False)
    callback = GuardCallback(one, lambda: model, loss_scaler=True)
    moved = []
    for labels in (5, 0, 5):
        before = [p.detach().clone() for p in model.parameters()]
        one.note(torch.tensor(1.0), None, labels)
        optimizer.scaler.scale(model(torch.ones(1, 2)).sum() * labels).backward()
        if norm_taken:  # as stock trainers do, for clipping or for the logs alone
            optimizer.scaler.unscale_(optimizer.optimizer)
            callback.norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        callback.on_pre_optimizer_step(
            args, TrainerState(), TrainerControl(), model=model, optimizer=optimizer
        )
        optimizer.step()
        optimizer.zero_grad()
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
    assert moved == [True, False, True]
    assert optimizer.scaler.get_scale() == 8.0


def blank(*indices):
    """Rows of which these have a label at the first position alone."""
    rows = [dict(Rows()[i]) for i in range(16)]
    for index in indices:
        rows[index]["labels"] = torch.full_like(rows[index]["labels"], -100)
        rows[index]["labels"][0] = rows[index]["input_ids"][0]
    return rows


def make_trainer(folder, rows, **changes):
    args = arguments(folder, monitor_steps=0, **changes)
    return InOrder(model=make_model(), args=args, train_dataset=rows, data_collator=collate)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_a_label_stops_and_names_its_rows(tmp_path, kind):
    trainer = make_trainer(tmp_path, blank(4, 5, 6, 7), gradient_accumulation_steps=2, matrix_kind=kind)
    with pytest.raises(LossInputError, match="^step 2: " + WITHOUT.format("4, 5, 6, 7", 1)) as error:
        trainer.train()
    assert "learning_rate" not in str(error.value)


def test_left_out_it_changes_nothing_else(tmp_path):
    """With decay and moments, a gradient of zeros would be a step, too."""
    settings = {"optim": "adamw_torch", "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    skipping = make_trainer(tmp_path, blank(4, 5, 6, 7), on_nonfinite="skip", max_steps=2, **settings)
    skipping.train()
    once = make_trainer(tmp_path, blank(), max_steps=1, **settings)
    once.train()
    assert logged(skipping, "skipped_steps") == {2: 1}
    for (name, a), b in zip(skipping.model.named_parameters(), once.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_within_a_step_such_rows_count_nothing(tmp_path, kind):
    """A micro-batch without a label adds nothing to the step of those with labels."""
    with_blank = make_trainer(
        tmp_path, blank(2, 3), max_steps=1, gradient_accumulation_steps=2, matrix_kind=kind
    )
    without = make_trainer(tmp_path, blank(), max_steps=1, matrix_kind=kind)
    for trainer in (with_blank, without):
        trainer.train()
    for name in ("loss", "ce_loss", "mce_loss"):
        assert logged(with_blank, name) == pytest.approx(logged(without, name), rel=1e-6), name
    for a, b in zip(with_blank.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def check_ranks(folder, engine):
    """Of step 2 only rank 1 has a label, and then nobody."""
    common = {"gradient_accumulation_steps": 2, "report_to": "none", "monitor_steps": 0}
    common |= {"optim": "adamw_torch", "weight_decay": 0.1}
    all_blank, one_left = {"blank": list(range(8, 16))}, {"blank": list(range(8, 15))}
    runs = {
        "stop": {"arguments": common, "rows": all_blank},
        "skip": {"arguments": {**common, "on_nonfinite": "skip", "max_steps": 2}, "rows": all_blank},
        "one step": {"arguments": {**common, "max_steps": 1}},
        "one label": {"arguments": common, "rows": one_left},
    }
    got = run_engine(folder, engine, 2, runs)
    rows = "8, 9, 12, 13, 10, 11, 14, 15"  # 8 rows a step: those of rank 0, then those of rank 1
    for log in got["stop"][0]:
        assert re.match("LossInputError: step 2: " + WITHOUT.format(rows, 1), log["error"]), log["error"]
    expected = got["one step"][1]
    for name in ("stop", "skip"):
        assert all(torch.equal(got[name][1][n], w) for n, w in expected.items()), name
    assert got["skip"][0][0]["skipped_steps"] == [1]
    log = got["one label"][0][0]
    assert not log["error"]
    assert len(log["loss"]) == 3
    assert log["loss"][1] == pytest.approx(log["ce_loss"][1] + log["mce_loss"][1], rel=1e-5)


def test_ranks_agree(tmp_path):
    check_ranks(tmp_path, "ddp")


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_ranks_agree_on_every_engine(tmp_path, engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    check_ranks(tmp_path, engine)
