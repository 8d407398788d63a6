"""Bytes a parameter, against the literature and against what PyTorch really keeps."""

import pytest
import torch
import transformers
from transformers.optimization import Adafactor

from helpers.models import make_model
from mce_llm.planning import ENGINES, ParameterGroup, PlanningError, shape_of
from mce_llm.planning.engines import state_terms
from mce_llm.planning.states import OPTIMIZERS, precision, state_bytes, weight_bytes


def seven_billion():
    """Llemma-7B's shape: Llama 2 7B with 32,016 rows of vocabulary."""
    config = transformers.LlamaConfig(
        vocab_size=32016,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        return shape_of(transformers.LlamaForCausalLM(config))


def test_seven_billion_parameters():
    """The number that Llemma's model card and any count of its shapes give."""
    assert seven_billion().parameters == 6_738_546_688


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_full_mixed_precision_training_takes_sixteen_bytes_a_parameter(engine, run_of):
    """ZeRO paper, §3.1: 16 Ψ for Adam in mixed precision, however an engine divides it up."""
    model = seven_billion()
    run = run_of(mixed="bfloat16")
    total = sum(term.bytes for term in state_terms(ENGINES[engine], model, run, 1) if term.phase == "always")
    assert total == 16 * model.parameters


@pytest.mark.parametrize(
    ("engine", "devices", "expected"),
    [
        # ZeRO paper, figure 1: stage 2 is 2Ψ + 14Ψ/N, stage 3 is 16Ψ/N.
        ("zero2", 64, 2 + 14 / 64),
        ("zero3", 64, 16 / 64),
        ("fsdp2", 64, 16 / 64),
        ("ddp", 64, 16),
        ("zero3_offload", 64, 0),
    ],
)
def test_engines_divide_states(engine, devices, expected, run_of):
    model = seven_billion()
    terms = state_terms(ENGINES[engine], model, run_of(mixed="bfloat16"), devices)
    total = sum(term.bytes for term in terms if term.phase == "always")
    assert total == pytest.approx(expected * model.parameters)


def test_offload_moves_all_states_to_the_host(run_of):
    """2 weights + 2 gradients + 4 gradients in float32 + 4 masters + 8 Adam, once, whatever the number of GPUs."""
    model = seven_billion()
    for devices in (1, 8):
        terms = state_terms(ENGINES["zero3_offload"], model, run_of(mixed="bfloat16"), devices)
        assert {term.phase for term in terms} == {"host"}
        assert sum(term.bytes for term in terms) == 20 * model.parameters


@pytest.mark.parametrize(
    ("dtype", "mixed", "expected"),
    [("float32", None, 16), ("float32", "bfloat16", 16), ("bfloat16", "bfloat16", 8), ("bfloat16", None, 8)],
)
def test_weights_gradients_and_adam_on_one_gpu(dtype, mixed, expected, run_of):
    """Pure bfloat16 keeps its states in bfloat16 too: 2 + 2 + 2·2."""
    model = shape_of(make_model())
    terms = state_terms(ENGINES["ddp"], model, run_of(dtype=dtype, mixed=mixed), 1)
    assert sum(term.bytes for term in terms if term.phase == "always") == expected * model.parameters


def test_quantised_weights():
    """QLoRA, §3: 4 bits, 8/64 for a quantised scale a block of 64, 32/(64·256) for the scales' scales."""
    group = ParameterGroup("linear", (64, 64), trained=False)
    from mce_llm.planning import LossShape, TrainingShape

    def width(quantization):
        loss = LossShape("token", 0.0, 64, 8, 8)
        run = TrainingShape(
            1,
            8,
            "bfloat16",
            "bfloat16",
            "sgd",
            False,
            "sdpa",
            loss,
            quantization=quantization,
            adapter_rank=2,
        )
        return precision(run, engine_casts=False, keeps_masters=False).weight(group)

    assert width("4bit") * 8 == pytest.approx(4.127, abs=5e-4)
    assert width("8bit") == 1
    assert width(None) == 2


OPTIMIZER_CLASSES = {
    "adamw_torch": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adafactor": lambda p: Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZER_CLASSES)
def test_states_are_the_real_bytes_after_a_step(name, dtype, run_of):
    """Tensors in the optimizer's own state, but for the step counts, which are scalars."""
    model = make_model().to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = OPTIMIZER_CLASSES[name](model.parameters())
    optimizer.step()
    real = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    run = run_of(
        optim=name.partition("-")[0],
        momentum=0.9 if "momentum" in name else 0.0,
        dtype=str(dtype).removeprefix("torch."),
    )
    shape = shape_of(model)
    widths = precision(run, engine_casts=False, keeps_masters=False)
    planned, text = state_bytes(shape, run, widths.gradient)
    assert planned == real, text
    assert (
        sum(p.numel() * p.element_size() for p in model.parameters()) == weight_bytes(shape, widths, run)[0]
    )
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert gradients == shape.trained * widths.gradient


def test_eight_bit_states_leave_out_embeddings_and_small_tensors(run_of):
    """bitsandbytes quantises tensors of 4,096 elements and more; Trainer takes embeddings out."""
    shape = shape_of(make_model(hidden_size=128, intermediate_size=64, num_hidden_layers=1))
    planned, _ = state_bytes(shape, run_of(optim="adamw_8bit"), 4)
    large = shape.elements(lambda group: group.size >= 4096 and group.role != "embedding")
    assert 0 < large < shape.parameters
    assert planned == pytest.approx(2 * (large * (1 + 4 / 256) + 4 * (shape.parameters - large)))


def test_unknown_optimizer_is_refused(run_of):
    with pytest.raises(
        PlanningError, match=r"no arithmetic for optim 'adamw_troch' \(did you mean 'adamw_torch'"
    ):
        state_bytes(shape_of(make_model()), run_of(optim="adamw_troch"), 4)


def test_known_optimizers_are_names_of_transformers():
    names = {item.value for item in transformers.training_args.OptimizerNames}
    assert set(OPTIMIZERS) <= names
