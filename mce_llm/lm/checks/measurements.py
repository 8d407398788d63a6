"""What the model checks measure on a small model: agreement with the stock loss, causality, isolation of packed examples.

Every measurement returns what is wrong, in words that end a sentence about the model's class, or None.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.patch import patch_model
from mce_llm.running.devices import same_random_state
from mce_llm.running.messages import cause

LENGTH = 24
_ROWS = 2
_PADDING = 5
_FIRST = 10  # tokens of the first of two packed examples
# Relative to what is compared. A product of other shape rounds differently (1e-6 in float32, 1e-2 in bfloat16); a
# token that is seen where it should not be changes logits by 1e-2 and more of their spread, see `stir`.
_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
_LOSS_TOLERANCE, _GRADIENT_TOLERANCE = 3e-5, 2e-3


class ForwardError(RuntimeError):
    """The model's own forward fails on text."""


def stir(model: nn.Module) -> None:
    """Add noise to all weights, so that none of their parts is switched off by how they are initialised.

    Gates that begin at zero, and weights of 0.02, would hide most of what one token does to another.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                # Products of unit size, so that logits spread and one label's loss is not like another's.
                spread = 0.1 if weight.ndim < 2 else weight.shape[-1] ** -0.5
                weight.add_(torch.randn_like(weight, dtype=torch.float32).to(weight.dtype), alpha=spread)


def loss_disagreement(model: PreTrainedModel, tokens_BT: Tensor) -> str | None:
    """How the patched loss at weight 0, or a gradient of it, differs from the model's own with labels.

    The batch is one of `CompletionCollator`: a prompt without labels, padding on the right in the second row.

    Raises:
        ForwardError: The model's own forward fails on it.
    """
    labels = tokens_BT.clone()
    labels[:, :3] = -100
    mask = torch.ones_like(labels)
    labels[1, -_PADDING:], mask[1, -_PADDING:] = -100, 0
    batch = {"input_ids": tokens_BT, "attention_mask": mask, "labels": labels}
    model.train()
    try:
        stock = _step(model, batch)
    except Exception as error:  # as many types as there are architectures
        raise ForwardError(cause(error)) from error
    patch = patch_model(model, MatrixLossConfig(weight=0))
    try:
        patched = _step(model, batch)
    except Exception as error:
        return f"its forward fails with the matrix loss in it: {cause(error)}"
    finally:
        patch.remove()
        model.zero_grad()
    if abs(patched.loss - stock.loss) <= _LOSS_TOLERANCE * max(abs(stock.loss), 1.0):
        return _other_gradient(stock, patched)
    if _does_not_shift(model, batch, stock.loss):
        return "it does not shift the labels: each position would learn its own token, not the next"
    return f"its own loss on one batch is {stock.loss:.4f}, and causal cross-entropy {patched.loss:.4f}"


@dataclass
class _Step:
    loss: float
    gradients: dict[str, Tensor]


def _step(model: PreTrainedModel, batch: dict[str, Tensor]) -> _Step:
    model.zero_grad()
    with seeded(0, batch["input_ids"].device):
        loss = model(**batch).loss
        loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return _Step(float(loss.detach()), found)


def _other_gradient(stock: _Step, patched: _Step) -> str | None:
    whole = float(sum(g.double().square().sum() for g in stock.gradients.values())) ** 0.5
    for name in sorted(stock.gradients.keys() | patched.gradients.keys()):
        own, ours = stock.gradients.get(name), patched.gradients.get(name)
        gap = _norm(ours) if own is None else _norm(own if ours is None else own - ours)
        if not gap <= _GRADIENT_TOLERANCE * _norm(own) + 1e-5 * whole:
            return f"the gradient of {name} is not that of its own loss"
    return None


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.double().norm())


@torch.no_grad()
def _does_not_shift(model: PreTrainedModel, batch: dict[str, Tensor], loss: float) -> bool:
    """Whether a loss is the cross-entropy of each position's own label."""
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    unshifted = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    return bool(abs(float(unshifted) - loss) <= _LOSS_TOLERANCE * max(abs(loss), 1.0))


@torch.no_grad()
def future_seen(model: PreTrainedModel, tokens_BT: Tensor) -> str | None:
    """Whether logits depend on tokens that come after them: one forward of rows that differ from some place on."""
    places = (LENGTH // 3, LENGTH // 2, LENGTH - 2)
    rows = torch.stack([tokens_BT[0]] * (1 + len(places)))
    for row, place in enumerate(places, start=1):
        rows[row, place + 1 :] = tokens_BT[1, place + 1 :]
    logits_RTV = _logits(model, input_ids=rows)
    spread = float(logits_RTV.std())
    for row, place in enumerate(places, start=1):
        gap = float((logits_RTV[row, : place + 1] - logits_RTV[0, : place + 1]).abs().max())
        if not gap <= _tolerance(model) * spread:
            return (
                f"its logits depend on tokens that come after them (by {gap / spread:.1g} of their spread), so that it "
                "would see what it has to predict"
            )
    return None


@torch.no_grad()
def packed_leak(model: PreTrainedModel, tokens_BT: Tensor, *, one_row: bool) -> str | None:
    """Whether packed examples see each other: the second of two is compared beside two firsts, and alone.

    Args:
        model: The small model.
        tokens_BT: (2, T) tokens.
        one_row: All packed rows are laid end to end, as FlashAttention needs it.
    """
    first, other = tokens_BT[0, :_FIRST], tokens_BT[1, :_FIRST]
    second = tokens_BT[0, _FIRST:]
    rows = torch.stack([torch.cat([first, second]), torch.cat([other, second])])
    positions_T = torch.cat([torch.arange(_FIRST), torch.arange(LENGTH - _FIRST)]).to(rows.device)
    positions = positions_T.expand_as(rows)
    if one_row:
        rows, positions = rows.reshape(1, -1), positions.reshape(1, -1)
    try:
        logits = _logits(model, input_ids=rows, position_ids=positions)
        alone_TV = _logits(model, input_ids=second[None], position_ids=positions_T[None, _FIRST:])[0]
    except ForwardError as error:
        return f"packing: its forward fails on packed rows: {error}"
    beside_RTV = logits.reshape(_ROWS, LENGTH, -1)[:, _FIRST:]
    spread = float(beside_RTV.std())
    exchanged = float((beside_RTV[0] - beside_RTV[1]).abs().max())
    if not exchanged <= _tolerance(model) * spread:
        return f"packing: examples in one row see each other (by {exchanged / spread:.1g} of the spread of logits)"
    apart = float((beside_RTV[0] - alone_TV).abs().max())
    if not apart <= _tolerance(model) * spread:
        return (
            f"packing: an example in a row with others is not read as it is alone (by {apart / spread:.1g} of the "
            "spread of logits)"
        )
    return None


def _logits(model: PreTrainedModel, **batch: Tensor) -> Tensor:
    """Logits without dropout and without a cache, as training has it.

    Raises:
        ForwardError: The model's own forward fails on it.
    """
    try:
        with seeded(0, batch["input_ids"].device):
            logits: Tensor = model.eval()(**batch, use_cache=False).logits
    except Exception as error:  # as many types as there are architectures
        raise ForwardError(cause(error)) from error
    if not logits.isfinite().all():
        raise ForwardError("its logits are not finite")
    return logits.float()


def _tolerance(model: PreTrainedModel) -> float:
    return _TOLERANCE[model.dtype]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from a seed, and afterwards the states that were there before."""
    python, numpy = random.getstate(), np.random.get_state()
    with same_random_state(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU, too
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
