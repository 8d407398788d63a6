import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.vision.probing.accuracy import accuracy_report, rank_of_label, sentence


@given(
    scores=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_rank_is_the_place_after_a_stable_sort(scores, seed):
    table = torch.tensor(scores, dtype=torch.float32)
    labels = torch.randint(4, (len(scores),), generator=torch.Generator().manual_seed(seed))
    wanted = [
        sorted(range(4), key=lambda c, row=row: (-row[c], c)).index(label)
        for row, label in zip(scores, labels.tolist(), strict=True)
    ]
    assert rank_of_label(table, labels).tolist() == wanted
    assert torch.equal(rank_of_label(table, labels) == 0, table.argmax(dim=1) == labels)


def test_report_counts():
    classes = list("abcdefg")
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    ranks = torch.tensor([0, 4, 0, 5, -1, 0, 1])
    report = accuracy_report(ranks, labels, classes)
    assert report["top1"] == pytest.approx(3 / 7)
    assert report["top5"] == pytest.approx(5 / 7)
    assert report["images"] == 7
    assert report["per_class"] == {
        "a": {"top1": 0.5, "images": 2},
        "b": {"top1": 1.0, "images": 1},
        "c": {"top1": pytest.approx(1 / 3), "images": 3},
        "d": {"top1": 0.0, "images": 1},
    }
    # Wilson's interval by its formula.
    n, p, z = 7, 3 / 7, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert report["top1_interval"] == pytest.approx([middle - half, middle + half])
    assert sentence(report).startswith("top-1 42.86% (95 %: ")
    assert sentence(report).endswith(", top-5 71.43% on 7 images")


def test_five_classes_have_no_top5():
    report = accuracy_report(torch.zeros(3), torch.tensor([0, 1, 4]), list("abcde"))
    assert "top5" not in report
    assert "top-5" not in sentence(report)
    assert report["top1_interval"][1] == 1.0
