"""Every causal class of transformers: right, or refused in words; none silently different, none that crashes."""

import warnings

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers.scripts import load_script
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.checks.shrinking import small_model

architectures = load_script("benchmarks/architectures.py")
FAST = ("llama", "opt", "bart", "bert", "mamba", "llama4")


def test_a_few_types():
    rows = {row.model_type: row for row in architectures.walk(FAST)}
    assert {name: (row.verdict, row.packing) for name, row in rows.items()} == {
        "llama": ("right", True),
        "opt": ("right", False),
        "bart": ("refused", None),
        "bert": ("refused", None),
        "bert, is_decoder=True": ("right", False),
        "mamba": ("right", False),
        "llama4": ("right", True),
    }
    page = architectures.page(list(rows.values()), [])
    assert "Of 6 types 4 are right, 2 are refused, and 0 could not be" in page
    assert "| `bart` | BartForCausalLM | refused: does not shift the labels | – |" in page


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_type_is_right_or_refused_in_words(model_type):
    """What counts as right is measured again: another small model, with other weights, another batch, and no noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 190 architectures
        for row in architectures.walk([model_type]):
            assert row.verdict in ("right", "refused", "not built")
            if row.verdict == "refused":
                assert row.model_class in row.problem or "the head is a" in row.problem
            elif row.verdict == "not built":
                assert row.reason
                pytest.skip(f"{row.model_type}: {row.reason}")
            else:
                settings = architectures.SETTINGS.get(model_type, {})
                settings |= {"is_decoder": True} if "is_decoder" in row.model_type else {}
                _check_loss(transformers.CONFIG_MAPPING[model_type](**settings))


def _check_loss(config):
    with torch.device("meta"):
        full = transformers.AutoModelForCausalLM.from_config(config)
    torch.manual_seed(1)
    model = small_model(full, vocabulary=300, length=64, attention="eager").train()
    tokens = torch.randint(8, 290, (3, 17))
    labels = torch.where(torch.rand(3, 17) < 0.3, -100, tokens)
    stock = model(input_ids=tokens, labels=labels).loss
    patch_model(model, MatrixLossConfig(weight=0))
    patched = model(input_ids=tokens, labels=labels).loss
    torch.testing.assert_close(patched, stock, rtol=1e-4, atol=1e-5)
    patched.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
