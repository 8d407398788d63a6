"""`eval_loss` is CE + λ·MCE over all labels: the same for every number of processes, batch size and engine.

With `-m slow -s` the whole table is printed.
"""

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer

from helpers.engines import run_engine
from helpers.models import make_model
from helpers.monitored import Rows, arguments, collate, logged
from mce_llm.lm import LossInputError, MatrixTrainer

# Relative. The sums are taken in another order, and products of other shapes round otherwise: float32, 6e-8 each.
SAME = 1e-6
# With two and three processes and batches of 1, 3 and 8: some that divide, some that do not, fewer than processes.
SETS = {str(count): {"count": count} for count in (1, 2, 4, 5, 7, 24)}
PARTS = ("loss", "ce_loss", "mce_loss")


def evaluated(batch_size, sets=SETS, **more):
    """A run whose learning rate is zero: engines evaluate only what they train."""
    settings = {
        "matrix_weight": 0.7,
        "report_to": "none",
        "monitor_steps": 0,
        "max_steps": 1,
        "learning_rate": 0.0,
    }
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": batch_size}
    return {"arguments": {**settings, **more.pop("arguments", {})}, "evaluate": sets, **more}


def by_batch(*sizes, **more):
    return {str(size): evaluated(size, **more) for size in sizes}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, every batch size."""
    return run_engine(tmp_path_factory.mktemp("alone"), "single", 1, by_batch(1, 3, 8))


def check_same(got, expected, title):
    """Every set's loss, with any batch size, is that of one process that takes a row at a time."""
    base, worst = expected["1"][0][0]["evaluations"], 0.0
    for size, (logs, _) in got.items():
        assert len({tuple(log["evaluations"][f"eval_{n}_loss"] for n in SETS) for log in logs}) == 1, (
            "ranks differ"
        )
        found = logs[0]["evaluations"]
        for name in SETS:
            for part in PARTS:
                value = found[f"eval_{name}_{part}"]
                assert value == pytest.approx(base[f"eval_{name}_{part}"], rel=SAME), (
                    title,
                    size,
                    name,
                    part,
                )
                worst = max(worst, abs(value / base[f"eval_{name}_{part}"] - 1))
            total = found[f"eval_{name}_ce_loss"] + 0.7 * found[f"eval_{name}_mce_loss"]
            assert found[f"eval_{name}_loss"] == pytest.approx(total, rel=1e-12)
        losses = "  ".join(f"{name}: {found[f'eval_{name}_loss']:.6f}" for name in SETS)
        print(f"{title:18} batch {size}  {losses}  (so far within {worst:.0e})")


