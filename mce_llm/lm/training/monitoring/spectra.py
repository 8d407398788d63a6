"""Effective rank and spectrum of the hidden states and of the predicted density matrices while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mce_llm.lm.patch import MatrixLossPatch
from mce_llm.lm.training.monitoring.head_sample import HeadSample, Measurement
from mce_llm.lm.training.monitoring.spectrum import Spectrum
from mce_llm.lm.training.monitoring.trackers import add_histogram, log_scalars
from mce_llm.running.processes import say
from mce_llm.running.step_log import StepLog

SPECTRA_FILE = "spectra.jsonl"
# Smaller shares are rounding, and would stretch the axis of a histogram of logarithms.
_SMALLEST_SHARE = 1e-12


class SpectraCallback(TrainerCallback):
    """Measures at step 1 and at every multiple of `monitor_steps`, on a sample of unmasked positions of that step.

    Logs `hidden_effective_rank` and `hidden_top_share` of the covariance of the hidden states that enter the head,
    `density_effective_rank` and `density_top_share` of the predicted density matrices (the mean over positions for
    the kind `token`), and, for `token`, `tail_mass` and `quadrature_gap`. The eigenvalues go to `spectra.jsonl` in
    the output folder, and as histograms of log10(λ_i/Σλ) to TensorBoard and W&B.

    A covariance of n positions has at most n − 1 positive eigenvalues, so its effective rank falls short of that of
    all positions: for an isotropic covariance of rank r it is about r·exp(−r/2n) for r ≤ n and n·exp(−n/2r) beyond
    (Page, Phys. Rev. Lett. 71, 1291, 1993). 512 positions see 100 dimensions as 91, and 4096 as 481. Compare runs
    with the same n; the evaluation's `eval_hidden_effective_rank` uses every position.

    Measuring reads the model and draws no random numbers: the run ends with the same weights with and without.

    Args:
        trainer: Whose training is measured.
        patch: The patch on its model; by default the trainer's own `matrix_patch`.
        monitor_steps: Optimizer steps between measurements; at least 1.
        positions: n, over all ranks.

    Raises:
        ValueError: The trainer has no patch and none was given.
    """

    def __init__(
        self,
        trainer: Trainer,
        patch: MatrixLossPatch | None = None,
        *,
        monitor_steps: int = 100,
        positions: int = 512,
    ) -> None:
        self._trainer, self._patch = trainer, patch
        _ = patch_of(trainer, patch)
        self._steps, self._positions = monitor_steps, positions
        self._sample: HeadSample | None = None
        self._said = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the records of steps after the checkpoint that the run is resumed from."""
        self._observe(None)
        if state.is_world_process_zero:
            self._log(args).rewind(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Observe the head in this step, if a measurement is due."""
        step = state.global_step + 1
        if step == 1 or step % self._steps == 0:
            self._observe(HeadSample(max(1, self._positions // self._trainer.accelerator.num_processes)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pool the ranks' samples and log."""
        sample = self._sample
        if sample is None:
            return
        self._observe(None)
        with torch.no_grad():
            seen = sample.pooled(self._trainer.accelerator)
        if seen is None:
            return
        if seen.problem is not None and not self._said:
            say(f"step {state.global_step}: not every spectrum could be measured: {seen.problem}")
            self._said = True
        if logs := _scalars(seen):
            log_scalars(self._trainer, control, logs)
        if logs and state.is_world_process_zero:
            self._log(args).append(state.global_step, _record(seen))
            for name, spectrum in _spectra(seen).items():
                add_histogram(self._trainer, f"spectra/{name}", _log_shares(spectrum), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the observer."""
        self._observe(None)

    def _observe(self, sample: HeadSample | None) -> None:
        self._sample = patch_of(self._trainer, self._patch).observer = sample

    def _log(self, args: TrainingArguments) -> StepLog:
        return StepLog(Path(str(args.output_dir)) / SPECTRA_FILE)


def patch_of(trainer: Trainer, patch: MatrixLossPatch | None) -> MatrixLossPatch:
    """The patch that was given, or the trainer's own (which `model_init` may replace at any time).

    Raises:
        ValueError: There is neither.
    """
    found = patch if patch is not None else getattr(trainer, "matrix_patch", None)
    if found is None:
        raise ValueError(
            f"{type(trainer).__name__} has no matrix_patch; give the callback what patch_model returned: patch=…"
        )
    return found


def _scalars(seen: Measurement) -> dict[str, float]:
    logs: dict[str, float] = {}
    if seen.hidden is not None:
        logs["hidden_effective_rank"] = float(seen.hidden.effective_rank)
        logs["hidden_top_share"] = float(seen.hidden.top_share)
    if (density := seen.density) is not None:
        logs["density_effective_rank"] = density.effective_rank
        logs["density_top_share"] = density.top_share
        if density.tail_mass is not None and density.quadrature_gap is not None:
            logs["tail_mass"] = density.tail_mass
            logs["quadrature_gap"] = density.quadrature_gap
    return logs


def _record(seen: Measurement) -> dict[str, Any]:
    """A line of `spectra.jsonl` without its step."""
    record: dict[str, Any] = {}
    if seen.hidden is not None:
        rank = float(seen.hidden.effective_rank)
        record["hidden"] = {"positions": seen.positions, "effective_rank": rank, **_numbers(seen.hidden)}
    if (density := seen.density) is not None:
        about: dict[str, Any] = {"kind": seen.config.kind, "positions": density.positions}
        if density.support is not None:
            about["support"] = density.support
        about["effective_rank"] = density.effective_rank
        record["density"] = {**about, **_numbers(density.spectrum)}
    return record


def _numbers(spectrum: Spectrum) -> dict[str, Any]:
    digits = [float(f"{value:.6g}") for value in spectrum.eigenvalues.tolist()]
    return {"width": spectrum.width, "eigenvalues": digits, "rest": float(f"{float(spectrum.rest):.6g}")}


def _spectra(seen: Measurement) -> dict[str, Spectrum]:
    found = {"hidden": seen.hidden, "density": None if seen.density is None else seen.density.spectrum}
    return {name: spectrum for name, spectrum in found.items() if spectrum is not None}


def _log_shares(spectrum: Spectrum) -> np.ndarray:
    """log10 of λ_i/Σλ for all eigenvalues that are more than rounding."""
    others = np.full(spectrum.width - spectrum.eigenvalues.shape[-1], float(spectrum.rest))
    shares = np.concatenate([spectrum.eigenvalues.numpy(), others]) / float(spectrum.trace)
    return np.log10(shares[shares > _SMALLEST_SHARE])
