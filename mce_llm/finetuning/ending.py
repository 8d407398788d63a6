"""Where answers end: the tokens that training teaches as an end, made known to generation.

`generate` and inference servers stop at the ids in generation_config.json and know nothing of chat templates. A base
model that learns to end its turns with ``<|im_end|>`` would be saved with ``<|endoftext|>`` alone, and never stop.
"""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.data.prompts import PromptTemplate
from mce_llm.running.hub import revision_option
from mce_llm.running.stop_ids import stop_ids


def stored_stop_ids(model: PreTrainedModel, revision: str | None = None) -> list[int]:
    """The ids at which a model stops as it was stored: of its generation_config, or of its configuration without one.

    Args:
        model: With or without weights. One that was made from a configuration alone has read no generation_config.json.
        revision: A branch, tag or commit of the hub id that it was loaded from.
    """
    source = model.config.name_or_path
    if source:
        try:
            found = GenerationConfig.from_pretrained(
                source, local_files_only=True, **revision_option(revision)
            )
            return stop_ids(found)
        except OSError:  # it has none, and generation goes by the model's configuration
            pass
    return stop_ids(model.config.get_text_config())


def add_stop_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: PromptTemplate
) -> list[int]:
    """Make generation stop where training ends an answer; the ids that were there stay.

    Args:
        model: Its generation_config is changed, which is saved with the model.
        tokenizer: Its tokenizer.
        prompt: The template that the training data are put into.

    Returns:
        The ids that were added; empty where all were there.
    """
    settings = model.generation_config
    if settings is None:
        settings = GenerationConfig.from_model_config(model.config)
    before = stop_ids(settings)
    taught = prompt.end_token_ids(tokenizer)
    added = [token for token in taught if token not in before]
    if added:
        settings.eos_token_id = [*taught, *(token for token in before if token not in taught)]
    model.generation_config = settings
    return added


def names_of_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Token ids in words: ``'<|im_end|>' (2)``."""
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in ids)