def test_the_batch_size_does_not_matter(alone):
    check_same(alone, alone, "one process")
    values = [alone["1"][0][0]["evaluations"][f"eval_{name}_loss"] for name in SETS]
    assert min(abs(a / b - 1) for i, a in enumerate(values) for b in values[:i]) > 1e3 * SAME, "rows differ"


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_nor_do_processes(tmp_path, alone, processes):
    check_same(
        run_engine(tmp_path, "ddp", processes, by_batch(1, 3, 8)), alone, f"ddp, {processes} processes"
    )


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_nor_does_the_engine(tmp_path, alone, engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    got = run_engine(tmp_path, engine, 2, by_batch(3, 8))
    assert all(log["processes"] == 2 for logs, _ in got.values() for log in logs)
    check_same(got, alone, f"{engine}, 2 processes")


def test_faults_would_be_caught(tmp_path, alone):
    """Negative control: rows that fill up a batch counted again; each rank with its own mean."""
    runs = {
        "counted": evaluated(3, fault="repeated rows counted"),
        "apart": evaluated(3, fault="ranks apart"),
    }
    got = run_engine(tmp_path, "ddp", 2, runs)
    base = alone["1"][0][0]["evaluations"]
    for name, wrong_for in (("counted", ("4", "5", "7")), ("apart", ("7", "24"))):
        found = got[name][0][0]["evaluations"]
        for rows in wrong_for:
            assert abs(found[f"eval_{rows}_loss"] / base[f"eval_{rows}_loss"] - 1) > 1e3 * SAME, (name, rows)


def make_trainer(folder, trainer_class=MatrixTrainer, rows=None, callbacks=(), **changes):
    return trainer_class(
        model=make_model(),
        args=arguments(folder, monitor_steps=0, matrix_weight=0.7, **changes),
        train_dataset=Rows(16),
        eval_dataset=Rows(7, seed=9) if rows is None else rows,
        data_collator=collate,
        callbacks=list(callbacks),
    )


def total(metrics, prefix="eval"):
    return metrics[f"{prefix}_ce_loss"] + 0.7 * metrics[f"{prefix}_mce_loss"]


def test_every_prefix_and_prediction(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.evaluate(metric_key_prefix="held_out")["held_out_loss"] == pytest.approx(
        trainer.evaluate()["eval_loss"]
    )
    metrics = trainer.evaluate({"a": Rows(5), "b": Rows(7, seed=9)})
    assert metrics["eval_b_loss"] == pytest.approx(total(metrics, "eval_b"), rel=1e-12)
    assert metrics["eval_a_loss"] == pytest.approx(total(metrics, "eval_a"), rel=1e-12)
    predicted = trainer.predict(Rows(7, seed=9)).metrics
    assert predicted["test_loss"] == pytest.approx(metrics["eval_b_loss"], rel=SAME)
    # Positional arguments, as subclasses of Trainer pass them.
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", True, None, "other")
    assert loop.metrics["other_loss"] == pytest.approx(total(loop.metrics, "other"), rel=1e-12)


def test_the_stock_mean_over_batches_is_another_number(tmp_path):
    """Negative control: rows weighted alike, whatever their number of labels."""
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=3)
    own = trainer.evaluate()["eval_loss"]
    stock = Trainer.evaluation_loop(trainer, trainer.get_eval_dataloader(), "Evaluation", True).metrics[
        "eval_loss"
    ]
    assert abs(own / stock - 1) > 1e3 * SAME


def test_it_chooses_the_best_model_and_stops_early(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=3.0,  # makes it worse
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    trainer.train()
    losses = logged(trainer, "eval_loss")
    assert trainer.state.best_metric == min(losses.values())
    assert losses[trainer.state.best_global_step] == min(losses.values())
    for entry in trainer.state.log_history:
        if "eval_loss" in entry:
            assert entry["eval_loss"] == pytest.approx(total(entry), rel=1e-12)
    assert trainer.state.global_step == trainer.state.best_global_step + 1 < 6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=SAME)


def blank(*indices, of=7):
    rows = [dict(row) for row in (Rows(of, seed=9)[i] for i in range(of))]
    for index in indices:
        first = rows[index]["input_ids"][0]
        rows[index]["labels"] = torch.full_like(rows[index]["labels"], -100)
        rows[index]["labels"][0] = first  # which nothing predicts
    return rows


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_a_batch_without_a_label_counts_nothing(tmp_path, kind):
    left = make_trainer(tmp_path, rows=blank()[1:], per_device_eval_batch_size=1, matrix_kind=kind).evaluate()
    all_of_them = make_trainer(
        tmp_path, rows=blank(0), per_device_eval_batch_size=1, matrix_kind=kind
    ).evaluate()
    for name in ("eval_loss", "eval_ce_loss", "eval_mce_loss", "eval_hidden_effective_rank"):
        assert all_of_them[name] == pytest.approx(left[name], rel=1e-9), name


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_an_evaluation_without_a_label_has_no_loss_and_says_so(tmp_path, caplog, weight):
    trainer = make_trainer(tmp_path, rows=blank(*range(7)))
    metrics = trainer.evaluate()
    assert not [name for name in metrics if "loss" in name]
    assert "no eval_loss: every label of the evaluation data is masked (-100)" in caplog.text
    assert "eval_runtime" in metrics


def test_without_labels_at_all_there_is_nothing_to_say(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    unlabelled = [{"input_ids": row["input_ids"]} for row in blank()]
    predictions = trainer.predict(unlabelled)
    assert predictions.predictions.shape == (7, 10, 61)
    assert "test_loss" not in predictions.metrics
    assert "no test_loss" not in caplog.text


def test_the_best_model_cannot_be_chosen_by_a_loss_that_is_not_there(tmp_path):
    trainer = make_trainer(
        tmp_path,
        rows=blank(*range(7)),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    with pytest.raises(
        LossInputError, match=r"no eval_loss: every label .* metric_for_best_model \(eval_loss\) needs it"
    ):
        trainer.train()


def test_routers_are_measured_beside_it(tmp_path):
    """The auxiliary loss is a mean over labels of a value of each batch, and no part of eval_loss."""
    trainer = make_trainer(tmp_path)
    trainer = MatrixTrainer(
        model=make_model("mixtral-router"),
        args=trainer.args,
        eval_dataset=Rows(7, seed=9),
        data_collator=collate,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(total(metrics), rel=1e-12)
    model, weighted, labels = trainer.model.eval(), 0.0, 0
    for first in (0, 4):
        batch = collate([Rows(7, seed=9)[i] for i in range(first, min(first + 4, 7))])
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            weighted += count * model(**batch).aux_loss.item()
        labels += count
    assert metrics["eval_aux_loss"] == pytest.approx(weighted / labels, rel=1e-5)


def test_predictions_are_given_where_they_are_asked_for_and_nowhere_else(tmp_path):
    """As the stock trainer gives them: by `predict` beside labels, and for metrics that are set later."""
    trainer = make_trainer(tmp_path)
    predictions = trainer.predict(Rows(7, seed=9))
    assert predictions.predictions.shape == (7, 10, 61)
    assert predictions.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(input_ids=collate([Rows(7, seed=9)[0]])["input_ids"]).logits
    torch.testing.assert_close(torch.as_tensor(predictions.predictions[:1]), logits, rtol=1e-4, atol=1e-5)
    seen = []
    trainer.compute_metrics = lambda output: seen.append(output.predictions.shape) or {"seen": 1.0}
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert seen == [(7, 10, 61)]
    trainer.compute_metrics = None
    own = trainer.compute_loss
    wanted = []
    trainer.compute_loss = lambda *a, **k: wanted.append(trainer.matrix_patch.keep_logits) or own(*a, **k)
    trainer.evaluate()
    assert wanted
    assert not any(wanted)
