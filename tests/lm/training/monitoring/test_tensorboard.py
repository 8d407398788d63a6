"""Event files read back: the scalars that were logged, at their steps, the histograms, the charts; and no secret."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.monitored import logged, trained
from mce_llm.lm.training.monitoring.charts import layout_of

CANARY = "hf_canaryCANARYcanary0123456789"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    trainer = trained(
        folder,
        report_to="tensorboard",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        hub_token=CANARY,
    )
    trainer.save_model()
    trainer.save_state()
    (events,) = (folder / "runs").iterdir()
    accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return trainer, folder, accumulator.Reload()


def test_scalars_are_those_of_the_log_history(run):
    trainer, _, events = run
    names = [
        "loss",
        "ce_loss",
        "mce_loss",
        "hidden_effective_rank",
        "hidden_top_share",
        "density_effective_rank",
        "density_top_share",
        "tail_mass",
        "quadrature_gap",
        "tokens_per_second",
        "trained_tokens_per_second",
        "samples_per_second",
        "step_time",
        "cpu_memory_gib",
    ]
    for name in names:
        seen = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert seen == pytest.approx(logged(trainer, name), rel=1e-6), name
    assert [event.step for event in events.Scalars("eval/hidden_effective_rank")] == [2, 4]


def test_histograms_hold_every_eigenvalue(run):
    _, _, events = run
    for name, count in (("hidden", range(4, 17)), ("density", range(16, 17))):
        histograms = events.Histograms(f"spectra/{name}")
        assert [event.step for event in histograms] == [1, 2, 4]
        assert all(event.histogram_value.num in count for event in histograms)
        assert all(event.histogram_value.max <= 0 for event in histograms)  # log10 of shares


def test_charts_name_curves_that_exist(run):
    _, _, events = run
    assert any("custom_scalars" in tag for tag in events.Tags()["tensors"])
    known = set(events.Tags()["scalars"])
    curves = {curve for page in layout_of("mce").values() for chart in page.values() for curve in chart}
    assert {curve for curve in curves - known if "gpu" not in curve and "mfu" not in curve} == set()
    for loss, names in (("label_smoothing", ["smoothing_loss"]), ("emo", ["emo_loss", "emo_distance"])):
        added = {curve for chart in layout_of(loss)["Loss"].values() for curve in chart} - curves
        assert added == {f"{place}/{name}" for place in ("train", "eval") for name in names}


def test_no_secret_is_in_any_file(run):
    """The event files (args are a text in them), trainer_state.json, training_args.bin, all of it."""
    _, folder, _ = run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"trainer_state.json", "training_args.bin", "spectra.jsonl"} <= {path.name for path in files}
    assert any(path.name.startswith("events.out") for path in files)
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_the_token_itself_stays_usable(run):
    trainer, _, _ = run
    assert trainer.args.hub_token == CANARY
    assert CANARY not in str(trainer.args)
