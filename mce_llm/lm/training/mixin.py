"""What the matrix loss adds to a trainer, for `Trainer` and for whatever is derived from it.

The model is patched before the trainer sees it and every loop is left alone; what is added is what gets logged: the
two parts of the loss over the logging window, and at evaluation the parts, the cost of the approximations and the
effective rank of the hidden states.
"""

from __future__ import annotations

import functools
from math import isfinite
from typing import Any

from torch import Tensor, nn
from torch.distributed import get_world_size, group, is_available, is_initialized
from transformers import PreTrainedTokenizerBase

from mce_llm.lm.arguments import MatrixTrainingArguments
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.patch import MatrixLossPatch, patch_model
from mce_llm.lm.training.meters import HiddenMeter, LossMeter


class NonFiniteLossError(FloatingPointError):
    """The loss stopped being a number; the message says when and which part."""


class MatrixLossMixin:
    """Put it in front of `transformers.Trainer`, or of a class derived from it: `class Mine(MatrixLossMixin, Base)`.

    Attributes:
        matrix_patch: The patch on the model; its `config` says which loss is in force.
    """

    matrix_patch: MatrixLossPatch

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MatrixTrainingArguments | None = None,
        *positional: Any,
        matrix_loss: MatrixLossConfig | None = None,
        **named: Any,
    ) -> None:
        """Patch the model, then hand everything to `Trainer`.

        Args:
            model: A causal language model, or a `peft` model around one.
            args: Training arguments; default as for `Trainer`, in the folder `trainer_output`.
            *positional: Further arguments of `Trainer`.
            matrix_loss: The loss settings in place of the `matrix_*` ones of `args`.
            **named: Further arguments of `Trainer`.

        Raises:
            UnsupportedModelError: A model or head that the losses would be wrong for.
            ValueError: A setting of `Trainer` that would put another loss in this one's place.
        """
        if args is None:
            args = MatrixTrainingArguments(output_dir="trainer_output")
        if matrix_loss is None:
            if not isinstance(args, MatrixTrainingArguments):
                raise ValueError(
                    "args must be MatrixTrainingArguments, or pass matrix_loss=MatrixLossConfig(…)"
                )
            matrix_loss = args.matrix_loss
        _refuse_other_losses(args, named)
        tokenizer = named.get("processing_class")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = None

        def patched(fresh: nn.Module) -> nn.Module:
            self.matrix_patch = patch_model(fresh, matrix_loss, tokenizer=tokenizer)
            return fresh

        if model is not None:
            patched(model)
        elif (init := named.get("model_init")) is not None:
            named["model_init"] = functools.wraps(init)(lambda *trial: patched(init(*trial)))
        super().__init__(model, args, *positional, **named)
        if self.compute_metrics is not None:
            self.matrix_patch.keep_logits = True
        self._train_meter = LossMeter(self.args.device)
        self._eval_meter = LossMeter(self.args.device)
        self._hidden_meter = HiddenMeter()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The stock loss computation, which runs the patched forward; notes the parts on the way."""
        patch = self.matrix_patch
        patch.last = None
        # Every rank makes every call of the loops, so the batch kinds may share statistics here.
        patch.process_group = group.WORLD if _world_size() > 1 else None
        patch.keep_hidden = not model.training
        result = super().compute_loss(model, inputs, *args, **kwargs)
        patch.process_group, patch.keep_hidden = None, False
        if patch.last is not None:
            (self._train_meter if model.training else self._eval_meter).add(patch.last)
        if patch.last_hidden is not None:
            self._hidden_meter.add(patch.last_hidden)
            patch.last_hidden = None
        return result

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock step, without the rows that are in the last batch only to give every process as many."""
        state = self.accelerator.gradient_state
        if "labels" in inputs and state.end_of_dataloader and state.remainder > 0:
            labels = inputs["labels"].clone()
            labels[max(state.remainder - self.accelerator.process_index * len(labels), 0) :] = -100
            inputs = {**inputs, "labels": labels}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to the training logs.

        Raises:
            NonFiniteLossError: The mean over the logging window is not finite, on any rank.
        """
        if "loss" in logs:
            parts = self._train_meter.means_and_reset(self.accelerator)
            logs = {**logs, **{name: parts[name] for name in ("ce_loss", "mce_loss") if name in parts}}
            self._stop_if_not_finite(logs)
        super().log(logs, *args, **kwargs)

    def _stop_if_not_finite(self, logs: dict[str, float]) -> None:
        bad = {
            name: logs[name] for name in ("loss", "ce_loss", "mce_loss") if not isfinite(logs.get(name, 0.0))
        }
        if bad and not self.args.logging_nan_inf_filter:
            listed = ", ".join(f"{name} {value}" for name, value in bad.items())
            raise NonFiniteLossError(
                f"the loss is not finite in the {self.args.logging_steps} steps up to step {self.state.global_step} "
                f"({listed}); go back to a checkpoint before that, with a lower learning_rate or max_grad_norm"
            )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The stock loop, with the parts of the loss added to its metrics."""
        self._eval_meter.reset()
        self._hidden_meter.reset()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
        means = self._eval_meter.means_and_reset(self.accelerator)
        if (rank := self._hidden_meter.effective_rank(self.accelerator)) is not None:
            means["effective_rank"] = rank
        metrics = {**(output.metrics or {}), **{f"{prefix}_{name}": value for name, value in means.items()}}
        return output._replace(metrics=metrics)


def _world_size() -> int:
    return get_world_size() if is_available() and is_initialized() else 1


def _refuse_other_losses(args: Any, named: dict[str, Any]) -> None:
    """Raise for every setting that would silently bypass the patched forward."""
    problems = []
    if args.label_smoothing_factor:
        problems.append(
            "label_smoothing_factor replaces the model's loss; set it to 0 (matrix_shrinkage smooths the matrix loss)"
        )
    if named.get("compute_loss_func") is not None:
        problems.append("compute_loss_func replaces the model's loss; leave it out")
    if getattr(args, "use_liger_kernel", False):
        problems.append("use_liger_kernel replaces the forward that computes the loss; set it to false")
    if args.n_gpu > 1:
        problems.append(
            f"{args.n_gpu} GPUs in one process mean torch.nn.DataParallel; start one process a GPU: "
            f"accelerate launch --num_processes {args.n_gpu} …, or set CUDA_VISIBLE_DEVICES to one"
        )
    if problems:
        raise ValueError("; ".join(problems))
