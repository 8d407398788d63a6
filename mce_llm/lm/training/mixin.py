"""What the matrix loss adds to a trainer, for `Trainer` and for whatever is derived from it.

The model is patched before any engine wraps it, and the patch is at work in `compute_loss` alone: in between, the model
is what it was. Every loop is left alone; what is added is what gets logged: the two parts of the loss over the logging
window, and at evaluation the parts, the cost of the approximations and the effective rank of the hidden states.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed import group
from transformers import TrainingArguments
from transformers.utils import logging

from mce_llm.errors import LossInputError, MceLlmError
from mce_llm.lm.arguments import MatrixSettings, MatrixTrainingArguments
from mce_llm.lm.checks.for_training import PackedBatches, announces_packing, check_for_training
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry_cache import GeometryCache
from mce_llm.lm.heads import UnsupportedModelError, causal_model, find_head
from mce_llm.lm.one_row import in_one_row, in_rows
from mce_llm.lm.patch import MatrixLossPatch, patch_model
from mce_llm.lm.router_loss import router_coefficient
from mce_llm.lm.token_mask import tokenizer_in
from mce_llm.lm.training import checkpoints
from mce_llm.lm.training.checkpointing import checkpoint_eight_bit
from mce_llm.lm.training.early_stopping import add_early_stopping
from mce_llm.lm.training.evaluation_rows import EvaluationCollator, number_stream, without_repeated
from mce_llm.lm.training.exact_loss import exact_loss
from mce_llm.lm.training.guard import StepGuard
from mce_llm.lm.training.guard_callback import GuardCallback
from mce_llm.lm.training.loading import without_tied
from mce_llm.lm.training.meters import HiddenMeter, LossMeter, prefix_of, total_loss, with_means
from mce_llm.lm.training.monitoring import add_monitoring
from mce_llm.lm.training.other_losses import other_losses
from mce_llm.lm.training.preemption_callback import PreemptionCallback
from mce_llm.lm.training.publishing import PublishingMixin
from mce_llm.lm.training.resuming import Continuation
from mce_llm.lm.training.row_ids import ROW_IDS, NumberedCollator, NumberedRows
from mce_llm.lm.training.run_settings import RunSettings
from mce_llm.lm.training.schedule import FreshSchedule, check_length, reschedule
from mce_llm.lm.training.starting import started
from mce_llm.running import preemption
from mce_llm.running.devices import same_random_state
from mce_llm.running.launched_precision import note_launched_precision
from mce_llm.running.messages import raise_all
from mce_llm.running.processes import say
from mce_llm.running.workers import shield_workers

_logger = logging.get_logger(__name__)
# Beside the loss of training.
_LOGGED = ("ce_loss", "mce_loss", "smoothing_loss", "emo_loss", "emo_distance", "aux_loss")


class UnsupportedTrainerError(MceLlmError, TypeError):
    """The trainer behind `MatrixLossMixin` does not take its loss from the model; the message says what to use."""


class MatrixLossMixin(PublishingMixin):
    """Put it in front of `transformers.Trainer`, or of a class derived from it: `class Mine(MatrixLossMixin, Base)`.

    Attributes:
        matrix_patch: The patch on the model; its `config` says which loss is in force.
        arguments_class: What `args` is made of where none are given.
        all_settings: The settings of the run, where there are more than `args`; checkpoints keep them.
        continuation: How the run goes on from the checkpoint that `train` is given; by default found out there.
        run_settings: What the run was trained with so far; None before training.
    """

    matrix_patch: MatrixLossPatch
    all_settings: Mapping[str, Any] | None = None
    continuation: Continuation | None = None
    run_settings: RunSettings | None = None
    _fresh_schedule: FreshSchedule | None = None
    arguments_class: type[TrainingArguments] = MatrixTrainingArguments

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        matrix_loss: MatrixLossConfig | None = None,
        **named: Any,
    ) -> None:
        """Hand everything to `Trainer`, and patch the model that it then has: some trainers load or wrap it themselves.

        Args:
            model: A causal language model, or a `peft` model around one.
            args: Training arguments; default as for `Trainer`, in the folder `trainer_output`.
            *positional: Further arguments of `Trainer`.
            matrix_loss: The loss settings in place of the `matrix_*` ones of `args`.
            **named: Further arguments of `Trainer`.

        Raises:
            UnsupportedModelError: A model or head that the losses, or packing, would be wrong for.
            ValueError: A setting of `Trainer` that would put another loss in this one's place.
        """
        if args is None:
            args = self.arguments_class(output_dir="trainer_output")
        if matrix_loss is None:
            if not isinstance(args, MatrixSettings):
                raise ValueError(
                    f"args must be {self.arguments_class.__name__}, or pass matrix_loss=MatrixLossConfig(…)"
                )
            matrix_loss = args.matrix_loss
        note_launched_precision(args)
        # Before data are prepared, and again below, when `Trainer` knows which GPUs a model that is spread over them has.
        spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
        raise_all(other_losses(args, named.get("compute_loss_func"), 1 if spread else args.n_gpu))
        if isinstance(model, nn.Module):
            find_head(causal_model(model))  # refuse before data are prepared
            check_for_training(model, args, named.get("train_dataset"), named.get("eval_dataset"))

        def patched(fresh: nn.Module, tokenizer: Any) -> nn.Module:
            data = [getattr(self, name, named.get(name)) for name in ("train_dataset", "eval_dataset")]
            self.matrix_patch = patch_model(
                fresh, matrix_loss, tokenizer=tokenizer_in(tokenizer), rows=data, always_at_work=False
            )
            return fresh

        if model is None and (init := named.get("model_init")) is not None:
            tokenizer = named.get("processing_class")
            named["model_init"] = functools.wraps(init)(lambda *trial: patched(init(*trial), tokenizer))
        super().__init__(model, args, *positional, **named)  # type: ignore[arg-type]
        # The patched forward takes the count of labels and shifts them, whatever the class says of its own forward; the stock
        # trainer would train the mean of every micro-batch, or count the first label of every row.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False
        # They may have come by position.
        raise_all(other_losses(self.args, self.compute_loss_func, self.args.n_gpu))
        if model is not None:
            patched(self.model, self.processing_class)  # type: ignore[arg-type]
        data = (self.train_dataset, self.eval_dataset)
        packing = announces_packing(self.args, self.data_collator, *data)
        check_for_training(self.model, self.args, *data, packing=packing)  # type: ignore[arg-type]
        self._packed_batches = PackedBatches(announced=packing)
        self._train_meter = LossMeter(self.args.device)
        self._eval_meter = LossMeter(self.args.device)
        self._hidden_meter = HiddenMeter()
        self._geometries = GeometryCache()
        scaled = bool(self.args.fp16)
        self._guard = StepGuard(
            getattr(self.args, "on_nonfinite", "stop"),
            getattr(self.args, "nonfinite_patience", 0),
            self.args.device,
            watch_gradients=not scaled,
            stop_requested=preemption.requested,
        )
        self._guarding = GuardCallback(self._guard, lambda: self.model_wrapped, loss_scaler=scaled)
        self.add_callback(self._guarding)
        add_monitoring(self)
        add_early_stopping(self)
        self.add_callback(PreemptionCallback(lambda: self._guard.stop))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The stock training, alone in its folder; a checkpoint to resume from is checked first (`starting.started`)."""
        trial = args[0] if args else kwargs.get("trial")
        if isinstance(self.model, nn.Module):
            _refuse_frozen(self.model)
        with started(self, resume_from_checkpoint, trial) as checkpoint, preemption.training():
            if line := checkpoint_eight_bit(self.args, self.model):  # type: ignore[arg-type]
                say(line)
            return super().train(checkpoint, *args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The stock schedule; what it and the optimizer were made with is noted before a checkpoint is loaded."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._fresh_schedule = FreshSchedule.of(optimizer or self.optimizer, scheduler)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The stock loading, and then what the arguments say where the checkpoint was trained with something else."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            check_length(self, Path(checkpoint))
        # Where the schedule was handed to the trainer, the arguments have no say.
        made = self._created_lr_scheduler or self.is_deepspeed_enabled
        if (
            made
            and checkpoint is not None
            and self.continuation is not None
            and self.continuation.rescheduled
        ):
            reschedule(self, self._fresh_schedule, Path(checkpoint), self.continuation.rescheduled)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The stock warnings; a weight that is tied to one that was loaded is not missing."""
        super()._issue_warnings_after_load(without_tied(self.model, load_result))  # type: ignore[arg-type]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The stock save as one atomic step; with the optimizer's state where the run is being stopped."""
        only, self.args.save_only_model = (
            self.args.save_only_model,
            self.args.save_only_model and not self._guard.stop,
        )
        try:
            save = functools.partial(super()._save_checkpoint, model, trial)
            checkpoints.save_whole(self, trial, save)
        finally:
            self.args.save_only_model = only

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The stock batches, and none after the last step: a run resumed from there has nothing left to train."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """The stock count, of the labels that the loss predicts: all but the first of every row."""
        count = super()._get_num_items_in_batch([_targets(batch) for batch in batch_samples], device)
        if isinstance(count, Tensor) and count.is_floating_point():
            # Divided by the ranks that share data. FSDP2 would round it: it casts inputs to bfloat16, but for whole numbers.
            return count.round().long()
        return count

    def _get_dataloader(  # type: ignore[override]
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **more: Any,
    ) -> Any:
        """The stock loader; training's batches also tell which rows they hold, evaluation's where repeated ones are."""
        own_collator = self.data_collator
        collator = None
        if is_training and not isinstance(dataset, torch.utils.data.IterableDataset):
            rows, collate = dataset, own_collator
            if hasattr(rows, "remove_columns"):  # of `datasets`
                rows = self._remove_unused_columns(rows, description=description)
            else:
                collate = self._get_collator_with_removed_columns(own_collator, description=description)
            self.data_collator = NumberedCollator(collate)
            own_sampler, dataset = sampler_fn, NumberedRows(rows)
            sampler_fn = None if own_sampler is None else lambda _: own_sampler(rows)
        elif not is_training and _world_size() > 1:
            collate = self._get_collator_with_removed_columns(own_collator, description=description)
            self.data_collator = collator = EvaluationCollator(collate)
        try:
            loader = super()._get_dataloader(
                dataset, description, batch_size, sampler_fn, is_training, **more
            )
            if collator is not None:
                number_stream(loader, collator)
            return shield_workers(loader)
        finally:
            self.data_collator = own_collator

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The stock step; where steps may be left out, a loss that is not finite counts as 0 in the sum of losses."""
        self._rows = inputs.pop(ROW_IDS, None)
        if self._guard.step_begins:
            if self._guard.step_is_bad:
                self._train_meter.back()
            self._train_meter.mark()
            self._geometries.clear()
        with self._geometries.steady():
            loss = super().training_step(model, inputs, *args, **kwargs)
        return loss.nan_to_num(0.0, 0.0, 0.0) if self._guard.action == "skip" else loss

    def _get_grad_norm(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The stock norm of the gradients, which the guard looks at before the optimizer steps; else it takes its own."""
        norm = super()._get_grad_norm(model, *args, **kwargs)
        self._guarding.norm = None if norm is None else torch.as_tensor(norm)
        return norm

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The stock loss computation, which runs the patched forward; records the parts of the loss."""
        patch = self.matrix_patch
        patch.last = patch.last_hidden = None
        # Every rank makes every call of the loops, so the batch kinds may share statistics here.
        ranks = group.WORLD if _world_size() > 1 else None
        self._packed_batches.look(patch.model, self.args, inputs)
        rows = len(inputs["labels"]) if "labels" in inputs else 1
        inputs = in_one_row(patch.model, inputs)
        settings = {"process_group": ranks, "keep_hidden": not model.training, "geometries": self._geometries}
        exact = exact_loss(model, patch) if self.is_fsdp_enabled else nullcontext()
        with patch.at_work(), patch.temporarily(**settings), exact:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        if patch.last is None:
            base = next(
                c
                for c in type(self).__mro__
                if not issubclass(c, MatrixLossMixin) and "compute_loss" in vars(c)
            )
            raise UnsupportedTrainerError(
                f"{base.__name__}.compute_loss never ran the model's own forward with labels, so its loss is another one and "
                "the matrix loss would have no part in it; MatrixLossMixin goes with Trainer and with what leaves the "
                "loss to the model (for trl.SFTTrainer: mce_llm.lm.MatrixSFTTrainer)"
            )
        if model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self._guard.note(loss, self._rows, patch.last.num_tokens)
        (self._train_meter if model.training else self._eval_meter).add(patch.last)
        if patch.last_hidden is not None:
            self._hidden_meter.add(patch.last_hidden)
            patch.last_hidden = None
        return in_rows(result, rows)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """The stock step, with the labels of rows masked that are there to make the last batch even on every rank.

        Logits beside the loss cost memory, so there are some only where they are asked for: of `predict`, and for metrics.
        """
        inputs = without_repeated(inputs, self.accelerator)
        patch = self.matrix_patch
        with patch.temporarily(keep_logits=patch.keep_logits or not prediction_loss_only):
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to the training logs the parts of the loss, and how many steps were left out so far, if any."""
        if "loss" in logs:
            if self._guard.step_is_bad:
                self._train_meter.back()
            parts = self._train_meter.means_and_reset(self.accelerator)
            logs = {**logs, **{name: parts[name] for name in _LOGGED if name in parts}}
            if self._guard.skipped_steps:
                # The stock mean counts what the other micro-batches of these steps brought; the parts do not.
                logs["loss"] = total_loss(parts, self.matrix_patch.config)
                if "aux_loss" in parts:
                    logs["loss"] += router_coefficient(self.matrix_patch.model) * parts["aux_loss"]
                logs["skipped_steps"] = self._guard.skipped_steps
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The stock loop, with the parts of the loss in its metrics, and their sum over all labels as the loss."""
        self._eval_meter.reset()
        self._hidden_meter.reset()
        # The data loader draws a random number, which a resumed run that skips this evaluation would not draw.
        with same_random_state(self.args.device), self._geometries.steady(fresh=True):
            output = super().evaluation_loop(*args, **kwargs)
        means = self._eval_meter.means_and_reset(self.accelerator)
        if (rank := self._hidden_meter.effective_rank(self.accelerator)) is not None:
            means["hidden_effective_rank"] = rank
        prefix = prefix_of(*args, **kwargs)
        metrics = output.metrics or {}
        if metrics.pop(f"{prefix}_loss", None) is None:  # no batch had labels
            return output
        if "ce_loss" in means:
            means["loss"] = total_loss(means, self.matrix_patch.config)
        else:
            self._without_loss(f"{prefix}_loss")
        return with_means(output._replace(metrics=metrics), means, prefix)

    def _without_loss(self, name: str) -> None:
        """Say that an evaluation has no loss, and why; where the best model is chosen by it, it is an error."""
        reason = (
            f"no {name}: every label of the evaluation data is masked (-100), or at the start of its row, where nothing "
            "predicts it; drop such rows, or raise max_length where it cut their labels off"
        )
        by = self.args.metric_for_best_model
        if self.is_in_train and by is not None and name == f"eval_{by.removeprefix('eval_')}":
            raise LossInputError(f"{reason}. metric_for_best_model ({by}) needs it")
        if self.accelerator.is_main_process:
            _logger.warning(reason)


def _targets(batch: Any) -> dict[str, Any]:
    """The labels of a batch that something predicts, as `labels`; empty where it has none."""
    if isinstance(shifted := batch.get("shift_labels"), Tensor):
        return {"labels": shifted}
    labels = batch.get("labels")
    return {"labels": labels[..., 1:]} if isinstance(labels, Tensor) else {}


def _world_size() -> int:
    return int(PartialState().num_processes)


def _refuse_frozen(model: nn.Module) -> None:
    """Raise where nothing would be trained."""
    if any(weight.requires_grad for weight in model.parameters()):
        return
    adapters = (
        "adapters are loaded to be trained with PeftModel.from_pretrained(…, is_trainable=True)"
        if hasattr(model, "peft_config")
        else "train some of them (requires_grad_(True)), or put adapters on the model"
    )
    raise UnsupportedModelError(f"all parameters of the {type(model).__name__} are frozen: {adapters}")
