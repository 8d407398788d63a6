"""The list of measures: names, ways that are better, bounds, and names that there are not."""

import pytest

from mce_llm.eval.comparing.measures import ACCURACY, GROUPS, MEASURES, in_order, measure_named
from mce_llm.eval.errors import EvaluationError


def test_every_group_has_its_measures():
    assert measure_named("accuracy") is ACCURACY
    for group in GROUPS:
        for quantity in ("nats", "top1", "entropy"):
            measure = measure_named(f"{group}.{quantity}")
            assert (measure.group, measure.quantity) == (group, quantity)
            assert GROUPS[group] in measure.title
    assert {name for name in MEASURES if "ece" in name} == {
        f"{group}.{kind}" for group in ("all", "numbers") for kind in ("ece", "ece_debiased")
    }
    assert ACCURACY.group is None
    assert len({measure.title for measure in MEASURES.values()}) == len(MEASURES)


def test_ways_and_bounds():
    assert not ACCURACY.lower_is_better
    assert measure_named("all.nats").lower_is_better
    assert measure_named("all.entropy").lower_is_better is None  # neither way is better
    assert measure_named("numbers.ece").lower_is_better
    assert measure_named("answer.nats").reach is None
    assert measure_named("answer.top1").reach == ACCURACY.reach == 1
    assert {measure.unit for measure in MEASURES.values() if measure.reach is None} == {"nats per token"}


def test_the_order_of_tables():
    assert in_order(["words.nats", "accuracy", "all.nats"]) == ["accuracy", "all.nats", "words.nats"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("answer.nat", "did you mean 'answer.nats'"), ("x", "measures are accuracy, all.nats")],
)
def test_names_that_there_are_not(name, message):
    with pytest.raises(EvaluationError, match=message):
        measure_named(name)
