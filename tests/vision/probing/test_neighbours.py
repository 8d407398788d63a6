import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.probing import neighbours
from mce_llm.vision.probing.neighbours import (
    NeighbourError,
    knn_accuracy,
    knn_ranks,
    nearest_neighbours,
    neighbour_votes,
)


def ranks_by_hand(train, train_labels, test, test_labels, k, temperature, classes):
    """Loops over float64 numbers; ties by the order of the bank and of the classes."""

    def cosine(a, b):
        length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0

    ranks = []
    for query, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        cosines = [cosine(query, row) for row in train.tolist()]
        nearest = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]
        votes = [0.0] * classes
        for i in nearest:
            votes[int(train_labels[i])] += math.exp(cosines[i] / temperature)
        order = sorted(range(classes), key=lambda c: (-votes[c], c))
        ranks.append(order.index(label) if votes[label] > 0 else -1)
    return ranks


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    queries=st.integers(1, 12),
    width=st.integers(1, 9),
    classes=st.integers(1, 7),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    share=st.floats(0, 1),
)
def test_against_a_loop(seed, n, queries, width, classes, temperature, share):
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(n, width, generator=generator, dtype=torch.float64)
    test = torch.randn(queries, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    right = torch.randint(classes, (queries,), generator=generator)
    k = 1 + int(share * (n - 1))
    found = knn_ranks(train, labels, test, right, [k], temperature, classes)[k].tolist()
    wanted = ranks_by_hand(train, labels, test, right, k, temperature, classes)
    if width > 1:
        assert found == wanted
    else:  # all cosines are ±1, and which of two sums of equal weights is larger is a matter of rounding
        assert [rank < 0 for rank in found] == [rank < 0 for rank in wanted]


def test_float32_agrees_with_float64():
    torch.manual_seed(0)
    train, test = torch.randn(300, 16), torch.randn(100, 16)
    labels, right = torch.randint(5, (300,)), torch.randint(5, (100,))
    single = knn_ranks(train, labels, test, right, [20], 0.1, 5)[20]
    double = knn_ranks(train.double(), labels, test.double(), right, [20], 0.1, 5)[20]
    assert torch.equal(single, double)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), different=st.integers(1, 4), share=st.floats(0, 1))
def test_equal_cosines_are_taken_in_the_order_of_the_bank(seed, n, different, share):
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(different, (n,), generator=generator)
    bank = torch.eye(different + 1)[kind]  # rows that are equal to the last bit
    k = 1 + int(share * (n - 1))
    query = torch.zeros(1, different + 1)
    query[0, :different] = torch.arange(different, 0, -1.0)
    cosines, places = nearest_neighbours(query, bank, k)
    wanted = sorted(range(n), key=lambda i: (int(kind[i]), i))[:k]
    assert places[0].tolist() == wanted
    assert torch.all(cosines[0, :-1] >= cosines[0, 1:])


def test_equal_votes_go_to_the_first_class():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    query = torch.tensor([[2.0, 0.0]] * 2)
    ranks = knn_ranks(bank, torch.tensor([2, 1]), query, torch.tensor([1, 2]), [2], 0.1, 3)[2]
    assert ranks.tolist() == [0, 1]


def test_a_class_without_neighbours_is_not_among_the_first_five():
    bank, query = torch.eye(4), torch.eye(4)[:1]
    ranks = knn_ranks(bank, torch.tensor([3, 1, 1, 1]), query, torch.tensor([0]), [1], 0.1, 6)[1]
    assert ranks.tolist() == [-1]


def test_votes_have_the_paper_s_weights():
    cosines = torch.tensor([[0.9, 0.5, 0.5]], dtype=torch.float64)
    votes = neighbour_votes(cosines, torch.tensor([[1, 0, 1]]), 0.1, 3)[0]
    raw = [math.exp(5), math.exp(9) + math.exp(5), 0.0]
    assert (votes / votes[1]).tolist() == pytest.approx([raw[0] / raw[1], 1.0, 0.0])


