"""The loss that is logged under FSDP2 with products in bfloat16: two real processes, and a model that rounds what it returns."""

import pytest
import torch

from helpers.engines import run_engine
from helpers.models import make_batch, make_model
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.patched_call import with_value
from mce_llm.lm.training.exact_loss import exact_loss


@pytest.mark.ci
@pytest.mark.slow
def test_the_parts_of_the_loss_add_up_under_mixed_precision(tmp_path):
    """The negative control has what the engine gives back, on bfloat16's grid."""
    # In bfloat16 the number of labels, some 300, would be rounded as well.
    settings = {"gradient_accumulation_steps": 6, "per_device_train_batch_size": 6}
    run = {"arguments": {"bf16": True, "monitor_steps": 0, **settings}}
    router = {**run, "family": "mixtral-router"}
    runs = {"exact": run, "rounded": {**run, "fault": "rounded by the engine"}, "router": router}
    got = run_engine(tmp_path, "fsdp2", 2, runs)
    for name, (logs, _) in got.items():
        log = logs[0]
        parts = [a + b for a, b in zip(log["ce_loss"], log["mce_loss"], strict=True)]
        if name == "router":
            parts = [a + 0.5 * b for a, b in zip(parts, log["aux_loss"], strict=True)]
        off = max(abs(loss / part - 1) for loss, part in zip(log["loss"], parts, strict=True))
        print(name, off)
        assert (off < 1e-5) == (name != "rounded"), (name, off)
    assert torch.equal(*(got[name][1]["lm_head.weight"] for name in ("exact", "rounded")))


def test_value_and_gradient():
    weight = torch.tensor(1.2345, requires_grad=True)
    exact = weight * 1.1
    loss = with_value(exact.to(torch.bfloat16), exact)
    assert loss == exact
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient == torch.tensor(1.1).to(torch.bfloat16) or gradient == torch.tensor(1.1)
    assert with_value(exact, exact) is exact


class Rounding(torch.nn.Module):
    """Gives back what the engine's root gives back."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        output = self.model(**inputs)
        if isinstance(output, tuple):
            return (output[0].to(torch.bfloat16), *output[1:])
        output["loss"] = output["loss"].to(torch.bfloat16)
        return output


@pytest.mark.parametrize("return_dict", [True, False])
def test_it_ends_with_the_block(return_dict):
    model = make_model()
    patch = patch_model(model, MatrixLossConfig())
    wrapped, batch = Rounding(model), {**make_batch(2, 8, 0), "return_dict": return_dict}
    exact = model(**batch)[0]
    with exact_loss(wrapped, patch):
        assert wrapped(**batch)[0] == exact
    assert wrapped(**batch)[0].dtype == torch.bfloat16
