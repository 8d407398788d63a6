"""MatrixTrainer: the stock trainer's losses at weight 0, exact accumulation, logged parts, refusals, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from helpers.models import make_batch, make_model
from helpers.monitored import InOrder, Rows, collate
from mce_llm.lm import (
    MatrixLossConfig,
    MatrixTrainer,
    MatrixTrainingArguments,
    NonFiniteLossError,
    TokenGeometry,
    UnsupportedModelError,
    reference_matrix_cross_entropy,
)


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }
    return MatrixTrainingArguments(**settings)


def trained(folder, trainer_class=MatrixTrainer, model=None, **changes):
    model = model or make_model()
    trainer = trainer_class(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=Rows(),
        eval_dataset=Rows(7, seed=9),
        data_collator=collate,
    )
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "gemma2-softcap", "gpt-neox-tied"])
def test_weight_zero_is_the_stock_trainer(tmp_path, family, accumulation):
    # One batch: the stock evaluation is a mean over batches.
    changes = {
        "gradient_accumulation_steps": accumulation,
        "matrix_weight": 0.0,
        "per_device_eval_batch_size": 7,
    }
    ours = trained(tmp_path / "a", model=make_model(family), **changes)
    stock = trained(tmp_path / "b", transformers.Trainer, model=make_model(family), **changes)
    assert logged(ours, "loss") == pytest.approx(logged(stock, "loss"), rel=1e-5)
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)
    for (name, a), b in zip(ours.model.named_parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert not logged(ours, "mce_loss")


def test_a_model_without_anything_to_train(tmp_path):
    """It can be evaluated all the same."""
    model = make_model().requires_grad_(False)
    trainer = MatrixTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=Rows(),
        eval_dataset=Rows(3),
        data_collator=collate,
    )
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(UnsupportedModelError, match=r"all parameters of the .*ForCausalLM are frozen: train"):
        trainer.train()


@pytest.mark.parametrize(
    ("loss", "beside"),
    [
        ("mce", ("mce_loss",)),
        ("label_smoothing", ("smoothing_loss",)),
        ("emo", ("emo_loss", "emo_distance")),
    ],
)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_token_loss_is_that_of_the_whole_batch(tmp_path, accumulation, loss, beside):
    whole = trained(tmp_path / "a", per_device_train_batch_size=8, loss=loss)
    parts = trained(
        tmp_path / "b",
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        loss=loss,
    )
    for name in ("loss", "ce_loss", *beside):
        assert len(logged(whole, name)) == 3
        assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-5)
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_logged_parts_add_up_and_equal_the_definition(tmp_path, kind):
    trainer = trained(tmp_path, InOrder, matrix_kind=kind, matrix_weight=0.7, max_steps=1, matrix_order=16)
    (loss,), (cross_entropy,), (matrix,) = (logged(trainer, n) for n in ("loss", "ce_loss", "mce_loss"))
    assert loss == pytest.approx(cross_entropy + 0.7 * matrix, rel=1e-5)
    model = make_model().eval()
    batch = collate([Rows()[0], Rows()[1]])
    labels = batch["labels"][:, 1:].flatten()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].double().flatten(0, 1)
    config = MatrixLossConfig(kind=kind)
    geometry = TokenGeometry.from_table(model.lm_head.weight.double(), config)
    assert matrix == pytest.approx(
        reference_matrix_cross_entropy(logits, labels, geometry, config).item(), rel=1e-3
    )


def test_batch_kinds_average_micro_batches_by_their_share_of_tokens(tmp_path):
    trainer = trained(tmp_path, InOrder, matrix_kind="marginal", gradient_accumulation_steps=2, max_steps=1)
    config = MatrixLossConfig(kind="marginal")
    model = make_model().eval()
    geometry = TokenGeometry.from_table(model.lm_head.weight.double(), config)
    total, tokens = 0.0, 0
    for first in (0, 2):
        batch = collate([Rows()[first], Rows()[first + 1]])
        labels = batch["labels"][:, 1:].flatten()
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].double().flatten(0, 1)
        count = int((labels != -100).sum())
        total += count * reference_matrix_cross_entropy(logits, labels, geometry, config).item()
        tokens += count
    assert logged(trainer, "mce_loss") == pytest.approx([total / tokens], rel=1e-4)


def test_evaluation_reports_means_over_labels_and_the_effective_rank(tmp_path):
    trainer = trained(tmp_path, matrix_weight=0.0, max_steps=1)
    metrics = trainer.evaluate()
    rows, model = Rows(7, seed=9), trainer.model.eval()
    batch = collate([rows[i] for i in range(7)])
    with torch.no_grad():
        states = model.model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
        logits = model.lm_head(states)
    labels = batch["labels"][:, 1:].flatten()
    config = MatrixLossConfig()
    geometry = TokenGeometry.from_table(model.lm_head.weight.double(), config)
    expected = {
        "eval_ce_loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        "eval_mce_loss": reference_matrix_cross_entropy(logits.double(), labels, geometry, config).item(),
    }
    spectrum = torch.linalg.eigvalsh(torch.cov(states[labels != -100].double().T, correction=0)).clamp_min(0)
    share = spectrum / spectrum.sum()
    expected["eval_hidden_effective_rank"] = torch.exp(torch.special.entr(share).sum()).item()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    assert 0 <= metrics["eval_tail_mass"] < 1
    assert "eval_quadrature_gap" in metrics


@pytest.mark.parametrize("model_loss", ["label_smoothing", "emo"])
def test_evaluation_of_another_loss_is_a_function_of_the_data_alone(tmp_path, model_loss):
    """Batches of 1, 3 and 7 rows with unequal numbers of labels: the same loss, which its parts add up to."""
    found = []
    for size in (1, 3, 7):
        args = arguments(tmp_path, loss=model_loss, per_device_eval_batch_size=size)
        trainer = MatrixTrainer(
            model=make_model(), args=args, eval_dataset=Rows(7, seed=9), data_collator=collate
        )
        found.append(trainer.evaluate())
    share, parts = trainer.matrix_patch.config.shares
    for metrics in found:
        total = share * metrics["eval_ce_loss"]
        total += sum(b * metrics[f"eval_{name}"] for name, b in parts.items())
        assert metrics["eval_loss"] == pytest.approx(total, rel=1e-12)
        for name in ("eval_loss", "eval_mce_loss", "eval_ce_loss", *(f"eval_{name}" for name in parts)):
            assert metrics[name] == pytest.approx(found[0][name], rel=1e-6), name


def test_compute_metrics_gets_the_logits(tmp_path):
    trainer = MatrixTrainer(
        model=make_model(),
        args=arguments(tmp_path),
        eval_dataset=Rows(7, seed=9),
        data_collator=collate,
        compute_metrics=lambda p: {"shape": list(p.predictions.shape)},
    )
    assert trainer.evaluate()["eval_shape"] == [7, 10, 61]


def test_model_init_is_patched_too(tmp_path):
    trainer = MatrixTrainer(
        model_init=lambda: make_model(), args=arguments(tmp_path), train_dataset=Rows(), data_collator=collate
    )
    trainer.train()
    assert len(logged(trainer, "mce_loss")) == 3


def test_saved_model_is_stock(tmp_path):
    trainer = trained(tmp_path / "run", max_steps=1)
    trainer.save_model(tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    batch = make_batch()
    expected = trainer.model.eval()(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(loaded.eval()(input_ids=batch["input_ids"]).logits, expected)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 1: the loss is nan on rank 0, micro-batch 1 of 1, training rows \d+, \d+\. Training stopped",
    ):
        trained(tmp_path, model=model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix_weight": -1.0}, "in the matrix_. settings: weight must be a finite number ≥ 0, got -1.0"),
        ({"matrix_shrinkage": 1.2}, r"shrinkage must be in \[0, 1\), got 1.2"),
        ({"matrix_kind": "tokn"}, "did you mean 'token'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor replaces the model's loss"),
        ({"loss": "ce", "emo_weight": 0.5}, "emo_weight belongs to the loss emo, and with loss ce"),
    ],
)
def test_settings_that_would_mislead_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        MatrixTrainer(model=make_model(), args=arguments(tmp_path, **changes), data_collator=collate)


def test_stock_arguments_need_a_matrix_loss(tmp_path):
    stock = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"pass matrix_loss=MatrixLossConfig"):
        MatrixTrainer(model=make_model(), args=stock)
    trainer = MatrixTrainer(model=make_model(), args=stock, matrix_loss=MatrixLossConfig(kind="marginal"))
    assert trainer.matrix_patch.config.kind == "marginal"


@pytest.mark.parametrize(("kind", "what"), [("cp", "context"), ("sp", "sequence")])
def test_sequences_are_not_split_over_processes(tmp_path, kind, what):
    config = pytest.importorskip("accelerate.parallelism_config").ParallelismConfig()
    setattr(config, f"{kind}_size", 2)
    with pytest.raises(ValueError, match=f"{what} parallelism was asked for"):
        MatrixTrainer(model=make_model(), args=arguments(tmp_path, parallelism_config=config))


@pytest.mark.parametrize("stock", [False, True], ids=["own arguments", "stock arguments"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_precision_of_a_launch_is_in_the_arguments(tmp_path, monkeypatch, precision, stock):
    """Guards, cards and comparisons look there."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    if stock:
        args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        trainer = MatrixTrainer(model=make_model(), args=args, matrix_loss=MatrixLossConfig())
    else:
        trainer = MatrixTrainer(model=make_model(), args=arguments(tmp_path))
    assert trainer.accelerator.mixed_precision == precision
    assert [trainer.args.bf16, trainer.args.fp16] == [precision == "bf16", precision == "fp16"]


