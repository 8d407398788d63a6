"""The model card of a merged model: the facts of the adapters' card, and what merging changed about them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from mce_llm.lm.training.card_facts import FILE, hub_id, shown
from mce_llm.lm.training.card_sections import loading_code
from mce_llm.lm.training.card_text import code
from mce_llm.lm.training.model_card import MARKER

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
# Sections whose text is about the adapters as a file, not about their training.
_OF_THE_FILE = ("How to load it",)


def merged_card(adapter: Path, base: str, *, model: PreTrainedModel, deviation: float) -> str:
    """The card of a model that adapters were merged into.

    Args:
        adapter: The folder of the adapters; where its card is one of this package's, its facts are taken over.
        base: The model that they were merged into.
        model: The merged model.
        deviation: Largest difference between its logits and the adapted model's, as a share of the largest logit.

    Returns:
        The text, metadata first.
    """
    path = adapter / FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    known = MARKER in text
    card = ModelCard(text, ignore_metadata_errors=True) if known else None
    data: Any = ModelCardData() if card is None else card.data
    data.library_name, data.pipeline_tag = "transformers", data.get("pipeline_tag") or "text-generation"
    data.base_model = hub_id(base)
    data.base_model_relation = None if data.base_model is None else "finetune"
    dtype = str(model.dtype).removeprefix("torch.")
    merged = (
        f"A stock model: the adapters in {code(shown(str(adapter)))} merged into the weights of {code(shown(base))} "
        f"(architecture {code(model.config.model_type)}), in {dtype}. On a short text its logits differ by "
        f"{deviation:.0e} of the largest from those of the base with the adapters on it."
    )
    parts = [f"---\n{data.to_yaml()}\n---\n", MARKER, f"# {code(shown(str(adapter)))}, merged", merged]
    if card is None:
        parts.append(
            "Nothing is known here of how the adapters were trained: they came without a card of mce-llm."
        )
    else:
        parts.append(
            "What follows was said and measured of the adapters on their base, before they were merged."
        )
        parts += [f"## {name}\n\n{body}" for name, body in _sections(card.text) if name not in _OF_THE_FILE]
    parts.append(f"## How to load it\n\n{loading_code('path/to/this/folder')}")
    return "\n\n".join(parts) + "\n"


def _sections(text: str) -> list[tuple[str, str]]:
    """Title and text of each section of a card."""
    found = list(_SECTION.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [(match.group(1), text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)]
