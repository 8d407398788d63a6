"""The routers' auxiliary loss: its coefficient in every model, its share in a micro-batch, accumulation, two processes."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers.engines import deviations, run_engine, start_weights
from helpers.models import CONFIGS, make_batch, make_model
from mce_llm.lm import MatrixLossConfig, UnsupportedModelError, patch_model
from mce_llm.lm.router_loss import router_coefficient, set_router_coefficient

CE_ONLY = MatrixLossConfig(weight=0.0)
ROUTED = ("mixtral-sparse", "jetmoe-router")
# Relative, for float32 sums in another order, as in test_engines.py.
LOSS, CHANGE = 1e-5, 2e-4
SOURCES = Path(transformers.__file__).parent / "models"
ADDED = re.compile(r"loss \+= ([\w.]+) \* aux_loss")


def classes_with_routers():
    """Names of the causal classes of transformers that add `aux_loss` to their loss, and how they call the factor."""
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for path in sorted(SOURCES.glob("*/modeling_*.py")):
        for part in re.split(r"^class ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            name = re.match(r"\w+", part).group()
            if name in causal and (found := ADDED.search(part)):
                yield name, found.group(1)


@pytest.mark.parametrize(("name", "factor"), list(classes_with_routers()))
def test_the_coefficient_of_every_causal_model_is_found(name, factor):
    model_class = getattr(transformers, name)
    config = model_class.config_class()
    for size in ("num_hidden_layers", "n_layers"):
        if hasattr(config, size):
            setattr(config, size, 1)
    if isinstance(vars(config).get("layer_types"), list):
        config.layer_types = config.layer_types[:1]
    if name == "DbrxForCausalLM":  # its attention asks for what its default configuration lacks
        config.attn_config.rope_theta = 1e4
    with torch.device("meta"):
        model = model_class(config)
    assert router_coefficient(model) == eval(factor, {"self": model})


def test_there_are_such_models():
    found = dict(classes_with_routers())
    assert {
        "MixtralForCausalLM",
        "JetMoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "OlmoeForCausalLM",
    } <= found.keys()


def loss_and_gradients(model, batch, **more):
    model.zero_grad()
    loss = model(**batch, **more).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ROUTED)
def test_a_single_batch_is_the_stock_model(family):
    model, batch = make_model(family), make_batch()
    stock, expected = loss_and_gradients(model, batch)
    patch = patch_model(model, CE_ONLY)
    ours, found = loss_and_gradients(model, batch)
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=0)
    assert any("gate" in name or "router" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    auxiliary = patch.last.router_sum / patch.last.num_tokens
    assert (stock - 0.5 * auxiliary).item() == pytest.approx(
        (patch.last.cross_entropy_sum / patch.last.num_tokens).item(), rel=1e-5
    )


@pytest.mark.parametrize("family", ROUTED)
def test_micro_batches_are_weighted_by_their_labels(family):
    """Parts of unequal numbers of labels, one of them without any: each adds n/N of its own auxiliary loss."""
    model = make_model(family)
    batches = [make_batch(seed=seed, masked=masked) for seed, masked in ((1, 3), (2, 9), (3, 11))]
    patch = patch_model(model, CE_ONLY)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    assert counts[2] == 0 < counts[1] < counts[0]
    total, expected = 0.0, 0.0
    for batch, count in zip(batches, counts, strict=True):
        output = model(**batch, num_items_in_batch=torch.tensor(sum(counts)))
        total += output.loss.item()
        cross_entropy = patch.last.cross_entropy_sum.item()
        expected += (cross_entropy + 0.5 * count * output.aux_loss.item()) / sum(counts)
    assert total == pytest.approx(expected, rel=1e-6)
    assert torch.equal(model(**batches[2]).loss, torch.tensor(0.0))
    assert torch.equal(model(**batches[2], num_items_in_batch=torch.tensor(0)).loss, torch.tensor(0.0))


def run(rows, accumulation, family, fault=None):
    arguments = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    arguments |= {"matrix_weight": 0.5, "report_to": "none", "monitor_steps": 0}
    return {"arguments": arguments, "family": family, "fault": fault, "rows": {"repeat": 2}}


@pytest.mark.ci
def test_accumulation_and_processes_change_nothing(tmp_path):
    """Two rows over and over: every micro-batch has the auxiliary loss of the whole batch."""
    whole = run_engine(tmp_path / "one", "single", 1, {family: run(8, 1, family) for family in ROUTED})
    parts = run_engine(tmp_path / "parts", "single", 1, {family: run(2, 4, family) for family in ROUTED})
    ranks = {family: run(2, 2, family) for family in ROUTED}
    ranks["broken"] = run(2, 2, ROUTED[0], "router not shared out")
    two = run_engine(tmp_path / "two", "ddp", 2, ranks)
    for family in ROUTED:
        logs, weights = whole[family]
        assert all(value > 1 for value in logs[0]["aux_loss"])
        for ce, mce, auxiliary, loss in zip(
            *(logs[0][name] for name in ("ce_loss", "mce_loss", "aux_loss", "loss")), strict=True
        ):
            assert loss == pytest.approx(ce + 0.5 * mce + 0.5 * auxiliary, rel=1e-5)
        for other in (parts, two):
            other_logs, other_weights = other[family]
            for name in ("loss", "ce_loss", "mce_loss", "aux_loss"):
                assert other_logs[0][name] == pytest.approx(logs[0][name], rel=LOSS), (family, name)
            _, of_change = deviations(other_weights, weights, start_weights(family))
            assert of_change < CHANGE, family
    # Negative control: added as transformers adds it, after the normalisation, it is another training run.
    logs, weights = two["broken"]
    _, of_change = deviations(weights, whole[ROUTED[0]][1], start_weights(ROUTED[0]))
    assert of_change > 50 * CHANGE
    assert logs[0]["loss"][0] > whole[ROUTED[0]][0][0]["loss"][0] + 1


def test_the_models_own_coefficient_comes_first():
    model = make_model("mixtral-router")
    set_router_coefficient(model, 0.25)
    assert (router_coefficient(model), model.router_aux_loss_coef) == (0.25, 0.25)
    del model.router_aux_loss_coef
    assert router_coefficient(model) == 0.5, "the config's"


class Odd(transformers.LlamaForCausalLM):
    """Gives an auxiliary loss whose factor nobody knows."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return MoeCausalLMOutputWithPast(aux_loss=output.logits.float().mean(), **output)


