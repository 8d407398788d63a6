"""The same mathematics on every engine: two processes with unequal numbers of trained tokens are one process.

A micro-step of two processes with two rows each is compared with one of four rows in one process. Three SGD steps;
what is compared are the losses of each step and the final weights, which differ from the first ones by nothing but
gradients. With `-m slow -s` the whole table is printed.
"""

import pytest

from helpers.engines import deviations, run_engine, start_weights

# Relative. Sums are taken in another order, which float32 feels at 1e-7; a changed weight is only known to the rounding
# of the weight itself (6e-8), which is up to 3e-5 of the change that three steps made to it.
LOSS, WEIGHT, CHANGE = 1e-5, 1e-6, 2e-4

ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
NAMES = {"zero3": "DEEPSPEED", "zero2": "DEEPSPEED", "fsdp2": "FSDP", "ddp": "MULTI_CPU"}


def case(kind, accumulation, family="llama", rows=2, loss="mce", **more):
    settings = {"matrix_kind": kind, "loss": loss, "gradient_accumulation_steps": accumulation}
    settings |= {"per_device_train_batch_size": rows, "report_to": "none", "monitor_steps": 0}
    return {"arguments": settings, "family": family, **more}


def cases(rows):
    """Every kind of loss and accumulation, and a tied head."""
    every = {
        f"{kind}-{accumulation}": case(kind, accumulation, rows=rows)
        for kind in ("token", "marginal", "expected")
        for accumulation in (1, 2, 4)
    }
    every |= {
        f"{loss}-{accumulation}": case("token", accumulation, rows=rows, loss=loss)
        for loss in ("label_smoothing", "emo")
        for accumulation in (1, 4)
    }
    tied = {
        f"{kind}-2-tied": case(kind, 2, "llama-tied", rows=rows) for kind in ("token", "marginal", "expected")
    }
    return every | tied


def few(rows):
    return {
        "token-2": case("token", 2, rows=rows),
        "marginal-1-tied": case("marginal", 1, "llama-tied", rows=rows),
        "label_smoothing-2": case("token", 2, rows=rows, loss="label_smoothing"),
        "emo-2-tied": case("token", 2, "llama-tied", rows=rows, loss="emo"),
    }


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The runs in one process, by name; made when first asked for."""
    made = {}

    def call(runs):
        if missing := {name: run for name, run in runs.items() if name not in made}:
            made.update(run_engine(tmp_path_factory.mktemp("one"), "single", 1, missing))
        return made

    return call


def compare(engine, got, expected, runs):
    for name, run in runs.items():
        (logs, weights), (whole, whole_weights) = got[name], expected[name]
        assert logs[0]["engine"] == NAMES[engine], name
        assert (logs[0]["processes"], whole[0]["processes"]) == (2, 1), name
        assert bool(logs[0]["sharded"]) == (engine in ("fsdp2", "zero3")), name
        beside = {"label_smoothing": ("smoothing_loss",), "emo": ("emo_loss", "emo_distance")}
        for part in ("loss", "ce_loss", *beside.get(run["arguments"]["loss"], ("mce_loss",))):
            assert logs[0][part], part
            assert logs[0][part] == pytest.approx(whole[0][part], rel=LOSS), (name, part)
        of_weight, of_change = deviations(weights, whole_weights, start_weights(run["family"]))
        of_loss = max(abs(a / b - 1) for a, b in zip(logs[0]["loss"], whole[0]["loss"], strict=True))
        print(f"{engine:6} {name:16} loss {of_loss:.1e} weights {of_weight:.1e} change {of_change:.1e}")
        assert of_weight < WEIGHT, name
        assert of_change < CHANGE, name


HEAVY = [pytest.param(engine, marks=[pytest.mark.slow, pytest.mark.ci]) for engine in ENGINES[1:]]


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.ci), *HEAVY])
def test_two_processes_are_one(tmp_path, engine, one_process):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    runs = few(rows=2)
    compare(engine, run_engine(tmp_path, engine, 2, runs), one_process(few(rows=4)), runs)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_kind_and_accumulation(tmp_path, engine, one_process):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    runs = cases(rows=2)
    compare(engine, run_engine(tmp_path, engine, 2, runs), one_process(cases(rows=4)), runs)


def test_faults_would_be_caught(tmp_path, one_process):
    """Negative control: the two classic mistakes are other training runs, by far."""
    runs = {
        "marginal-1-tied": case("marginal", 1, "llama-tied", fault="statistics not shared"),
        "token-2": case("token", 2, fault="accumulation ignored"),
        "emo-2-tied": case("token", 2, "llama-tied", loss="emo", fault="accumulation ignored"),
    }
    got, expected = run_engine(tmp_path, "ddp", 2, runs), one_process(few(rows=4))
    for name, run in runs.items():
        _, of_change = deviations(got[name][1], expected[name][1], start_weights(run["family"]))
        assert of_change > 50 * CHANGE, name
