"""Adapters that are not at their starting point, on every kind of head."""

import torch

from helpers.models import make_model
from mce_llm.finetuning.adapters import with_lora
from mce_llm.finetuning.settings import ModelArguments

VARIANTS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
}
HEADS = {
    "plain": ("llama", {}),
    "tied": ("llama-tied", {}),
    "saved": ("llama", {"lora_modules_to_save": "lm_head"}),
    "saved-tied": ("llama-tied", {"lora_modules_to_save": "lm_head"}),
}
EVERY = [(variant, head) for variant in VARIANTS for head in HEADS]


def lora_settings(base="base", **changed):
    return ModelArguments(model_name_or_path=str(base), **{"lora_r": 2, "lora_alpha": 3, **changed})


def adapted_model(variant="lora", head="plain", base=None, size=2.0, **changed):
    """A model whose adapters, magnitudes and whole layers all differ from where they start."""
    family, saved = HEADS[head]
    settings = lora_settings(**VARIANTS[variant], **saved, **changed)
    model = with_lora(base or make_model(family), settings)
    disturb(model, size)
    return model


@torch.no_grad()
def disturb(model, size=2.0):
    """Noise on all that is trained; `size` is that of what starts at zero."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(0.3 * noise * (parameter.abs().mean() if parameter.any() else size))


def trained_names(model):
    """Short names of what is trained, without the layers they are in: {'lora_A', 'lm_head', …}."""
    kinds = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            kinds.add(parts[parts.index("default") - (2 if "modules_to_save" in parts else 1)])
    return kinds