def test_a_coefficient_without_a_known_name_is_refused():
    model = Odd(make_model().config)
    patch = patch_model(model, CE_ONLY)
    message = r"Odd gives an auxiliary loss .* \(router_aux_loss_coef or aux_loss_coef\); set config.router_aux_loss_coef"
    with pytest.raises(UnsupportedModelError, match=message):
        model(**make_batch())
    patch.remove()
    model.config.output_router_logits = True  # says so before the first batch
    with pytest.raises(UnsupportedModelError, match=message):
        patch_model(model, CE_ONLY)
    model.config.router_aux_loss_coef = 0.5
    patch = patch_model(model, CE_ONLY)
    output = model(**make_batch())
    expected = patch.last.cross_entropy_sum / patch.last.num_tokens + 0.5 * output.aux_loss
    torch.testing.assert_close(output.loss, expected)


def test_a_loss_with_another_part_is_refused():
    """Bamba's loss of the logits would be left out."""
    settings = {**CONFIGS["llama"][1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    config = transformers.BambaConfig(**settings, attn_layer_indices=[1], z_loss_coefficient=0.1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=r"adds a z-loss .*\(z_loss_coefficient 0.1\)"):
        patch_model(model, CE_ONLY)
    assert "z_loss_coefficient" in inspect.getsource(type(model)), "what is refused is there"
    model.z_loss_coefficient = 0.0
    patch_model(model, CE_ONLY)
