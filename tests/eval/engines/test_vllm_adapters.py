"""Adapters that vLLM would run as something else are refused by name; no vLLM is needed to know which."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mce_llm.eval.engines.vllm_adapters import adapter_options
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.loading import adapter_config

LAYERS = ["q_proj", "down_proj"]


@pytest.fixture
def saved(tmp_path, make_model, tokenizer):
    """Write an adapter as peft writes it, and return its folder's name."""

    def save(**options):
        model = make_model("llama", len(tokenizer))
        get_peft_model(model, LoraConfig(**{"target_modules": LAYERS, **options})).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 8),
        ({"r": 1}, 8),
        ({"r": 9, "lora_alpha": 3, "lora_dropout": 0.1}, 16),
        ({"use_rslora": True, "r": 32}, 32),
        ({"layers_to_transform": [1], "layers_pattern": "layers", "exclude_modules": ["o_proj"]}, 8),
        ({"init_lora_weights": "gaussian", "task_type": "CAUSAL_LM"}, 8),
        ({"init_lora_weights": False, "target_modules": "all-linear"}, 8),
    ],
)
def test_what_vllm_runs_as_peft_does(options, rank, saved):
    name = saved(**options)
    assert adapter_options(name, adapter_config(name)) == {"enable_lora": True, "max_lora_rank": rank}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern is \{'q_proj': 4\}"),
        ({"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern is \{'q_proj': 4\}"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [3, 4]}, r"trainable_token_indices is .*\[3, 4\]"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"weights beside lora_A .*embed_tokens\..* for one"),
        ({"layer_replication": [[0, 2], [1, 2]]}, r"layer_replication is \[\[0, 2\], \[1, 2\]\]"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # peft's, about embeddings that it saves
def test_what_vllm_would_leave_out(options, part, saved):
    name = saved(**options)
    with pytest.raises(EvaluationError, match=rf"vllm cannot run the adapter .*{part}.*mce-llm merge"):
        adapter_options(name, adapter_config(name))


@pytest.mark.filterwarnings("ignore")
def test_embeddings_that_were_resized_and_saved_beside_the_adapter(tmp_path, make_model, tokenizer):
    """Nothing in the configuration speaks of them; vLLM passes over them."""
    model = make_model("llama", len(tokenizer))
    model.resize_token_embeddings(len(tokenizer) + 3)
    adapted = get_peft_model(model, LoraConfig(target_modules=LAYERS))
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    config = adapter_config(str(tmp_path))
    assert not config["modules_to_save"]
    with pytest.raises(
        EvaluationError, match=r"it holds weights beside .*(lm_head|embed_tokens)\.weight for one"
    ):
        adapter_options(str(tmp_path), config)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 600}, "r is 600, not in 1 to 512"),
        ({"r": 0}, "r is 0, not in 1 to 512"),
        ({"r": None}, "r is None, not in 1 to 512"),
        ({"a_field_of_tomorrow": {"x": 1}}, r"a_field_of_tomorrow is \{'x': 1\}"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens is \[1\]"),
        ({"megatron_config": {"a": 1}}, r"megatron_config is \{'a': 1\}"),
    ],
)
def test_configurations_that_are_not_known(changed, part, saved):
    name = saved()
    with pytest.raises(EvaluationError, match=part):
        adapter_options(name, {**adapter_config(name), **changed})


def test_all_that_is_odd_is_named_at_once(saved):
    name = saved()
    odd = {**adapter_config(name), "use_dora": True, "bias": "all", "r": 1000}
    with pytest.raises(EvaluationError, match=r"\(bias is 'all'; use_dora is True; r is 1000"):
        adapter_options(name, odd)


def test_weights_that_cannot_be_read(saved, tmp_path):
    name = saved()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00" * 30)
    with pytest.raises(EvaluationError, match=r"the weights of the adapter .* cannot be read"):
        adapter_options(name, adapter_config(name))


def test_pickled_weights_are_looked_at_too(saved, tmp_path):
    name = saved()
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.bin")
    with pytest.raises(EvaluationError, match=r"lm_head\.weight for one"):
        adapter_options(name, adapter_config(name))