def test_a_tiny_temperature_is_the_nearest_neighbour():
    torch.manual_seed(0)
    train, test = torch.randn(50, 4), torch.randn(20, 4)
    labels, right = torch.randint(3, (50,)), torch.randint(3, (20,))
    one = knn_accuracy(train, labels, test, right, 1, 0.1, 3)
    assert knn_accuracy(train, labels, test, right, 10, 1e-5, 3) == one


def test_neighbours_find_separate_classes_and_chance_where_there_is_nothing():
    torch.manual_seed(0)
    labels, right = torch.arange(200) % 4, torch.arange(400) % 4
    near = torch.eye(4)[labels] + 0.1 * torch.randn(200, 4)
    asked = torch.eye(4)[right] + 0.1 * torch.randn(400, 4)
    assert knn_accuracy(near, labels, asked, right, 20, 0.1, 4) == 1.0
    noise = knn_accuracy(torch.randn(200, 4), labels, torch.randn(400, 4), right, 20, 0.1, 4)
    assert abs(noise - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_blocks_of_several_processes_are_those_of_one(monkeypatch):
    monkeypatch.setattr(neighbours, "QUERY_ROWS", 7)
    torch.manual_seed(0)
    train, test = torch.randn(60, 5), torch.randn(31, 5)
    labels, right = torch.randint(4, (60,)), torch.randint(4, (31,))
    alone = knn_ranks(train, labels, test, right, [1, 9], 0.1, 4)
    parts = [
        knn_ranks(train, labels, test, right, [1, 9], 0.1, 4, rank=rank, world_size=3) for rank in range(3)
    ]
    for k, whole in alone.items():
        mine = torch.stack([part[k] for part in parts])
        assert torch.equal(mine.max(dim=0).values, whole)
        assert torch.all((mine == -2).sum(dim=0) == 2)  # each query was one process's


def test_several_k_at_once_are_each_by_itself():
    torch.manual_seed(0)
    arguments = (torch.randn(50, 4), torch.randint(3, (50,)), torch.randn(20, 4), torch.randint(3, (20,)))
    both = knn_ranks(*arguments, [3, 17], 0.1, 3)
    for k in (3, 17):
        assert torch.equal(both[k], knn_ranks(*arguments, [k], 0.1, 3)[k])


ROWS, LABELS = torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"ks": [2, 6, 0]}, r"k must be in \[1, 5\], as there are 5 training images, got 6, 0; 20 is usual"),
        ({"ks": []}, "no k was given"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0; 0.1"),
        ({"test_features": torch.randn(5, 4)}, r"different widths: \(5, 3\), \(5, 4\)"),
        (
            {"train_labels": LABELS[:4]},
            r"training features must be \(n, d\) with n labels, got \(5, 3\) and \(4,\)",
        ),
        ({"test_labels": LABELS + 2}, r"test labels must be in \[0, 2\), got 2 to 2"),
        ({"train_labels": LABELS - 1}, r"training labels must be in \[0, 2\), got -1 to -1"),
        ({"test_features": ROWS[:0], "test_labels": LABELS[:0]}, "there are no test images"),
        ({"ks": [9], "temperature": -1.0}, "k must .*; the temperature must"),
    ],
)
def test_what_cannot_be_used_is_refused(changed, pattern):
    arguments = {
        "train_features": ROWS,
        "train_labels": LABELS,
        "test_features": ROWS,
        "test_labels": LABELS,
        "ks": [2],
        "temperature": 0.1,
        "num_classes": 2,
    }
    with pytest.raises(NeighbourError, match=pattern):
        knn_ranks(**{**arguments, **changed})


def test_too_many_neighbours_are_refused():
    with pytest.raises(NeighbourError, match=r"\[1, 5\], as there are 5"):
        nearest_neighbours(ROWS, ROWS, 6)
    with pytest.raises(NeighbourError, match="different widths"):
        nearest_neighbours(ROWS[:, :2], ROWS, 1)
