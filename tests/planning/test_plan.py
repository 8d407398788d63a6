"""The plan as a whole: the peak of a real step, what fits, and what to change."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import transformers

from helpers.memory import LiveBytes, checkpoint_activations
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.planning import ENGINES, GIB, EnginePlan, LossShape, PlanningError, Term, plan_memory, shape_of
from mce_llm.planning.plan import engine_terms

LLEMMA = {
    "vocab_size": 32016,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@pytest.fixture(scope="module")
def llemma():
    with torch.device("meta"):
        return shape_of(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLEMMA)))


@pytest.fixture
def recipe(run_of):
    """recipes/llemma7b_metamath_mce.yaml."""
    return run_of(
        micro_batch=4,
        length=512,
        mixed="bfloat16",
        optim="adamw_torch",
        checkpointing=True,
        loss=LossShape("token", 1.0, 64, 8, 2048),
        padded=True,
    )


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("moment", "vocabulary"), [("forward", 2000), ("backward", 300), ("step", 300)])
def test_moments_of_a_real_step(moment, vocabulary, mode, checkpointing, run_of):
    """Every storage of a step of a small Llama, against the three moments of the plan.

    With a large vocabulary the loss is where the forward pass is fullest, with a small one a layer is where the backward
    pass is.

    The plan may be above (with checkpointing it counts the inputs of all layers while the last is recomputed, whose
    share is large where there are three layers) but hardly below: 3 % for cosines, positions and normalisers.
    """
    rows, length = 4, 64
    torch.manual_seed(0)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 3,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, num_attention_heads=8)).train()
    model = model.to(torch.bfloat16) if mode == "bfloat16" else model
    patch_model(model, MatrixLossConfig(weight=0.0))
    if checkpointing:
        checkpoint_activations(model)
    ids = torch.randint(3, vocabulary, (rows, length))

    def loss():
        with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext():
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    loss().backward()  # gradients are there, as from the second micro-batch on
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    optimizer.step()
    real = {}
    with LiveBytes() as memory:
        memory.exclude(ids, *model.parameters(), *(p.grad for p in model.parameters()), *model.buffers())
        value = loss()
        real["forward"] = memory.peak
        memory.reset_peak()
        value.backward()
        real["backward"] = memory.peak
        del value
        before = memory.live
        memory.reset_peak()
        optimizer.step()
        real["step"] = memory.peak - before

    run = run_of(
        micro_batch=rows,
        length=length,
        dtype="bfloat16" if mode == "bfloat16" else "float32",
        mixed="bfloat16" if mode == "autocast" else None,
        optim="adamw_torch",
        checkpointing=checkpointing,
        loss=LossShape("token", 0.0, 64, 8, rows * length),
    )
    plan = EnginePlan("ddp", tuple(engine_terms(ENGINES["ddp"], shape_of(model), run, 1)), None)
    least = {"forward": 0.93, "backward": 0.75 if checkpointing else 0.9, "step": 0.99}
    assert least[moment] < real[moment] / plan.sum_of(moment) < 1.03


def test_seven_billion_on_eight_gpus(llemma, recipe):
    plan = plan_memory(llemma, recipe, devices=8, capacity=80 * GIB)
    assert plan.recommended == "zero2"
    assert not plan.of("ddp").fits
    assert plan.of("ddp").peak > 16 * llemma.parameters
    # 2Ψ + 14Ψ/8 of states, and the rest in the order of what is gathered.
    assert plan.of("zero3").peak < plan.of("zero2").peak < plan.of("ddp").peak
    assert plan.of("zero3_offload").peak < 10 * GIB
    assert plan.remedies == ()


def test_engine_alone_and_without_capacity(llemma, recipe):
    plan = plan_memory(llemma, recipe, devices=8, capacity=None, engine="zero3")
    (only,) = plan.engines
    assert (only.engine, only.fits, only.largest_micro_batch) == ("zero3", None, None)
    assert plan.recommended is None
    assert plan.remedies == ()


def test_peak_is_what_is_always_there_and_the_largest_moment(llemma, recipe):
    for plan in plan_memory(llemma, recipe, devices=8, capacity=None).engines:
        always = sum(term.bytes for term in plan.terms if term.phase == "always")
        moments = [sum(t.bytes for t in plan.terms if t.phase == m) for m in ("forward", "backward", "step")]
        assert plan.peak == always + max(moments)
        assert all(term.formula for term in plan.terms)


def test_largest_micro_batch_is_the_largest(llemma, recipe):
    plan = plan_memory(llemma, recipe, devices=8, capacity=40 * GIB, engine="zero3").engines[0]
    rows = plan.largest_micro_batch
    assert rows > 1

    def peak(rows):
        terms = engine_terms(ENGINES["zero3"], llemma, replace(recipe, micro_batch=rows), 8)
        return EnginePlan("zero3", tuple(terms), None).peak

    # With room to spare: a micro-batch that is proposed is not tight.
    assert peak(rows) <= 0.95 * 40 * GIB < peak(rows + 1)


def test_remedies_name_numbers_and_what_fits(llemma, recipe):
    run = replace(recipe, checkpointing=False)
    plan = plan_memory(llemma, run, devices=1, capacity=24 * GIB)
    changes = [remedy.change.split(":")[0] for remedy in plan.remedies]
    assert changes[:3] == ["gradient_checkpointing", "per_device_train_batch_size", "optim"]
    found = {remedy.change: remedy for remedy in plan.remedies}
    lora, quantized = found["lora_r: 16, dtype: bfloat16"], found["… and quantization: 4bit"]
    assert lora.fits
    assert quantized.peak < lora.peak < 24 * GIB
    assert lora.peak > 13 * GIB  # the frozen weights alone are 12.6 GiB
    assert quantized.peak < 8 * GIB
    assert found["engine zero3_offload"].fits
    assert plan.remedies[-1].change.endswith("GPUs")
    assert plan.remedies[-1].fits


def test_remedies_of_adapters_do_not_offer_adapters(llemma, recipe):
    from mce_llm.planning import with_lora

    run = replace(recipe, adapter_rank=64, dtype="bfloat16")
    plan = plan_memory(with_lora(llemma, 64), run, devices=1, capacity=8 * GIB)
    changes = [remedy.change for remedy in plan.remedies]
    assert "quantization: 4bit" in changes
    assert not any(change.startswith("lora_r") for change in changes)


@pytest.mark.parametrize(
    ("devices", "capacity", "message"),
    [
        (0, 80.0, "at least 1, got 0"),
        (1, 0.0, "must be positive, got 0 GiB"),
        (-1, -2.0, r"got -1; .*got -2 GiB"),
    ],
)
def test_numbers_that_make_no_sense(devices, capacity, message, llemma, recipe):
    with pytest.raises(PlanningError, match=message):
        plan_memory(llemma, recipe, devices=devices, capacity=capacity * GIB)


def engine_plan(peak, capacity=100.0, host=0.0, host_capacity=None, refusal=None):
    terms = (Term("all", peak, "as given"), Term("there", host, "as given", "host"))
    return EnginePlan("ddp", terms, capacity, refusal, host_capacity=host_capacity)


@pytest.mark.parametrize(
    ("plan", "verdict"),
    [
        (engine_plan(95.0), "fits"),
        (engine_plan(95.1), "tight"),
        (engine_plan(100.1), "too large"),
        (engine_plan(50.0, refusal="no"), "too large"),
        (engine_plan(50.0, host=99.0, host_capacity=100.0), "tight"),
        (engine_plan(50.0, host=101.0, host_capacity=100.0), "too large"),
        (engine_plan(50.0, host=101.0), "fits"),
        (engine_plan(50.0, capacity=None), None),
    ],
)
def test_verdicts(plan, verdict):
    assert plan.verdict == verdict
    assert plan.fits == (None if verdict is None else verdict != "too large")


def test_an_engine_that_fits_is_recommended_before_one_that_is_tight(llemma, recipe):
    """And a tight one before offload, which is several times slower; then it is said what would help."""
    peaks = {plan.engine: plan.peak for plan in plan_memory(llemma, recipe, devices=8, capacity=None).engines}
    tight = plan_memory(llemma, recipe, devices=8, capacity=peaks["zero2"] * 1.01)
    assert tight.of("zero2").verdict == "tight"
    assert tight.recommended == "zero3"
    alone = plan_memory(llemma, recipe, devices=8, capacity=peaks["zero2"] * 1.01, engine="zero2")
    assert alone.recommended == "zero2"
    assert alone.remedies
    last = plan_memory(llemma, recipe, devices=8, capacity=min(peaks["zero3"], peaks["fsdp2"]) * 1.01)
    assert last.recommended in ("zero3", "fsdp2")
    assert last.of("zero3_offload").verdict == "fits"


def test_offload_needs_the_memory_of_the_host(llemma, recipe):
    needs = 20 * llemma.parameters
    for share, recommended in ((1.1, "zero3_offload"), (0.9, None)):
        plan = plan_memory(llemma, recipe, devices=1, capacity=24 * GIB, host_capacity=share * needs)
        assert plan.recommended == recommended
        assert plan.of("zero3_offload").host == needs
    with pytest.raises(PlanningError, match="memory of the host must be positive, got -1 GiB"):
        plan_memory(llemma, recipe, devices=1, capacity=24 * GIB, host_capacity=-GIB)


def test_8_bit_inputs_stay_where_checkpointing_is_not_reentrant(llemma, recipe):
    """Of a 7B model at 4 × 2,048 tokens: 3 d + inner width elements of 2 bytes a token and layer, 11.4 GiB."""
    from mce_llm.planning import with_lora

    run = replace(
        recipe, length=2048, adapter_rank=8, dtype="bfloat16", quantization="8bit", checkpointing=True
    )
    peaks = [
        EnginePlan("ddp", tuple(engine_terms(ENGINES["ddp"], with_lora(llemma, 8), r, 1)), None).sum_of(
            "forward"
        )
        for r in (run, replace(run, reentrant=False), replace(run, reentrant=False, quantization="4bit"))
    ]
    assert peaks[1] - peaks[0] == 32 * 4 * 2048 * 2 * (3 * 4096 + 11008)
    assert peaks[2] == peaks[0]


def test_layers_that_are_not_recomputed_keep_their_activations(llemma, recipe):
    def kept(run):
        terms = engine_terms(ENGINES["ddp"], llemma, run, 1)
        return next(t.bytes for t in terms if t.name == "activations" and t.phase == "forward")

    all_kept, none = kept(replace(recipe, checkpointing=False)), kept(recipe)
    half = kept(replace(recipe, checkpointed_every=2))
    assert half == pytest.approx((all_kept + none) / 2)


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_stock_cross_entropy_has_its_logits_in_full(mode, run_of):
    """A real step of transformers' own loss on the CPU: within 5 % of 12 bytes a position and row of the vocabulary."""
    rows, length, vocabulary = 4, 64, 4000
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, **sizes)).train()
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    model = model.to(getattr(torch, mode))
    ids = torch.randint(3, vocabulary, (rows, length))
    with LiveBytes() as memory:
        memory.exclude(ids, *model.parameters(), *model.buffers())
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    run = run_of(
        micro_batch=rows, length=length, dtype=mode, loss=LossShape("token", 0.0, 64, 8, 8, stock=True)
    )
    terms = engine_terms(ENGINES["ddp"], shape_of(model), run, 1)
    planned = sum(term.bytes for term in terms if term.name.startswith("loss"))
    assert planned == 12 * rows * length * vocabulary
    assert planned == pytest.approx(memory.peak, rel=0.05)
