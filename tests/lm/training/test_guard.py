"""A loss or gradient that is not a number: stopped or skipped on all ranks, before the optimizer, and said where."""

import re

import pytest
import torch

from helpers.device_calls import DeviceCalls, fake_device
from helpers.engines import deviations, run_engine, start_weights
from helpers.models import CONFIGS, make_batch, make_model
from helpers.monitored import InOrder, Rows, arguments, collate
from mce_llm.lm import NonFiniteLossError, patch_model
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.training.guard import StepGuard, last_reached, magnitude, magnitudes
from mce_llm.lm.training.guard_callback import GuardCallback, reduced_norms


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


class Infinite(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("trained", ["all", "layers", "last layer", "head", "embeddings"])
def test_a_bad_gradient_at_the_head_is_seen_where_the_backward_pass_ends(family, trained):
    model, one = make_model(family), guard()
    ends = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    of_ends = {id(p) for end in ends.values() for p in end.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            trained == "all"
            or (trained == "layers" and id(parameter) not in of_ends)
            or (trained == "last layer" and ".1." in name)
            or (trained in ends and any(parameter is p for p in ends[trained].parameters()))
        )
    patch = patch_model(model, MatrixLossConfig())
    own_loss = patch._loss
    patch._loss = lambda hidden, request: own_loss(Infinite.apply(hidden), request)
    one.watch(model)
    loss = model(**make_batch()).loss
    one.note(loss, torch.tensor([6]))
    if trained == "head" and ends["head"].weight is not ends["embeddings"].weight:
        ends["head"].weight.register_hook(lambda gradient: gradient * torch.inf)
        one.watch(model)  # its hook comes after that one
    loss.backward()
    with pytest.raises(
        NonFiniteLossError, match=r"the gradient is not finite \(its loss is .*micro-batch 1 of 1"
    ):
        one.agree(1, [torch.tensor(torch.nan)])


def test_the_parameter_behind_the_embeddings_is_watched():
    model = make_model()
    assert last_reached(model) is model.model.layers[0].self_attn.q_proj.weight
    model.model.layers[0].requires_grad_(False)
    assert last_reached(torch.nn.DataParallel(model)) is model.model.layers[1].self_attn.q_proj.weight


def test_what_no_micro_batch_shows_is_seen_in_the_norm():
    model, one = torch.nn.Linear(2, 2), guard()
    one.watch(model)
    micro_batch(one, model, 1.0, 1.0, torch.tensor([3, 1]))
    pattern = "step 4: the norm of the gradients is inf .*they overflowed where they were added up.* Training stopped"
    with pytest.raises(NonFiniteLossError, match=pattern):
        one.agree(4, [torch.tensor(1.0), torch.tensor(torch.inf)])
    # Without a norm it is taken of the gradients themselves.
    micro_batch(one, model, 1.0, 1.0)
    assert one.agree(5)
    model.bias.grad[1] = torch.nan
    micro_batch(one, model, 1.0, 1.0)
    with pytest.raises(NonFiniteLossError, match="step 6: the norm of the gradients is nan"):
        one.agree(6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, None])
def test_magnitudes_are_finite_where_every_element_is(dtype, value):
    tensor = torch.full((300, 300), torch.finfo(dtype).max / 1e6, dtype=dtype)
    if dtype == torch.float16:
        tensor.fill_(6e4)  # whose sum float16 does not hold
    if value is not None:
        tensor[17, 4] = value
    seen = [magnitude(tensor), *magnitudes([torch.ones(3), tensor, torch.ones(0)])]
    assert [bool(torch.isfinite(x)) for x in seen] == [value is None, True, value is None, True]


def test_one_wait_a_step_and_one_launch_a_micro_batch():
    with fake_device() as device:
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, device=device) for _ in range(8)))
        gradients = [torch.empty_like(p) for p in model.parameters()]
        one = guard(device=device)
        one.watch(model)
        with DeviceCalls() as calls:
            for _ in range(4):
                one.note(torch.zeros((), device=device), None, 3)
                calls.launches.remove("zeros")
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    for hook in (parameter._backward_hooks or {}).values():
                        hook(gradient)
        assert calls.launches == ["linalg_vector_norm"] * 4
        assert calls.waits == []
        norm = torch.zeros((), device=device, dtype=torch.bfloat16)
        with DeviceCalls() as calls:
            assert one.agree(1, [norm])
    assert calls.waits == ["_local_scalar_dense"]


def test_norms_of_what_zero_has_reduced():
    class Optimizer:
        averaged_gradients = {0: [torch.ones(2), None], 1: None, 2: [torch.tensor([torch.nan])]}  # noqa: RUF012

    assert [float(x) for x in reduced_norms(Optimizer())] == [2.0, pytest.approx(torch.nan, nan_ok=True)]
    Optimizer.norm_for_param_grads = {7: torch.tensor(3.0), 8: torch.inf}
    assert [float(x) for x in reduced_norms(Optimizer())] == [3.0, torch.inf]
    assert reduced_norms(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])) is None


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("at_head", [False, True])
def test_clipping_by_a_norm_that_is_not_finite(tmp_path, max_grad_norm, at_head):
    """It leaves no gradient as it was; the micro-batch is named all the same, where its backward pass shows it."""
    settings = {"max_grad_norm": max_grad_norm, "gradient_accumulation_steps": 2, "monitor_steps": 0}
    model = make_model()
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path, max_steps=3, **settings),
        train_dataset=Rows(24),
        data_collator=collate,
    )
    own_loss, calls = trainer.matrix_patch._loss, []

    def loss_of(hidden, request):
        calls.append(None)
        return own_loss(Infinite.apply(hidden) if len(calls) == 4 and not at_head else hidden, request)

    trainer.matrix_patch._loss = loss_of
    if at_head:
        model.lm_head.weight.register_hook(lambda g: g * torch.inf if len(calls) == 4 else g)
    what = (
        r"the norm of the gradients is (nan|inf)"
        if at_head
        else "the gradient is not finite .*micro-batch 2 of 2"
    )
    with pytest.raises(NonFiniteLossError, match=f"^step 2: {what}"):
        trainer.train()
    assert len(calls) == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


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
        # Clipped, though by 1: the weights are those without.
        "stop at gradient": run("gradient", [[2, 1, 1]], max_grad_norm=1e9),
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


def test_a_run_that_ended_within_a_step_leaves_nothing_to_the_next():
    """Interrupted between micro-batches, or out of memory and tried again with smaller ones."""
    one, model = guard(), torch.nn.Linear(2, 2)
    callback = GuardCallback(one, lambda: model, loss_scaler=False)
    one.note(torch.tensor(float("nan")), torch.tensor([3]))
    callback.on_train_begin(None, None, None, model=model)
    assert one.step_begins
    micro_batch(one, model, 1.0, 1.0)
    assert one.agree(1)
