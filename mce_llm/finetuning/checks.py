"""What can be said of a recipe in seconds, before hours are spent: by the recipe at its start, and by `mce-llm validate`.

Each function looks at one assumption, and returns a text where it does not hold.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from mce_llm.data import DataError, load_tokenizer
from mce_llm.finetuning.models import whole_size
from mce_llm.finetuning.precision import cpu_precision_text, lost_share_of, lost_updates_text
from mce_llm.finetuning.settings import ModelArguments
from mce_llm.lm.training.checkpoints import engine_of
from mce_llm.lm.training.other_losses import other_losses
from mce_llm.running.messages import counted, raise_all
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError
from mce_llm.running.vocabulary import embedding_rows

# Parameters from which the products take most of the time of a step.
_LARGE_FOR_A_CPU = 20_000_000


def positions_of(model: PreTrainedModel | None) -> int | None:
    """How many positions a model knows; None without a limit, or without a model."""
    config = None if model is None else model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def position_problem(longest: int, positions: int | None, *, role: str) -> str | None:
    """Do the examples fit into the positions that the model knows?

    Args:
        longest: Tokens of the longest example that is trained or evaluated on.
        positions: From `positions_of`.
        role: train or eval.
    """
    if positions is None or longest <= positions:
        return None
    return (
        f"max_length lets in {role} examples of up to {longest:,} tokens, and the model knows {positions:,} positions; set "
        f"max_length to {positions:,} at most (a model meant for more says so in its config.json: max_position_embeddings, "
        "rope parameters)"
    )


def id_problem(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str | None:
    """Has the model an embedding for every id?"""
    largest = max(tokenizer.get_vocab().values())
    rows = embedding_rows(model)
    if largest < rows:
        return None
    return (
        f"it has ids up to {largest:,}, the model {rows:,} embeddings; set resize_embeddings: true, which gives it rows that "
        "have to be learnt, or use the model's own tokenizer"
    )


def foreign_tokenizer_text(settings: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Does a tokenizer that was named by itself give the same ids to the same tokens as the model's own?

    A model's own tokenizer is looked for in its directory alone, so that nothing is downloaded for a warning.
    """
    source = settings.model_name_or_path
    if (
        source is None
        or settings.tokenizer_name_or_path in (None, source)
        or not Path(source).expanduser().is_dir()
    ):
        return None
    try:
        own = load_tokenizer(source, trust_remote_code=settings.trust_remote_code).get_vocab()
    except DataError:  # it has none, which is why another one is named
        return None
    given = tokenizer.get_vocab()
    other = sum(given.get(token, number) != number for token, number in own.items())
    absent = sum(token not in given for token in own)
    if not other and not absent:
        return None
    return (
        f"{settings.tokenizer_name_or_path} is not the tokenizer of {source}: {other + absent:,} of its {len(own):,} tokens "
        "have another id or none, and the model would have to learn them anew"
    )


def few_rows_text(rows: int, per_step: int) -> str | None:
    """Are there enough rows for one optimizer step?"""
    if rows >= per_step:
        return None
    return f"{counted(rows, 'row')} {'is' if rows == 1 else 'are'} fewer than the {per_step:,} of an optimizer step: every step sees all of them, and no more"


def check_tokenizer(
    settings: ModelArguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None
) -> int | None:
    """Check that a tokenizer fits its model, before data are tokenised with it.

    Args:
        settings: Those of the model.
        tokenizer: The tokenizer.
        model: From `without_weights`.

    Returns:
        How many positions the model knows; None without a limit, or where that is not known before it is loaded.

    Raises:
        ConfigurationError: The tokenizer has ids that the model has no embeddings for.
    """
    if model is not None and (problem := id_problem(tokenizer, model)):
        raise ConfigurationError(f"tokenizer: {problem}")
    if text := foreign_tokenizer_text(settings, tokenizer):
        say(f"warning: {text}")
    return positions_of(model)


def check_losses(training: TrainingArguments) -> None:
    """Refuse settings that would put another loss in the place of this package's before data and weights are read.

    Args:
        training: The settings; the trainer, which others start too, looks at them again.

    Raises:
        ConfigurationError: There are such settings.
    """
    raise_all(other_losses(training, gpus=training.n_gpu))


def keeps_low_precision(training: TrainingArguments) -> bool:
    """Whether the optimizer updates the weights in the dtype that they were loaded in.

    DeepSpeed keeps a float32 copy of its own, and FSDP2 with mixed precision makes the weights float32.
    """
    engine = engine_of(training)
    mixed = training.bf16 or training.fp16
    return not engine.startswith("deepspeed") and not (engine == "fsdp" and mixed)


def say_warnings(model: nn.Module, training: TrainingArguments, *, rows: int) -> None:
    """Say what would be a disappointment after hours: updates that rounding loses, fewer rows than a step has.

    Args:
        model: What is trained, adapters included.
        training: How.
        rows: Rows of the training data.
    """
    per_step = (
        training.world_size * training.per_device_train_batch_size * training.gradient_accumulation_steps
    )
    texts = [few_rows_text(rows, per_step)]
    if keeps_low_precision(training):
        share, dtype = lost_share_of(model, training.learning_rate)
        texts.append(lost_updates_text(share, dtype, training.learning_rate))
    large = sum(map(whole_size, model.parameters())) >= _LARGE_FOR_A_CPU
    if large and training.device.type == "cpu" and not training.fp16:
        texts.append(cpu_precision_text(mixed=training.bf16))
    for text in filter(None, texts):
        say(f"warning: {text}")
