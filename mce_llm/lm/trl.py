"""TRL's `SFTTrainer` with matrix cross-entropy beside cross-entropy; needs the extra `trl`.

`SFTTrainer` prepares data and adapters; the loss is the model's own, as in `Trainer`. TRL's computation of the loss is
not used: its newer versions work past the model's forward (a fused head of their own) and its older ones need all the
logits. What it logs beside the loss is measured inside the head instead, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import Accelerator
from packaging.version import Version
from torch import Tensor, nn
from transformers import Trainer

from mce_llm.lm.arguments import MatrixSettings
from mce_llm.lm.observation import HeadObservation, Observer
from mce_llm.lm.patch import MatrixLossPatch
from mce_llm.lm.router_loss import set_router_coefficient
from mce_llm.lm.training.meters import prefix_of, with_means
from mce_llm.lm.training.mixin import MatrixLossMixin
from mce_llm.matrix.precision import exact_dtype
from mce_llm.running.installation import install_hint

OLDEST_TRL = "1.0"
_INSTALL = install_hint("trl")

try:
    _installed = version("trl")
except PackageNotFoundError:
    raise ImportError(f"MatrixSFTTrainer needs TRL, which is not installed: {_INSTALL}") from None
if Version(_installed) < Version(OLDEST_TRL):
    raise ImportError(
        f"MatrixSFTTrainer needs TRL {OLDEST_TRL} or newer, {_installed} is installed: {_INSTALL}"
    )

from trl import SFTConfig, SFTTrainer  # noqa: E402 - after the check, whose message helps more than TRL's own error

# The losses of `SFTConfig.loss_type` that are cross-entropy, whichever way they go about it.
_CROSS_ENTROPIES = (None, "nll", "chunked_nll")
_CHUNK_ELEMENTS = 2**23  # of probabilities, and as many of their entropies


@dataclass
class MatrixSFTConfig(MatrixSettings, SFTConfig):
    """`SFTConfig` with the settings of the matrix loss, and one of its own."""

    token_metrics: bool = field(
        default=True,
        metadata={
            "help": "Log entropy and mean_token_accuracy, as TRL does; costs one more product with the head's weight for "
            "each trained token."
        },
    )


class _TokenMeter:
    """Means over the trained tokens since the last reset: entropy of the predictions, and share of them that are right."""

    def __init__(self, device: torch.device) -> None:
        self._sums_3 = torch.zeros(3, dtype=exact_dtype(device), device=device)  # Σ entropy, Σ right, labels
        self._input_tokens = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begin new means; the tokens of the input are counted on."""
        self._sums_3.zero_()

    def count(self, tokens: Tensor | int) -> None:
        """Count tokens of the input, those without a loss included."""
        self._input_tokens += tokens

    def observe(self, head: HeadObservation) -> None:
        """Take in the predictions of one forward."""
        positions_N = torch.arange(len(head.labels_N), device=head.labels_N.device)
        chunk_size = max(1, _CHUNK_ELEMENTS // head.weight_VD.shape[0])
        for positions_C, q_CV in head.probabilities(positions_N, chunk_size):
            right = (q_CV.argmax(-1) == head.labels_N[positions_C]).sum()
            entropy = torch.special.entr(q_CV).sum()
            labels = entropy.new_tensor(len(positions_C))
            self._sums_3 += torch.stack([entropy, right, labels]).to(self._sums_3)

    def input_tokens(self, accelerator: Accelerator) -> float:
        """Tokens of the input so far, over all ranks; every rank calls."""
        return float(accelerator.reduce(self._input_tokens, reduction="sum"))

    def means_and_reset(self, accelerator: Accelerator) -> dict[str, float]:
        """`entropy` (nats) and `mean_token_accuracy` over all ranks, where any token was observed; every rank calls."""
        entropy, right, labels = accelerator.reduce(self._sums_3, reduction="sum").tolist()
        self.reset()
        return {"entropy": entropy / labels, "mean_token_accuracy": right / labels} if labels else {}


class _ModelLossSFTTrainer(SFTTrainer):
    """`SFTTrainer` whose loss is the model's own, where `MatrixLossMixin` puts its part."""

    matrix_patch: MatrixLossPatch
    _train_tokens: _TokenMeter
    _eval_tokens: _TokenMeter

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """`Trainer`'s, in place of TRL's; measures the predictions on the way."""
        meter = self._train_tokens if model.training else self._eval_tokens
        inputs = {**inputs, "use_cache": False}
        if getattr(self, "aux_loss_enabled", False):  # some models take it from here alone
            inputs["output_router_logits"] = True
        with self.matrix_patch.temporarily(observer=self._observer_with(meter)):
            result = Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        if self.matrix_patch.last is not None:
            meter.count(self.matrix_patch.last.batch.tokens)
        return result

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s: TRL's would run the model once more for the logits."""
        return Trainer.prediction_step(self, *args, **kwargs)

    def _observer_with(self, meter: _TokenMeter) -> Observer | None:
        """The observer in force, and the meter beside it, if the arguments ask for it."""
        other = self.matrix_patch.observer
        if not getattr(self.args, "token_metrics", True):
            return other

        def observe(head: HeadObservation) -> None:
            meter.observe(head)
            if other is not None:
                other(head)

        return observe

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what TRL logs beside the loss of training: `entropy`, `mean_token_accuracy` and `num_tokens` so far."""
        if "loss" in logs:
            logs = {**logs, **self._train_tokens.means_and_reset(self.accelerator)}
            logs["num_tokens"] = self._train_tokens.input_tokens(self.accelerator)
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The stock loop, with `entropy` and `mean_token_accuracy` added to its metrics."""
        self._eval_tokens.reset()
        output = super().evaluation_loop(*args, **kwargs)
        means = self._eval_tokens.means_and_reset(self.accelerator)
        return with_means(output, means, prefix_of(*args, **kwargs))


class MatrixSFTTrainer(MatrixLossMixin, _ModelLossSFTTrainer):  # type: ignore[misc]
    """Drop-in `SFTTrainer`: same arguments, same preparation of data and adapters, same checkpoints.

    It logs what `MatrixTrainer` does, and TRL's `entropy` (nats), `mean_token_accuracy` (both means over the unmasked
    labels of the logging window and all ranks) and `num_tokens` (of the input, since this process started).

    Attributes:
        matrix_patch: The patch on the model; its `config` says which loss is in force.
    """

    arguments_class = MatrixSFTConfig

    def __init__(self, model: nn.Module | str, args: Any = None, *positional: Any, **named: Any) -> None:
        """Prepare the data and the model as TRL does, and patch the model that comes out.

        Args:
            model: A causal language model, a `peft` model around one, or its hub id or directory.
            args: `MatrixSFTConfig`; or any training arguments, with `matrix_loss`.
            *positional: Further arguments of `SFTTrainer`.
            **named: Further arguments of `SFTTrainer`, such as `peft_config`; and `matrix_loss`, a `MatrixLossConfig`
                in place of the `matrix_*` settings of `args`.

        Raises:
            UnsupportedModelError: A model or head that the losses would be wrong for.
            ValueError: A setting that would put another loss in this one's place.
        """
        if (loss_type := getattr(args, "loss_type", None)) not in _CROSS_ENTROPIES:
            raise ValueError(
                f"loss_type {loss_type!r} is another loss in the place of cross-entropy; leave loss_type out (nll)"
            )
        super().__init__(model, args, *positional, **named)
        coefficient = getattr(self.args, "router_aux_loss_coef", None)
        if coefficient:  # TRL writes it into the config, which most models have read by now
            set_router_coefficient(self.matrix_patch.model, coefficient)
        self._train_tokens = _TokenMeter(self.args.device)
        self._eval_tokens = _TokenMeter(self.args.device)
