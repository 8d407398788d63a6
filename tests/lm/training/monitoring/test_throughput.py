"""Tokens a second, model FLOPs and memory: counts that are exact, and what is taken off the clock."""

import pytest
import torch
import transformers

from helpers.models import make_model
from helpers.monitored import Rows, arguments, collate, logged, trained, trainer_for
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.training.monitoring import ThroughputCallback, paused, throughput
from mce_llm.lm.training.monitoring.flops import ModelFlops, peak_flops


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def timed(trainer):
    """Has a trainer read its throughput off the clock that is returned."""
    clock, callbacks = Clock(), trainer.callback_handler.callbacks
    (place,) = [n for n, callback in enumerate(callbacks) if isinstance(callback, ThroughputCallback)]
    callbacks[place] = ThroughputCallback(trainer, clock=clock)
    return clock


class Slow(transformers.TrainerCallback):
    """Takes its time, each time that something happens."""

    def __init__(self, event, clock, seconds):
        setattr(self, event, lambda *_, **__: clock.passes(seconds))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_counts_of_each_window(tmp_path, accumulation):
    trainer = trained(tmp_path, gradient_accumulation_steps=accumulation, logging_steps=2)
    rows, at_once = Rows(), 2 * accumulation
    for window, step in enumerate((2, 4)):
        taken = [rows[i] for i in range(window * 2 * at_once, (window + 1) * 2 * at_once)]
        labels = sum(int((row["labels"][1:] != -100).sum()) for row in taken)
        seconds = logged(trainer, "step_time")[step] * 2
        for name, count in (
            ("tokens_per_second", 10 * len(taken)),
            ("trained_tokens_per_second", labels),
            ("samples_per_second", len(taken)),
        ):
            assert logged(trainer, name)[step] * seconds == pytest.approx(count), name
    assert 0.05 < logged(trainer, "cpu_memory_gib")[4] < 64
    assert not logged(trainer, "mfu")
    assert not logged(trainer, "gpu_memory_gib")


def test_memory_of_a_device_that_counts_it(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(throughput, "peak_memory", lambda device: (3 * 2**30, 4 * 2**30))
    monkeypatch.setattr(throughput, "synchronize", waits.append)
    trainer = trained(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    assert logged(trainer, "gpu_memory_gib")[2] == 3
    assert logged(trainer, "gpu_memory_reserved_gib")[2] == 4
    assert waits == [trainer.args.device], "once, before the evaluation"


def test_padding_does_not_count(tmp_path):
    def padded(rows):
        batch = collate(rows)
        batch["attention_mask"][0, 6:] = 0
        return batch

    trainer = trainer_for(tmp_path, max_steps=1)
    trainer.data_collator = padded
    trainer.train()
    assert logged(trainer, "tokens_per_second")[1] * logged(trainer, "step_time")[1] == pytest.approx(16)


@pytest.mark.parametrize(
    ("event", "counted"),
    [("on_step_begin", 3), ("on_prediction_step", 0), ("on_save", 0), ("on_evaluate", 0)],
)
def test_what_the_clock_counts(tmp_path, event, counted):
    """Evaluation and saving are taken off; time inside of steps is not."""
    trainer = trainer_for(
        tmp_path,
        max_steps=3,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    # In front of the clock, which takes off what has happened by the time that it is told.
    clock = timed(trainer)
    trainer.callback_handler.callbacks.insert(0, Slow(event, clock, 7.0))
    trainer.train()
    assert clock.now > 100  # it happened
    assert logged(trainer, "step_time")[3] * 3 == pytest.approx(7.0 * counted, abs=1e-6)


def test_windows_are_of_the_time_between_two_logs(tmp_path):
    trainer = trainer_for(tmp_path, logging_steps=2)
    clock = timed(trainer)
    lasts = iter((1.0, 2.0, 4.0, 8.0))

    class Step(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.passes(next(lasts))

    trainer.add_callback(Step())
    trainer.train()
    assert logged(trainer, "step_time") == pytest.approx({2: 1.5, 4: 6.0})
    assert logged(trainer, "samples_per_second") == pytest.approx({2: 4 / 3, 4: 4 / 12})


def test_sampling_is_taken_off(tmp_path):
    class Sampling(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.passes(0.5)
            with paused(trainer):
                clock.passes(7.0)

    trainer = trainer_for(tmp_path, logging_steps=4)
    clock = timed(trainer)
    trainer.add_callback(Sampling())
    trainer.train()
    assert clock.now == 100 + 4 * 7.5
    assert logged(trainer, "step_time")[4] == pytest.approx(0.5)


def test_stock_trainer_by_hand(tmp_path):
    model = make_model()
    patch = patch_model(model, MatrixLossConfig())
    trainer = transformers.Trainer(
        model=model, args=arguments(tmp_path), train_dataset=Rows(), data_collator=collate
    )
    trainer.add_callback(ThroughputCallback(trainer, patch))
    trainer.train()
    assert len(logged(trainer, "tokens_per_second")) == 4


def test_utilisation_is_flops_over_time_and_peak(tmp_path, monkeypatch):
    """On this CPU with a pretended peak: what is a GPU's alone is the look-up of its name."""
    trainer = trainer_for(tmp_path, max_steps=2)
    (clock,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, ThroughputCallback)]
    clock._peak, clock._flops = 1e9, ModelFlops.of(trainer.model)
    trainer.train()
    for step in (1, 2):
        tokens = 20
        flops = tokens * (clock._flops.fixed + 10 * clock._flops.per_position)
        expected = flops / logged(trainer, "step_time")[step] / 1e9
        assert logged(trainer, "mfu")[step] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA A100-PCIE-40GB", 311.9),
        ("NVIDIA A10G", None),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A6000", 154.8),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_by_name(name, tera):
    assert peak_flops(name) == (None if tera is None else pytest.approx(tera * 1e12))


def matmul_flops(model, rows, length):
    """What PyTorch's own counter sees of forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(3, 60, (rows, length))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt-neox", "qwen3-tied", "phi-bias"])
def test_flops_are_those_that_pytorch_counts(family):
    """In the matrix products; norms and biases are some of N's parameters and none of the counter's."""
    model = make_model(family, max_position_embeddings=256)
    counted = matmul_flops(model, 2, 96)
    flops = ModelFlops.of(model).of_tokens(2 * 96, 2 * 96 * 96)
    assert flops == pytest.approx(counted, rel=0.05)


def test_frozen_weights_need_no_gradient_of_their_own():
    model = make_model()
    whole = ModelFlops.of(model)
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    head = model.lm_head.weight.numel()
    assert ModelFlops.of(model).fixed == pytest.approx(4 * whole.fixed / 6 + 2 * head)


def test_only_active_experts_count():
    model = make_model("mixtral-router", num_local_experts=4, num_experts_per_tok=2)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    table = model.get_input_embeddings().weight.numel()
    others = sum(p.numel() for p in model.parameters()) - experts - table
    assert experts > 0
    assert ModelFlops.of(model).fixed == pytest.approx(6 * (others + experts / 2))
