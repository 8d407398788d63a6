"""What a setting of training means to a run that goes on from a checkpoint: applied, refused, or without effect.

The table here covers `MatrixTrainingArguments`; that of the recipe (`mce_llm.finetuning.resuming`) adds its own
settings. A setting that no table names, of a later transformers, is refused where it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

from mce_llm.lm.config import SETTING_NAMES, MatrixLossConfig
from mce_llm.lm.training.manifest import read_manifest
from mce_llm.lm.training.run_settings import Differences, RunSettings, plain, shown
from mce_llm.running.folder import CheckpointError


class Effect(Enum):
    """What happens where a setting has another value than the checkpoint was trained with."""

    TRAINED = "applied from the next step on; the card and recipe.yaml say since when"
    SCHEDULED = "the same; the learning rate is that of the new schedule at each step from there on"
    BATCH = "applied where an optimizer step keeps its number of rows, refused otherwise"
    MEASURE = "applied, but refused where the best checkpoint so far was chosen by it"
    REPORTED = "applied: what is logged, evaluated, saved and pushed, and when"
    NONE = "applied, and without effect on what is trained, rounding aside"
    REFUSED = "refused: it would be another run"


# How the run is reported on, computed, or found; and what it is, for the rest.
TRAINING: dict[str, Effect] = {
    name: effect
    for effect, names in {
        Effect.SCHEDULED: (
            "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 "
            "adam_epsilon max_grad_norm num_train_epochs max_steps"
        ),
        Effect.TRAINED: (
            "neftune_noise_alpha ignore_data_skip loss smoothing emo_weight emo_max_ratio emo_center matrix_kind matrix_weight matrix_shrinkage matrix_support "
            "matrix_order matrix_embeddings matrix_center matrix_normalize on_nonfinite nonfinite_patience "
            "early_stopping_patience early_stopping_threshold"
        ),
        Effect.BATCH: "per_device_train_batch_size gradient_accumulation_steps",
        Effect.MEASURE: "metric_for_best_model greater_is_better",
        Effect.REPORTED: (
            "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
            "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project "
            "trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay "
            "per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object "
            "eval_accumulation_steps include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval save_only_model "
            "save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token "
            "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end "
            "restore_callback_states_from_checkpoint debug skip_memory_metrics monitor_steps monitor_positions sample_steps "
            "sample_prompts sample_max_new_tokens"
        ),
        Effect.NONE: (
            "output_dir tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
            "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_cache "
            "torch_empty_cache_steps full_determinism use_cpu dataloader_num_workers dataloader_pin_memory "
            "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
            "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
            "fsdp fsdp_config do_train do_eval do_predict resume_from_checkpoint local_rank model_check"
        ),
        Effect.REFUSED: (
            "optim optim_args optim_target_modules average_tokens_across_devices label_smoothing_factor bf16 fp16 "
            "use_liger_kernel liger_kernel_config auto_find_batch_size seed data_seed accelerator_config "
            "parallelism_config dataloader_drop_last dataloader_in_order remove_unused_columns label_names "
            "train_sampling_strategy length_column_name deepspeed"
        ),
    }.items()
    for name in names.split()
}
# Of `MatrixSFTConfig`, whose other settings are about the data.
_OF_SFT = {"token_metrics": Effect.REPORTED, "dataset_num_proc": Effect.NONE}
# Where the output goes and what was asked of this start alone: not worth a word.
_UNSAID = frozenset(
    [
        "output_dir",
        "resume",
        "overwrite",
        "run_name",
        "disable_tqdm",
        "local_rank",
        "resume_from_checkpoint",
        "do_train",
        "do_eval",
        "do_predict",
    ]
)
# Their learning rate depends on what was measured on the way, so no step has one by itself.
_REACTING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
OF_THE_SCHEDULE = frozenset(
    [
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "num_train_epochs",
        "max_steps",
    ]
)


@dataclass(frozen=True)
class Continuation:
    """How a run goes on from a checkpoint.

    Attributes:
        checkpoint: Its folder.
        before: What it was trained with.
        differences: Those that differ, and that change what is trained.
        rescheduled: Those among them that optimizer and schedule have to be set anew for.
        others: Further ones that differ, under what they concern: for messages.
    """

    checkpoint: Path
    before: RunSettings
    differences: Differences
    rescheduled: frozenset[str]
    others: dict[str, Differences]

    def said(self, step: int) -> list[str]:
        """What to tell the user once the differences are in force, after the step that was loaded."""
        found = {f"from step {step + 1} on": self.differences, **self.others}
        return [f"{head}: {listed(differences)}" for head, differences in found.items() if differences]

    def recorded(self, settings: Mapping[str, Any], step: int) -> RunSettings:
        """The record of the run from now on, which goes on with all these settings after that step."""
        return self.before.gone_on_with(settings, self.differences, step)


def continuation(
    checkpoint: Path,
    before: RunSettings,
    settings: Mapping[str, Any],
    *,
    effects: Mapping[str, Effect] = TRAINING | _OF_SFT,
    groups: Iterable[type] = (),
    processes: int = 1,
) -> Continuation:
    """Compare the settings of a checkpoint with those of a run that is to go on from it.

    Args:
        checkpoint: Its folder.
        before: What it was trained with.
        settings: The settings now, as `run_settings.plain` gives them.
        effects: What each setting means; those that are not named are refused where they differ.
        groups: The dataclasses of the settings; their defaults stand for what an older record lacks.
        processes: How many there are now.

    Returns:
        How the run goes on.

    Raises:
        CheckpointError: Settings differ that cannot change on the way; the message says what to do.
    """
    found = differing(before.settings, settings, groups)
    refused = [
        name
        for name in found
        if (effect := effects.get(name, Effect.REFUSED)) is Effect.REFUSED
        or (effect is Effect.MEASURE and _best_so_far(checkpoint))
        or (name in OF_THE_SCHEDULE and _reacts(before.settings, settings))
    ]
    rows_then, rows_now = (
        _rows(before.settings, _processes_of(checkpoint) or processes),
        _rows(settings, processes),
    )
    if refused or rows_then != rows_now:
        rows = (
            {}
            if rows_then == rows_now
            else {"rows of an optimizer step (total_batch_size)": (rows_then, rows_now)}
        )
        raise CheckpointError(_refusal(checkpoint, {**{name: found[name] for name in refused}, **rows}))

    def share(*kinds: Effect) -> Differences:
        return {n: pair for n, pair in found.items() if effects[n] in kinds and n not in _UNSAID}

    return Continuation(
        checkpoint,
        before,
        share(Effect.TRAINED, Effect.SCHEDULED, Effect.BATCH),
        frozenset(share(Effect.SCHEDULED)),
        {
            "reported otherwise from now on": share(Effect.REPORTED, Effect.MEASURE),
            "changed without effect on what is trained": share(Effect.NONE),
        },
    )


def unknown_before(checkpoint: Path, settings: Mapping[str, Any]) -> Continuation:
    """How a run goes on from a checkpoint of which nobody knows what it was trained with: as if with the settings now."""
    return Continuation(checkpoint, RunSettings(dict(settings)), {}, frozenset(), {})


def differing(before: Mapping[str, Any], now: Mapping[str, Any], groups: Iterable[type] = ()) -> Differences:
    """The settings of now that had another value before; one that the record lacks had its default."""
    defaults = plain(
        {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for group in groups
            for item in fields(group)
            if item.default is not MISSING or item.default_factory is not MISSING
        }
    )
    pairs = {
        name: (before[name] if name in before else defaults.get(name, value), value)
        for name, value in now.items()
    }
    return {name: (then, value) for name, (then, value) in pairs.items() if not _same(then, value)}


def training_settings(args: Any, config: MatrixLossConfig) -> dict[str, Any]:
    """The settings of a training by name, as a checkpoint keeps them.

    Args:
        args: `TrainingArguments`.
        config: The loss in force, whatever `args` say of it.
    """
    return plain(
        {**args.to_dict(), **{SETTING_NAMES[name]: value for name, value in config.to_dict().items()}}
    )


def listed(differences: Differences) -> str:
    """Differences as text."""
    return ", ".join(f"{name} {shown(before)} → {shown(now)}" for name, (before, now) in differences.items())


def _same(before: Any, now: Any) -> bool:
    if before == now:
        return True
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    one, other = Path(before).expanduser(), Path(now).expanduser()
    try:
        return one.samefile(other)  # the same place under another name
    except (OSError, ValueError):
        return False


def _processes_of(checkpoint: Path) -> int | None:
    """How many processes saved a checkpoint, where its manifest knows."""
    return (read_manifest(checkpoint) or {}).get("world_size")


def _rows(settings: Mapping[str, Any], processes: int) -> int:
    """Rows of an optimizer step."""
    return prod((processes, settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]))


def _reacts(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return any(settings.get("lr_scheduler_type") in _REACTING_SCHEDULES for settings in (before, now))


def _best_so_far(checkpoint: Path) -> bool:
    """Whether evaluations were compared, to find the best checkpoint."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("best_metric") is not None


def _refusal(checkpoint: Path, differences: Differences) -> str:
    then = ", ".join(f"{name} {shown(before)}" for name, (before, _) in differences.items())
    return (
        f"cannot go on from {checkpoint} with other settings than it was trained with: {listed(differences)}. Go on with "
        f"{then}; or start anew (a recipe: --resume false --overwrite true); or start a new run from these weights: another "
        f"output_dir, and model_name_or_path {checkpoint} (adapters merged first: mce-llm merge)"
    )