def test_layers_of_fp8_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision fp8 at the launch"):
        MatrixTrainer(model=make_model(), args=arguments(tmp_path))


def test_another_loss_function_is_refused(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func replaces the model's loss"):
        MatrixTrainer(model=make_model(), args=arguments(tmp_path), compute_loss_func=lambda *_, **__: None)


def test_support_zero_means_the_full_vocabulary(tmp_path):
    assert arguments(tmp_path, matrix_support=0).matrix_loss.support is None
    assert arguments(tmp_path, matrix_support=5).matrix_loss.support == 5


WORKER = """
import json, sys
sys.path[:0] = {folders!r}
from test_trainer import Rows, collate, arguments, make_model, InOrder, logged
import torch
from mce_llm.running.processes import leave_processes

kind, accumulation, rows, out, broken = sys.argv[1:]
args = arguments(out, matrix_kind=kind, gradient_accumulation_steps=int(accumulation), max_steps=3,
                 per_device_train_batch_size=int(rows), matrix_order=16, seed=3)

class Broken(InOrder):
    def compute_loss(self, *a, **k):
        import mce_llm.lm.training.mixin as home
        home._world_size = lambda: 1
        return super().compute_loss(*a, **k)

trainer = (Broken if broken == "no-reduce" else InOrder)(model=make_model(), args=args, train_dataset=Rows(48), eval_dataset=Rows(8, seed=9),
                     data_collator=collate)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    torch.save(dict(trainer.model.state_dict()), out + "/weights.pt")
    json.dump({{"loss": logged(trainer, "loss"), "ce": logged(trainer, "ce_loss"), "mce": logged(trainer, "mce_loss"),
               "world": trainer.accelerator.num_processes,
               "eval": [metrics["eval_loss"], metrics["eval_ce_loss"], metrics["eval_hidden_effective_rank"]]}}, open(out + "/log.json", "w"))
leave_processes()
"""


def launch(folder, processes, kind, accumulation, rows, broken="none"):
    """Train in real processes over gloo; (weights, log)."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "worker.py"
    script.write_text(WORKER.format(folders=[str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(script), kind, str(accumulation), str(rows), str(folder), broken]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "weights.pt"), json.loads((folder / "log.json").read_text())


def deviation(a, b):
    """Largest relative deviation over the weights, measured against what three steps changed."""
    start = make_model().state_dict()
    return max(
        ((a[n].double() - b[n].double()).norm() / (b[n] - start[n]).double().norm().clamp_min(1e-9)).item()
        for n in b
    )


@pytest.mark.slow  # tests/lm/test_engines.py has fast ones
@pytest.mark.parametrize(
    ("kind", "accumulation"),
    [("token", 2), ("marginal", 1), ("expected", 1)],
)
def test_two_processes_with_unequal_tokens_are_one_process(tmp_path, kind, accumulation):
    """A micro-step of two processes with two rows each is one micro-step of four rows."""
    two, two_log = launch(tmp_path / "two", 2, kind, accumulation, 2)
    one, one_log = launch(tmp_path / "one", 1, kind, accumulation, 4)
    assert (two_log["world"], one_log["world"]) == (2, 1)
    for name in ("loss", "ce", "mce", "eval"):
        assert two_log[name] == pytest.approx(one_log[name], rel=1e-4), name
    assert deviation(two, one) < 1e-4


@pytest.mark.slow
def test_statistics_that_are_not_shared_would_be_caught(tmp_path):
    """Negative control: each rank with its own covariance is another training run."""
    broken, _ = launch(tmp_path / "two", 2, "marginal", 1, 2, broken="no-reduce")
    one, _ = launch(tmp_path / "one", 1, "marginal", 1, 4)
    assert deviation(broken, one) > 1e-2


def test_rows_are_unequal_enough_to_show_wrong_averaging():
    counts = [int((row["labels"][1:] != -100).sum()) for row in (Rows()[i] for i in range(4))]
    assert len(set(counts)) == 4
    assert min(counts) >= 1
