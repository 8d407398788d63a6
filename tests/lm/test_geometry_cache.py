"""A geometry is read once while the weights stand still, and anew after every change that can be seen."""

import gc
import weakref

import pytest
import torch

from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.geometry_cache import GeometryCache

CONFIG = MatrixLossConfig()


@pytest.fixture
def reads(monkeypatch):
    """How often a table was read."""
    own, seen = TokenGeometry.from_table.__func__, []

    def from_table(cls, *args):
        seen.append(args[1])
        return own(cls, *args)

    monkeypatch.setattr(TokenGeometry, "from_table", classmethod(from_table))
    return seen


@pytest.fixture
def cache():
    """One whose weights are said to stand still."""
    found = GeometryCache()
    with found.steady():
        yield found


@pytest.fixture
def table():
    return torch.nn.Parameter(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)))


def test_reads_once_and_gives_the_table_of_the_call(table, cache, reads):
    first = cache.geometry(table, CONFIG, None)
    again = cache.geometry(table, CONFIG, None)
    assert len(reads) == 1
    assert again.table_VD.data_ptr() == table.data_ptr()
    for name in ("mean_D", "scale_V", "squared_length_V"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    cache.clear()
    cache.geometry(table, CONFIG, None)
    assert len(reads) == 2


@pytest.mark.parametrize(
    "change", ["in place", "optimizer", "elsewhere", "dtype", "mask", "mask in place", "inference"]
)
def test_a_change_is_seen(change, table, cache, reads):
    mask = torch.ones(30, dtype=torch.bool)
    cache.geometry(table, CONFIG, mask)
    if change == "in place":
        with torch.no_grad():
            table[3] += 1
    elif change == "optimizer":
        table.grad = torch.ones_like(table)
        torch.optim.AdamW([table], lr=0.1).step()
    elif change == "elsewhere":
        table = table.detach().clone()
    elif change == "dtype":
        table = table.detach().double()
    elif change == "mask in place":
        mask[4] = False
    elif change == "mask":
        mask = mask.clone()
        mask[4] = False
    else:
        with torch.inference_mode():
            table = table.detach() * 1
    found = cache.geometry(table, CONFIG, mask)
    assert len(reads) == 2
    fresh = TokenGeometry.from_table(table, CONFIG, mask)
    assert torch.equal(found.scale_V, fresh.scale_V)


def test_a_table_in_the_memory_of_another_is_read(cache):
    """Weights that are made for each call, as a parametrization does, come to lie where those of the last call were."""
    for seed in range(5):
        table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(seed))
        found = cache.geometry(table, CONFIG, None)
        assert torch.equal(found.mean_D, TokenGeometry.from_table(table, CONFIG).mean_D)
        del table, found


def test_another_view_of_the_same_memory_is_read(cache):
    table = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    for view in (table, table.T):
        found = cache.geometry(view, CONFIG, None)
        assert torch.equal(found.scale_V, TokenGeometry.from_table(view, CONFIG).scale_V)


def test_settings_have_geometries_of_their_own(table, cache, reads):
    for config in (CONFIG, MatrixLossConfig(center=False), MatrixLossConfig(weight=3.0, order=4), CONFIG):
        found = cache.geometry(table, config, None)
        assert bool(found.mean_D.any()) is config.center
    assert len(reads) == 2


def test_holds_no_table(table, cache):
    """A table that an engine has gathered must be freed after the call."""
    gathered = table.detach().clone()
    storage = weakref.ref(gathered.untyped_storage())
    cache.geometry(gathered, CONFIG, None)
    del gathered
    gc.collect()
    assert storage() is None


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MatrixLossConfig(kind="marginal"),
        MatrixLossConfig(kind="expected"),
        MatrixLossConfig(loss="emo"),
    ],
)
def test_the_loss_is_the_same_over_micro_batches(config, table, cache, reads):
    generator = torch.Generator().manual_seed(1)
    hidden, labels = torch.randn(2, 9, 6, generator=generator), torch.randint(30, (2, 9), generator=generator)
    for batch in range(2):
        plain = linear_matrix_cross_entropy(hidden[batch], table, labels[batch], config)
        count = len(reads)
        kept = linear_matrix_cross_entropy(hidden[batch], table, labels[batch], config, geometries=cache)
        assert torch.equal(plain.loss, kept.loss)
        assert len(reads) - count == (1 if batch == 0 else 0)


def test_what_is_measured_later_reads_the_weights_of_then(table, cache):
    """The value is asked for after the step; a remembered geometry would be that of before."""
    generator = torch.Generator().manual_seed(1)
    hidden, labels = torch.randn(9, 6, generator=generator), torch.randint(30, (9,), generator=generator)
    config = MatrixLossConfig(weight=0.0)
    output = linear_matrix_cross_entropy(hidden, table, labels, config, geometries=cache)
    table.data.mul_(torch.linspace(1, 2, 30).unsqueeze(-1))
    now = linear_matrix_cross_entropy(hidden, table, labels, config)
    assert output.matrix_cross_entropy == now.matrix_cross_entropy


def test_nothing_is_remembered_outside_of_steady_blocks(table, reads):
    """Where an engine may write to the weights unseen."""
    cache = GeometryCache()
    for _ in range(2):
        cache.geometry(table, CONFIG, None)
    assert len(reads) == 2
    with cache.steady():
        for _ in range(2):
            cache.geometry(table, CONFIG, None)
    with cache.steady():
        cache.geometry(table, CONFIG, None)
    assert len(reads) == 3
    for _ in range(2):
        with cache.steady(fresh=True):
            cache.geometry(table, CONFIG, None)
    with cache.steady():
        cache.geometry(table, CONFIG, None)
    assert len(reads) == 6
