"""Tiny models of every supported family, made from configurations."""

import torch
import transformers

VOCABULARY = 61

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GPT |= {"bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "llama": ("LlamaConfig", _GROUPED),
    "llama-tied": ("LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3-tied": ("Qwen3Config", {**_GROUPED, "head_dim": 4, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 4}),
    "gemma2-softcap": ("Gemma2Config", {**_GROUPED, "head_dim": 4, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 4}),
    "gpt-neox": ("GPTNeoXConfig", _COMMON),
    "gpt-neox-tied": ("GPTNeoXConfig", {**_COMMON, "tie_word_embeddings": True}),
    "cohere-scale": ("CohereConfig", {**_GROUPED, "logit_scale": 0.25}),
    "granite-scale": ("GraniteConfig", {**_GROUPED, "logits_scaling": 3.0}),
    "phi-bias": ("PhiConfig", _GROUPED),
    "mixtral-router": (
        "MixtralConfig",
        {**_GROUPED, "num_local_experts": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5},
    ),
    "mixtral-sparse": (  # with two experts for two places, balance would be a constant
        "MixtralConfig",
        {**_GROUPED, "num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5},
    ),
    "jetmoe-router": (
        "JetMoeConfig",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "kv_channels": 4,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "output_router_logits": True,
            "aux_loss_coef": 0.5,
        },
    ),
    "gpt2-unnamed-loss": ("GPT2Config", {**_GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}


def make_model(family="llama", seed=0, scale=20.0, **changes):
    """A causal model whose head is `scale` times its initial size: logits spread out enough for a softcap to matter."""
    name, settings = CONFIGS[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**settings, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def make_batch(rows=3, length=11, seed=1, masked=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :masked] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
