"""What the dry run counts, on hand-made sequences of operations whose launches, bytes, waits and peak are known."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HERE = Path(__file__).parent
KIB = 1024


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("device_trace", "op_costs", "fake_backward", "rehearsal", "roofline", "code_places")
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name)


@pytest.fixture
def trace(modules):
    """A trace in force, inside of fake CUDA tensors."""
    with modules["device_trace"].fake_cuda(), modules["device_trace"].DeviceTrace(HERE) as found:
        yield found


def cuda(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def counted(trace):
    return [(launch.name, launch.cost.read, launch.cost.written) for launch in trace.launches]


def test_elementwise_operations_read_their_inputs_and_write_their_output(trace):
    x, y = cuda(256, 4), cuda(256, 4)
    z = x + y
    z.mul_(x)
    (x * x).sum()
    assert counted(trace) == [
        ("add", 8 * KIB, 4 * KIB),
        ("mul_", 8 * KIB, 4 * KIB),
        ("mul", 4 * KIB, 4 * KIB),
        ("sum", 4 * KIB, 4),
    ]
    assert all(launch.cost.flops == 0 for launch in trace.launches)
    assert trace.launches[0].shape == (256, 4)


def test_views_and_fresh_memory_start_nothing(trace):
    x = cuda(64, 8)
    x.T, x[3:5], x.view(-1), x.unsqueeze(0).expand(5, -1, -1), x.detach(), x.split(8), x.unbind(0)
    torch.empty_like(x), x.new_empty(3), x.diagonal()
    assert trace.launches == []
    x[:0] + 1  # no elements
    assert trace.launches == []
    x.T.contiguous()
    assert counted(trace) == [("clone", 2 * KIB, 2 * KIB)]


def test_expanded_memory_is_read_once(trace):
    row = cuda(1, 256)
    row.expand(100, 256) * cuda(100, 1)
    assert counted(trace) == [("mul", KIB + 400, 100 * KIB)]


@pytest.mark.parametrize(
    ("write", "read", "written"),
    [
        (lambda x, y: x.copy_(y), KIB, KIB),
        (lambda x, y: x.zero_(), 0, KIB),
        (lambda x, y: x.fill_(2.0), 0, KIB),
        (lambda x, y: torch.add(x, y, out=cuda(16, 16)), 2 * KIB, KIB),
        (lambda x, y: torch.add(x, y, out=x), KIB, KIB),
        (lambda x, y: x.addmm_(y, y, beta=0), KIB, KIB),
        (lambda x, y: x.addmm_(y, y), 2 * KIB, KIB),
        (lambda x, y: x @ x.T, KIB, KIB),
    ],
)
def test_what_is_overwritten_is_not_read(trace, write, read, written):
    write(cuda(16, 16), cuda(16, 16))
    assert [cost for _, *cost in counted(trace)] == [[read, written]]


def test_of_a_table_only_the_rows_are_read_that_are_looked_up(trace):
    table, ids = cuda(10_000, 64), cuda(4, dtype=torch.int64)
    table.index_select(0, ids)
    table[ids]
    F.embedding(ids, table)
    table.gather(0, ids.unsqueeze(1))
    assert counted(trace) == [
        ("index_select", KIB + 32, KIB),
        ("index", KIB + 32, KIB),
        ("embedding", KIB + 32, KIB),
        ("gather", 16 + 32, 16),
    ]


def test_what_is_scattered_is_not_the_whole_table(trace):
    table, ids, values = cuda(8, 10_000), cuda(8, 1, dtype=torch.int64), cuda(8, 1)
    table.scatter_(1, ids, values)
    table.scatter_add_(1, ids, values)
    table[:, ids[:, 0]] = 0.0
    table.scatter(1, ids, values)
    found = counted(trace)
    assert found[0] == ("scatter_", 64 + 32, 32)
    assert found[1] == ("scatter_add_", 64 + 32 + 32, 32)
    assert found[-1] == ("scatter", 64 + 32 + 320_000, 320_000 + 32)


def test_arithmetic_of_products_and_factorisations(trace):
    x, y = cuda(8, 32, dtype=torch.bfloat16), cuda(32, 4, dtype=torch.bfloat16)
    x @ y
    torch.bmm(cuda(5, 2, 3), cuda(5, 3, 7))
    torch.addmm(cuda(4), cuda(8, 32), cuda(32, 4))
    torch.baddbmm(cuda(5, 2, 7), cuda(5, 2, 3), cuda(5, 3, 7))
    cuda(8, 32) @ cuda(32)
    torch.linalg.cholesky_ex(cuda(2, 6, 6, dtype=torch.float64))
    flops = [(launch.name, launch.cost.flops, launch.cost.dtype) for launch in trace.launches]
    assert flops == [
        ("mm", 2 * 8 * 32 * 4, torch.bfloat16),
        ("bmm", 2 * 5 * 2 * 3 * 7, torch.float32),
        ("addmm", 2 * 8 * 32 * 4, torch.float32),
        ("baddbmm", 2 * 5 * 2 * 3 * 7, torch.float32),
        ("mv", 2 * 8 * 32, torch.float32),
        ("linalg_cholesky_ex", 2 * 72, torch.float64),
    ]


def test_a_product_counts_in_the_dtype_of_its_factors(modules):
    sums, factor = torch.empty(2, 2), torch.empty(2, 2, dtype=torch.bfloat16)
    assert modules["op_costs"]._flops("addmm_", (sums, factor, factor)) == (16, torch.bfloat16)


WAITING = {
    "item": (lambda x: x.sum().item(), ["read"]),
    "truth": (lambda x: bool(x.any()), ["read"]),
    "branch": (lambda x: 1 if x.sum() > 0 else 2, ["read"]),
    "index": (lambda x: [1][x[0].long()], ["read"]),
    "list": (lambda x: x.tolist(), ["read"]),
    "nonzero": (lambda x: x.nonzero(), ["nonzero"]),
    "mask": (lambda x: x[x > 0], ["mask"]),
    "write through a mask": (lambda x: x.__setitem__(x > 0, x), ["mask"]),
    "masked_select": (lambda x: x.masked_select(x > 0), ["masked_select"]),
    "equal": (lambda x: torch.equal(x, x), ["read"]),
    "bincount": (lambda x: x.long().bincount(minlength=9), ["bincount", "bincount"]),
    "to the host": (lambda x: x.cpu(), ["copy to the host"]),
    "to the device": (lambda x: torch.ones(3).to("cuda"), ["copy to the device"]),
    "made of numbers": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), ["copy to the device"]),
    "copied onto": (lambda x: x.copy_(torch.ones(8)), ["copy to the device"]),
    # Without a dimension, what is written is copied as a tensor; with one, it is filled in.
    "number at one place": (lambda x: x.__setitem__(0, 3.0), ["copy to the device"]),
    "ids on the host": (lambda x: x[torch.tensor([1, 2])], ["copy to the device"]),
    "eigh": (lambda x: torch.linalg.eigh(x.diag()), ["linalg_eigh"]),
    "cholesky": (lambda x: torch.linalg.cholesky(x.diag()), ["linalg_check_errors"]),
}
FREE = {
    "number": lambda x: 2.0 * x + 1,
    "fill": lambda x: torch.full((3,), 2.0, device="cuda"),
    "number at places": lambda x: x.__setitem__(slice(1, 3), 3.0),
    "where": lambda x: torch.where(x > 0, x, 0),
    "slice": lambda x: x[2:4] + x[-1],
    "ids on the device": lambda x: x[x.long()],
    "same device": lambda x: x.to("cuda"),
    "another dtype": lambda x: x.double(),
    "not waited for": lambda x: torch.ones(3).to("cuda", non_blocking=True),
    "copied onto later": lambda x: x.copy_(torch.ones(8), non_blocking=True),
    "host alone": lambda x: torch.ones(3).sum().item(),
    "host's mask": lambda x: torch.ones(3)[torch.ones(3) > 0],
    "cholesky_ex": lambda x: torch.linalg.cholesky_ex(x.diag()),
}


@pytest.mark.parametrize("name", WAITING)
def test_host_waits_are_seen(modules, name):
    act, reasons = WAITING[name]
    with modules["device_trace"].fake_cuda():
        x = cuda(8)
        with modules["device_trace"].DeviceTrace(HERE) as trace:
            act(x)
    assert [wait.reason for wait in trace.waits] == reasons
    assert all(wait.place.file == Path(__file__).name for wait in trace.waits)


@pytest.mark.parametrize("name", FREE)
def test_what_the_host_does_not_wait_for(modules, name):
    with modules["device_trace"].fake_cuda():
        x = cuda(8)
        with modules["device_trace"].DeviceTrace(HERE) as trace:
            FREE[name](x)
    assert trace.waits == []


def test_places_are_the_innermost_function_of_ours_with_its_callers(trace):
    def inner(x):
        return F.layer_norm(x, (8,))

    def outer(x):
        return inner(x)

    outer(cuda(4, 8))
    place = trace.launches[-1].place
    assert (place.file, place.line) == (Path(__file__).name, inner.__code__.co_firstlineno + 1)
    names = [name.rpartition(".")[2] for name in place.calls]
    assert names[:3] == ["inner", "outer", "test_places_are_the_innermost_function_of_ours_with_its_callers"]
    assert str(place).endswith("inner")


def test_peak_is_what_is_alive_at_once(modules):
    with modules["device_trace"].fake_cuda():
        there = cuda(1000, 256)
        with modules["device_trace"].DeviceTrace(HERE) as trace:
            there.detach().mul_(2)
            assert trace.peak == 0  # it was there before
            first = cuda(2, 256)
            part = first[0]
            del first
            second = cuda(3, 256)
            assert trace.peak == 5 * KIB  # a view holds the whole
            del part
            third = cuda(1, 256)
            assert trace.peak == 5 * KIB
            fourth = second + third
            assert trace.peak == 7 * KIB
            assert [size for size, _ in trace.held_at_peak()] == [3 * KIB, 3 * KIB, KIB]
            assert trace.peak_place.line == sys._getframe().f_lineno - 3
            del second, third, fourth
            cuda(7, 256)
            assert trace.peak == 7 * KIB


def test_peak_of_stock_cross_entropy(modules):
    tokens, vocabulary = 64, 1024
    logits_bytes = 4 * tokens * vocabulary
    with modules["device_trace"].fake_cuda():
        logits = cuda(tokens, vocabulary).requires_grad_()
        labels = cuda(tokens, dtype=torch.int64)
        with modules["device_trace"].DeviceTrace(HERE) as trace:
            modules["fake_backward"].backward(lambda: F.cross_entropy(logits, labels))
    # Log-probabilities, their gradient and that of the logits; beside them only some scalars.
    assert 3 * logits_bytes <= trace.peak <= 3 * logits_bytes + 64
    assert logits.grad.shape == logits.shape


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, y):
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return factor * x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * ctx.factor * y, None, gradient * ctx.factor * x if ctx.needs_input_grad[2] else None


def test_backward_gives_what_the_engine_gives(modules):
    def loss(x, y):
        shared = x.tanh()
        parts = torch.stack([shared, y]).unbind(0)
        frozen = y.detach()
        return (Scaled.apply(parts[0], 3.0, parts[1]) + Scaled.apply(shared, 2.0, frozen) + x).square().mean()

    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 5, generator=generator) for _ in range(2)]
    expected = [pair.clone().requires_grad_() for pair in pairs]
    found = [pair.clone().requires_grad_() for pair in pairs]
    loss(*expected).backward()
    modules["fake_backward"].backward(lambda: loss(*found))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)
    modules["fake_backward"].backward(lambda: loss(*found))
    torch.testing.assert_close(found[0].grad, 2 * expected[0].grad, rtol=1e-6, atol=1e-7)


def test_gradients_that_a_loss_asks_for_on_the_way(modules):
    def loss(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(leaf.pow(3).sum(), leaf)
        return (slope * x).sum()

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    modules["fake_backward"].backward(lambda: loss(x))
    assert x.grad.tolist() == [3.0, 12.0]


def test_the_host_reads_what_it_read_in_a_rehearsal(modules):
    def code(x, steps):
        read = [x.sum().item() for _ in range(steps)]
        lowest, highest = torch.stack([x.min(), x.max()]).tolist()
        return read, bool((x > 0).any()), lowest, highest

    answers = modules["rehearsal"].rehearse(lambda: code(torch.tensor([1.0, 2.0]), 2), HERE)
    with modules["device_trace"].fake_cuda():
        x = cuda(2)
        with modules["device_trace"].DeviceTrace(HERE, answers) as trace:
            found = code(x, 3)
    assert found == ([3.0, 3.0, 3.0], True, 1.0, 2.0)
    assert len(trace.waits) == 5


def test_answers_for_code_without_a_rehearsal(modules):
    def reads(x):
        return x.tolist()

    def others(x):
        return bool(x[0] > 0), int(x[0]), x.double().sum().item()

    name = f"{Path(__file__).stem}.test_answers_for_code_without_a_rehearsal.<locals>.reads"
    answers = modules["rehearsal"].Answers(by_function={name: [1.0]})
    with modules["device_trace"].fake_cuda():
        x = cuda(1)
        with modules["device_trace"].DeviceTrace(HERE, answers):
            assert reads(x) == [1.0]
            assert others(x) == (False, 0, 0.0)
        with modules["device_trace"].DeviceTrace(HERE):
            assert reads(x) == [0.0]


def test_constants_on_the_host_are_real(trace):
    points = torch.linspace(0, 1, 5)
    assert points.sum().item() == 2.5
    assert points.to("cuda").device.type == "cuda"
    assert points.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_triton_kernels_are_launches(modules, trace, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    @triton.jit
    def doubled(x, out, size):
        pass

    x, out = cuda(256), cuda(256)
    with torch.cuda.device_of(x):  # as kernels are started where there are several GPUs
        doubled[(4,)](x, out, 256)
    costs = modules["op_costs"]
    monkeypatch.setitem(
        costs.KERNEL_COSTS,
        "doubled",
        lambda x, out, size, **options: costs.Cost(4 * size, 4 * size, size, x.dtype),
    )
    doubled[(4,)](x, out, size=256)
    assert counted(trace) == [("doubled", 2 * KIB, 0), ("doubled", KIB, KIB)]
    assert trace.launches[-1].cost.flops == 256
    assert trace.launches[-1].place.line > 0


def test_custom_operators_are_launches(modules, trace, monkeypatch):
    @torch.library.custom_op("mce_llm_dry_run::tripled", mutates_args=())
    def tripled(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    tripled.register_fake(torch.empty_like)
    tripled(cuda(256))
    costs = modules["op_costs"]
    monkeypatch.setitem(costs.KERNEL_COSTS, "tripled", lambda x: costs.Cost(1, 2, 3, x.dtype))
    tripled(cuda(256))
    assert counted(trace) == [("tripled", KIB, KIB), ("tripled", 1, 2)]


def test_roofline_takes_the_slowest_of_three(modules):
    roofline, trace = modules["roofline"], modules["device_trace"]
    machine = roofline.Machine(bandwidth=2.0, bfloat16=500.0, float32=50.0, launch=4.0, eigh_call=80.0)
    nowhere = modules["code_places"].NOWHERE

    def seconds(name="mm", shape=(), **cost):
        return machine.seconds(trace.Launch(name, modules["op_costs"].Cost(**cost), nowhere, shape))

    assert seconds(read=10, written=10) == pytest.approx(4e-6)
    assert seconds(read=10**9, written=10**9) == pytest.approx(1e-3)
    assert seconds(read=0, written=0, flops=10**12, dtype=torch.float32) == pytest.approx(0.02)
    assert seconds(read=0, written=0, flops=10**12, dtype=torch.bfloat16) == pytest.approx(0.002)
    small = seconds("_linalg_eigh", (1000, 8), read=0, written=0, flops=1, dtype=torch.float32)
    assert small == pytest.approx(180e-6)
    large = seconds("_linalg_eigh", (1, 512), read=0, written=0, flops=10**12, dtype=torch.float32)
    assert large == pytest.approx(0.02)


def test_stages_are_told_by_the_innermost_function_that_has_one(modules):
    stage_of = modules["roofline"].stage_of
    stages = {"inner.Class": "a", "outer": "b"}

    def found(*calls):
        return stage_of(modules["code_places"].Place("f.py", 1, calls), stages, "rest")

    assert found("inner.Class.method", "outer.function") == "a"
    assert found("inner.other", "outer.function.<locals>.closure") == "b"
    assert found("inner.Classes.method") == found() == "rest"
