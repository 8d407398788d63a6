"""Looking into the head: what is seen, and that looking changes neither loss nor gradients by one bit."""

import pytest
import torch

from helpers.models import CONFIGS, make_batch, make_model
from helpers.spectra import unmasked
from mce_llm.lm import MatrixLossConfig, patch_model


def step(model, config, observer=None, autocast=False):
    patch = patch_model(model, config)
    patch.observer = observer
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**make_batch()).loss
    loss.backward()
    patch.remove()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_loss_and_gradients_are_the_same_to_the_last_bit(kind, autocast):
    config, seen = MatrixLossConfig(kind=kind, support=8), []

    def look(observation):
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        for _, q in observation.probabilities(torch.arange(len(observation.labels_N)), 5):
            seen.append(q.clone())
        torch.linalg.eigvalsh(observation.geometry().all_rows().T @ observation.geometry().all_rows())

    watched = step(make_model("gemma2-softcap"), config, look, autocast)
    alone = step(make_model("gemma2-softcap"), config, None, autocast)
    assert seen
    assert torch.equal(watched[0], alone[0])
    assert all(torch.equal(a, b) for a, b in zip(watched[1], alone[1], strict=True))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_sees_the_heads_inputs_and_the_models_own_predictions(family):
    model, batch, found = make_model(family).eval(), make_batch(), []
    hidden, logits, labels = unmasked(model, batch)

    def look(observation):
        positions = torch.arange(len(observation.labels_N))
        q = torch.cat([q.clone() for _, q in observation.probabilities(positions, 4)])
        found.append((observation.hidden_ND, observation.labels_N, q))

    patch = patch_model(model, MatrixLossConfig(support=8))
    patch.observer = look
    model(**batch)
    ((seen_hidden, seen_labels, q),) = found
    torch.testing.assert_close(seen_hidden.double(), hidden, rtol=1e-5, atol=1e-6)
    assert torch.equal(seen_labels, labels)
    torch.testing.assert_close(q.double(), torch.softmax(logits, -1), rtol=1e-4, atol=1e-7)


def test_nobody_looks_where_nobody_is_to(monkeypatch):
    monkeypatch.setattr("mce_llm.lm.patch.HeadObservation", None)  # would fail if anything were collected
    step(make_model(), MatrixLossConfig())


def test_no_unmasked_label_is_seen_as_such():
    model, counts, batch = make_model(), [], make_batch()
    patch = patch_model(model, MatrixLossConfig())
    patch.observer = lambda observation: counts.append(tuple(observation.hidden_ND.shape))
    model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert counts == [(0, 16)]


@pytest.mark.parametrize(("mask", "tokens"), [(None, 33), ("padded", 29)])
def test_the_size_of_the_batch_is_noted(mask, tokens):
    model, batch = make_model(), make_batch()
    if mask is None:
        del batch["attention_mask"]
    else:
        batch["attention_mask"][0, 7:] = 0
    patch = patch_model(model, MatrixLossConfig())
    model(**batch)
    assert (patch.last.batch.rows, patch.last.batch.length, int(patch.last.batch.tokens)) == (3, 11, tokens)
