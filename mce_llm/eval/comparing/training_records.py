"""What the trainings behind evaluated models say of themselves: method, seed, and every other setting.

A recipe leaves `recipe.yaml` (what was given) in its output_dir and `run_settings.json` (every setting, defaults
included) in each checkpoint. Both are read here and nothing else; which run is paired with which, and what a
difference means, is decided by others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from mce_llm.eval.comparing.evaluations import SavedEvaluation
from mce_llm.running.folder import RECIPE
from mce_llm.running.messages import ConfigurationError, cause
from mce_llm.running.yaml_text import load_record

_EVERY = "run_settings.json"
_STATE = "trainer_state.json"
STEPS = "steps trained"
"""Beside the settings: how long the evaluated model was trained."""
LOSS_DEFAULTS: dict[str, Any] = {
    "matrix_kind": "token",
    "matrix_weight": None,
    "matrix_shrinkage": 0.05,
    "matrix_support": 64,
    "matrix_order": 8,
    "matrix_embeddings": "output",
    "matrix_center": True,
    "matrix_normalize": True,
}
"""The settings of the matrix loss with what they are where a recipe does not give them; None: by the loss."""
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "label_smoothing": {"smoothing": 0.1},
    "emo": {"emo_weight": 0.5, "emo_max_ratio": 3.0, "emo_center": False},
    "mce": {"matrix_weight": 1.0},
}
"""Loss → the settings that it alone has, with what they are where a recipe does not give them."""
_METHOD = frozenset(["loss", *LOSS_DEFAULTS, *(name for own in LOSSES.values() for name in own)])
_TOKEN_ONLY = ("matrix_support", "matrix_order")
SEEDS = ("seed", "data_seed")
_DEFAULT_SEED = 42
# What says where and how a training was run, reported on and saved, and leaves the weights as they are.
_WITHOUT_EFFECT = frozenset(
    [
        "output_dir",
        "resume",
        "overwrite",
        "run_name",
        "project",
        "report_to",
        "disable_tqdm",
        "debug",
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
        "local_rank",
        "tf32",
        "use_cache",
        "use_cpu",
        "full_determinism",
        "prediction_loss_only",
        "include_num_input_tokens_seen",
        "include_for_metrics",
        "skip_memory_metrics",
        "enable_jit_checkpoint",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "restore_callback_states_from_checkpoint",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "attn_implementation",
        "trust_remote_code",
        "dataset_num_proc",
        "merge_adapters",
        "model_check",
        "token_metrics",
        "per_device_eval_batch_size",
        "bf16_full_eval",
        "fp16_full_eval",
        "batch_eval_metrics",
    ]
)
_WITHOUT_EFFECT_PREFIXES = (
    *("logging_", "log_", "eval_", "save_", "hub_", "push_to_hub", "monitor_", "sample_", "trackio_"),
    *("ddp_", "fsdp", "dataloader_num_", "dataloader_pin_", "dataloader_persistent_", "dataloader_prefetch_"),
    "dataloader_multiprocessing_",
)
# With total_batch_size given, these only split it.
_SPLITS_OF_BATCH = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps"})


@dataclass(frozen=True)
class TrainingRecord:
    """What a training recorded.

    Attributes:
        folder: Its output_dir.
        given: The settings of `recipe.yaml`.
        every: All settings, of `run_settings.json`; None where no checkpoint is left.
        steps: Optimizer steps of the evaluated model; None where `trainer_state.json` does not say.
    """

    folder: Path
    given: Mapping[str, Any]
    every: Mapping[str, Any] | None
    steps: int | None

    @property
    def known(self) -> Mapping[str, Any]:
        """All that is known of the settings."""
        return {**self.given, **(self.every or {})}

    @property
    def seed(self) -> int | str:
        """The training seed; the default of transformers where none was given."""
        seed = self.known.get("seed", _DEFAULT_SEED)
        return seed if isinstance(seed, int) else str(seed)

    @property
    def loss(self) -> str:
        """What was trained: one of `LOSSES`; the matrix loss with weight 0 is cross-entropy."""
        loss = str(self.known.get("loss") or "mce")
        return "ce" if loss == "mce" and self._of_loss("mce")["matrix_weight"] == 0 else loss

    @property
    def method(self) -> dict[str, Any]:
        """The settings of the loss that have an effect, defaults filled in."""
        if self.is_plain:
            return {"matrix_weight": 0}
        own = self._of_loss(self.loss)
        found = {name: self.known.get(name, default) for name, default in LOSS_DEFAULTS.items()}
        if self.loss == "emo":
            own["matrix_embeddings"] = found["matrix_embeddings"]
        if self.loss != "mce":
            return {"loss": self.loss, **own}
        without = () if found["matrix_kind"] == "token" else _TOKEN_ONLY
        found["matrix_support"] = found["matrix_support"] or None
        return {name: value for name, value in {**found, **own}.items() if name not in without}

    def _of_loss(self, loss: str) -> dict[str, Any]:
        """The settings that one loss alone has."""
        own = LOSSES.get(loss, {})
        given = {name: self.known.get(name) for name in own}
        return {name: default if given[name] is None else given[name] for name, default in own.items()}

    @property
    def others(self) -> dict[str, Any]:
        """The settings beside method and seed that shape what is trained, as far as they are recorded."""
        return self._shaping(self.known)

    @property
    def is_plain(self) -> bool:
        """Whether it was trained with cross-entropy alone."""
        return self.loss == "ce"

    @property
    def method_text(self) -> str:
        """The method in a few words: CE, which matrix loss, or which other loss."""
        method, usual = self.method, {**LOSS_DEFAULTS, **LOSSES.get(self.loss, {})}
        if self.is_plain:
            return "CE"
        head, named = {
            "label_smoothing": (f"label smoothing {method.get('smoothing')}", ("loss", "smoothing")),
            "emo": (f"EMO {method.get('emo_weight')}", ("loss", "emo_weight")),
            "mce": (
                f"CE + {method.get('matrix_weight')} MCE ({method.get('matrix_kind')})",
                ("matrix_weight", "matrix_kind"),
            ),
        }.get(self.loss, (self.loss, ("loss",)))
        other = [
            f"{name.removeprefix('matrix_').removeprefix('emo_')} {value}"
            for name, value in method.items()
            if name not in named and value != usual.get(name)
        ]
        return ", ".join([head, *other])

    def differences(self, other: TrainingRecord) -> dict[str, tuple[Any, Any]]:
        """The settings beside method and seed that differ, and that shape what is trained.

        Args:
            other: Another training.

        Returns:
            Name → this one's value, the other's; `not given` for one that a recipe leaves out. Steps are among them.
        """
        whole = self.every is not None and other.every is not None
        sides = [
            self._shaping(record.every if whole and record.every else record.given)
            for record in (self, other)
        ]
        found = {}
        for name in dict.fromkeys([*sides[0], *sides[1]]):
            a, b = (side.get(name, _default(name)) for side in sides)
            if a != b:
                found[name] = (a, b)
        if None not in (self.steps, other.steps) and self.steps != other.steps:
            found[STEPS] = (self.steps, other.steps)
        return found

    @staticmethod
    def _shaping(settings: Mapping[str, Any]) -> dict[str, Any]:
        split = settings.get("total_batch_size") is not None
        return {
            name: value
            for name, value in settings.items()
            if name not in _METHOD
            and name not in SEEDS
            and name not in _WITHOUT_EFFECT
            and not name.startswith(_WITHOUT_EFFECT_PREFIXES)
            and not (split and name in _SPLITS_OF_BATCH)
        }


@dataclass(frozen=True)
class _NotGiven:
    """Stands for a setting that a recipe leaves at its default."""

    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN = _NotGiven()


def read_record(run: SavedEvaluation) -> TrainingRecord | None:
    """Find what the training of an evaluated model recorded.

    Args:
        run: The evaluation.

    Returns:
        The record; None where there is none on this machine, or it cannot be read (`why_no_record` says which).
    """
    found = _find(run)
    return found if isinstance(found, TrainingRecord) else None


def why_no_record(run: SavedEvaluation) -> str:
    """Say why nothing is known of the training of a model; empty where something is."""
    found = _find(run)
    return found if isinstance(found, str) else ""


def _find(run: SavedEvaluation) -> TrainingRecord | str:
    place = run.training_folder
    if place is None:
        return f"no {RECIPE} of a training at {run.config['settings'].get('model')} or above {run.path}"
    home = next((folder for folder in (place, place.parent) if (folder / RECIPE).is_file()), None)
    if home is None:
        return f"{place} has no {RECIPE}"
    try:
        given = load_record((home / RECIPE).read_text(encoding="utf-8"), str(home / RECIPE))
    except (OSError, UnicodeDecodeError, ConfigurationError) as error:
        return f"{home / RECIPE} cannot be read: {cause(error)}"
    model = str(run.config["settings"].get("model", ""))
    if model and model == given.get("model_name_or_path"):
        return f"{model} is the model that the training in {home} began with, not what it made"
    steps = _state(place).get("global_step")
    return TrainingRecord(home, given, _every(place, home, steps), steps if isinstance(steps, int) else None)


def _every(place: Path, home: Path, steps: Any) -> Mapping[str, Any] | None:
    """All settings, of the checkpoint that was evaluated, or of the one at the last step."""
    for folder in (place, home / f"checkpoint-{steps}"):
        try:
            settings = json.loads((folder / _EVERY).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(settings, dict):
            return settings
    return None


def _state(place: Path) -> dict[str, Any]:
    try:
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


@cache
def _training_defaults() -> dict[str, Any]:
    from transformers import TrainingArguments  # here: it takes seconds

    return {item.name: item.default for item in fields(TrainingArguments) if item.default is not MISSING}


def _default(name: str) -> Any:
    return _training_defaults().get(name, NOT_GIVEN)
