"""The facts that a model card states: data, base model, measurements and package versions of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mce_llm.running.hub import commit_of
from mce_llm.running.installation import installed_versions

FILE = "README.md"
_PACKAGES = ("mce-llm", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "deepspeed")
METRICS = {
    "loss": "the loss above, nats per label",
    "ce_loss": "cross-entropy, nats per label",
    "mce_loss": "matrix cross-entropy, nats per label",
    "smoothing_loss": "S, cross-entropy against uniform targets, nats per label",
    "emo_loss": "r · D, nats per label",
    "emo_distance": "D, earth mover's distance: 1 − cosine, mean over labels",
    "entropy": "entropy of the predictions, nats",
    "mean_token_accuracy": "share of labels that are the most probable token",
    "hidden_effective_rank": "effective rank of the covariance of the hidden states",
    "tail_mass": "mean probability outside the k kept tokens",
    "quadrature_gap": "mean difference between Lanczos orders m and m−1, nats",
}


@dataclass(frozen=True)
class DataRecord:
    """What the card says about one data set.

    Attributes:
        role: `train` or `eval`.
        source: A hub id, or a local path, of which the card shows the last component alone.
        split: Its split.
        examples: How many examples were used, None where unknown.
        prompt: Name of the prompt that they were put into.
        trained_tokens: Labels in all, None where unknown.
        digest: Of the tokens and labels in their order, None where unknown; the card does not show it.
    """

    role: str
    source: str
    split: str | None = None
    examples: int | None = None
    prompt: str | None = None
    trained_tokens: int | None = None
    digest: str | None = None


def hub_id(name: str | None) -> str | None:
    """The name, if it is a valid hub id and no local path; else None."""
    if not name or Path(name).expanduser().exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def shown(name: str) -> str:
    """A hub id, or the last component of a path."""
    return hub_id(name) or Path(name).expanduser().absolute().name or "local"


def final_evaluation(trainer: Any) -> dict[str, Any]:
    """The logged evaluation of the weights that are saved, with its `step`; empty where they were not evaluated."""
    history, state = trainer.state.log_history, trainer.state
    done = [index for index, entry in enumerate(history) if any(k.startswith("eval_") for k in entry)]
    if not done:
        return {}
    ends = [index for index, entry in enumerate(history) if "train_runtime" in entry]
    best = getattr(state, "best_global_step", None)
    if trainer.args.load_best_model_at_end and best and ends and done[-1] < ends[-1]:
        done = [index for index in done if history[index].get("step") == best]
    elif history[done[-1]].get("step") != state.global_step:
        return {}  # trained on since
    # Several evaluation sets have an entry each.
    step = history[done[-1]].get("step") if done else None
    return {k: v for index in done if history[index].get("step") == step for k, v in history[index].items()}


def base_name(trainer: Any) -> str | None:
    """What the model, or the model under the adapters, was loaded from."""
    if hasattr(trainer.model, "peft_config"):
        adapter = next(iter(trainer.model.peft_config.values()))
        if adapter.base_model_name_or_path:
            return str(adapter.base_model_name_or_path)
    return getattr(trainer.model.config, "_name_or_path", None) or None


def base_commit(trainer: Any) -> str | None:
    """The commit of the hub that the base model was loaded from; None for one from a folder, or where none is known."""
    base = hub_id(base_name(trainer))
    adapters = getattr(trainer.model, "peft_config", {}).values()
    asked = [adapter.revision for adapter in adapters if adapter.revision]
    settings = trainer.all_settings or {}
    if base is None or not (asked or "model_revision" in settings):
        return None
    return commit_of(base, asked[0] if asked else settings["model_revision"])


def data_id(source: str) -> str | None:
    """The source, if it is a hub id OWNER/NAME; a name without an owner is more likely that of a local file."""
    return hub_id(source) if source.count("/") == 1 else None


def license_of(base: str | None, commit: str | None = None) -> str | None:
    """The licence in the base model's card, if the card is in a local folder or, of that commit, in the hub cache."""
    if base is None:
        return None
    if hub_id(base) is None:
        path: Any = Path(base).expanduser() / FILE
    else:
        path = try_to_load_from_cache(base, FILE, revision=commit)
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (ValueError, OSError):  # a card without readable metadata names no licence
        return None
    return found if isinstance(found, str) else None


def versions(trainer: Any) -> list[tuple[str, str]]:
    """Versions of Python and of the packages that the run used."""
    used = {
        "peft": hasattr(trainer.model, "peft_config"),
        "trl": any(base.__module__.startswith("trl.") for base in type(trainer).__mro__),
        "deepspeed": trainer.is_deepspeed_enabled,
    }
    return list(installed_versions(name for name in _PACKAGES if used.get(name, True)).items())
