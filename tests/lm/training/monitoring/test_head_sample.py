"""Spectra from a sample of positions against dense float64 matrices."""

import pytest
import torch
from accelerate import Accelerator

from helpers.models import make_batch, make_model
from helpers.spectra import density_matrices, descending, entropy_rank, hidden_eigenvalues, unmasked
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.training.monitoring.head_sample import HeadSample
from mce_llm.lm.training.monitoring.spectrum import rows_spectrum, spread
from mce_llm.matrix import covariance, effective_rank


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def measure(model, config, accelerator, batches, share=512, **settings):
    patch = patch_model(model, config, **settings)
    sample = patch.observer = HeadSample(share)
    for batch in batches:
        model(**batch)
    patch.remove()
    return sample.pooled(accelerator)


CASES = {
    "token": {"kind": "token", "support": 7},
    "token, k > d": {"kind": "token", "support": 40},
    "token, every token": {"kind": "token", "support": None},
    "token, raw rows": {"kind": "token", "support": 7, "center": False, "normalize": False},
    "token, weight 0": {"kind": "token", "support": 7, "weight": 0.0},
    "marginal": {"kind": "marginal"},
    "expected": {"kind": "expected", "shrinkage": 0.2},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("family", ["llama", "gemma2-softcap", "phi-bias", "cohere-scale"])
def test_every_position_in_float64(accelerator, family, settings):
    model, config, batch = (
        make_model(family).double().train(False),
        MatrixLossConfig(**settings),
        make_batch(),
    )
    mask = torch.ones(61, dtype=torch.bool)
    mask[[0, 60]] = False  # two rows that are no tokens: background
    hidden, logits, _ = unmasked(model, batch)
    seen = measure(model, config, accelerator, [batch], token_mask=mask)
    states = hidden_eigenvalues(hidden)
    torch.testing.assert_close(seen.hidden.eigenvalues, states, rtol=1e-9, atol=1e-12)
    assert float(seen.hidden.effective_rank) == pytest.approx(float(entropy_rank(states)), rel=1e-9)

    matrices = density_matrices(logits, model.get_output_embeddings().weight.detach(), config, mask)
    expected = descending(matrices)
    density = seen.density
    leading = density.spectrum.eigenvalues.shape[-1]
    others = density.spectrum.rest.expand(16 - leading)
    found = torch.cat([density.spectrum.eigenvalues, others])
    torch.testing.assert_close(found, expected.mean(dim=0), rtol=1e-9, atol=1e-12)
    assert density.effective_rank == pytest.approx(float(entropy_rank(expected).mean()), rel=1e-9)
    share = (expected[:, 0] / expected.sum(dim=-1)).mean()
    assert density.top_share == pytest.approx(float(share), rel=1e-9)


def test_tail_mass_and_gap_are_those_of_the_loss(accelerator):
    model, config, batch = make_model().double().eval(), MatrixLossConfig(support=7, order=4), make_batch()
    seen = measure(model, config, accelerator, [batch]).density
    patch = patch_model(model, config)
    with torch.no_grad():
        model(**batch)  # evaluation reports both
    assert seen.tail_mass == pytest.approx(float(patch.last.details["tail_mass"]), rel=1e-9)
    assert seen.quadrature_gap == pytest.approx(float(patch.last.details["quadrature_gap"]), rel=1e-6)
    assert seen.support == 7


def test_a_sample_is_spread_over_the_positions_and_over_micro_batches(accelerator):
    model, batches = make_model().eval(), [make_batch(seed=seed) for seed in (1, 2)]
    config = MatrixLossConfig(support=7)
    states = [unmasked(model, batch)[0] for batch in batches]  # 24 positions each
    seen = measure(model, config, accelerator, batches, share=30)
    chosen = torch.cat([states[0], states[1][torch.arange(6) * 24 // 6]])
    torch.testing.assert_close(seen.hidden.eigenvalues, hidden_eigenvalues(chosen), rtol=1e-4, atol=1e-6)
    assert (seen.positions, seen.density.positions) == (30, 30)


def test_a_larger_support_is_measured_at_fewer_positions(accelerator):
    model = make_model(vocab_size=400).eval()
    seen = measure(model, MatrixLossConfig(support=128), accelerator, [make_batch()], share=24)
    assert (seen.density.positions, seen.density.support) == (24 // 8, 128)
    assert seen.positions == 24


def test_bfloat16_under_autocast_is_near(accelerator):
    model, config, batch = make_model().eval(), MatrixLossConfig(support=7), make_batch()
    exact = measure(model, config, accelerator, [batch])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = measure(model, config, accelerator, [batch])
    assert float(rough.hidden.effective_rank) == pytest.approx(float(exact.hidden.effective_rank), rel=2e-2)
    assert rough.density.effective_rank == pytest.approx(exact.density.effective_rank, rel=2e-2)


def test_nothing_to_see(accelerator):
    batch = make_batch()
    masked = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    for kind in ("token", "marginal", "expected"):
        seen = measure(make_model(), MatrixLossConfig(kind=kind), accelerator, [masked])
        assert (seen.positions, seen.hidden, seen.density, seen.problem) == (0, None, None, None)
    assert HeadSample(8).pooled(accelerator) is None  # no forward at all


def test_states_that_are_not_finite_are_named_and_not_decomposed(accelerator):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    seen = measure(model, MatrixLossConfig(weight=0.0), accelerator, [make_batch()])
    assert (seen.hidden, seen.density, seen.problem) == (None, None, "hidden states are not finite")


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_predictions_that_are_not_finite_are_named_too(accelerator, kind):
    model = make_model("phi-bias")
    with torch.no_grad():
        model.lm_head.bias[3] = float("inf")  # softmax subtracts ∞ from ∞; states and table are finite
    seen = measure(model, MatrixLossConfig(kind=kind, weight=0.0), accelerator, [make_batch()])
    assert seen.hidden is not None
    assert (seen.density, seen.problem) == (None, "predicted probabilities are not finite")


def test_a_table_without_geometry_does_not_end_a_run_without_matrix_loss(accelerator):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.ones_like(model.lm_head.weight))
    seen = measure(model, MatrixLossConfig(weight=0.0), accelerator, [make_batch()])
    assert seen.hidden is not None
    assert seen.density is None
    assert "no row" in seen.problem


@pytest.mark.parametrize(("count", "width"), [(5, 9), (9, 5), (1, 4)])
def test_spectrum_of_rows_is_that_of_their_covariance(count, width):
    rows = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = rows_spectrum(rows)
    full = torch.cat([spectrum.eigenvalues, torch.zeros(max(0, width - count), dtype=torch.float64)])
    torch.testing.assert_close(full[:width], descending(covariance(rows)).clamp_min(0), rtol=0, atol=1e-12)
    if count > 1:
        assert float(spectrum.effective_rank) == pytest.approx(float(effective_rank(covariance(rows))))


@pytest.mark.parametrize(("rank", "count"), [(100, 512), (512, 512), (600, 300)])
def test_what_a_sample_does_to_an_effective_rank(rank, count):
    """Page's formula, as documented: r·exp(−r/2n) for r ≤ n, n·exp(−n/2r) beyond; leading order, so 2 %."""
    rows = torch.randn(count, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small, large = sorted((rank, count))
    predicted = small * torch.tensor(-small / (2 * large)).exp()
    assert float(rows_spectrum(rows).effective_rank) == pytest.approx(float(predicted), rel=2e-2)


@pytest.mark.parametrize(
    ("count", "wanted", "expected"), [(10, 4, [0, 2, 5, 7]), (3, 9, [0, 1, 2]), (0, 5, []), (5, 0, [])]
)
def test_positions_are_evenly_spaced(count, wanted, expected):
    assert spread(count, wanted, torch.device("cpu")).tolist() == expected
