"""Runs are paired by what their trainings recorded, or as it is said, and never by the order of a shell in silence."""

import re
from itertools import permutations

import pytest

from helpers.evaluations import write_run
from helpers.trainings import write_training
from mce_llm.eval.comparing.pairing import arrange_groups, arrange_runs
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_runs import SavedRun

METHODS = {"ce": {"matrix_weight": 0}, "mce": {"matrix_weight": 1.0}, "emo": {"matrix_weight": 0.3}}


@pytest.fixture
def trained(tmp_path):
    """An evaluation below the output_dir of a training of that name: `mce-2` is MCE with seed 2."""

    def write(name, **changes):
        method, _, seed = name.partition("-")
        folder = tmp_path / name
        settings = {
            "model_name_or_path": "base",
            "dataset": "metamathqa",
            "seed": int(seed or 42),
            **METHODS[method],
        }
        write_training(folder, recipe={**settings, **changes})
        return SavedRun.read(write_run(folder / "gsm8k", [True, False], model=str(folder)))

    return write


@pytest.fixture
def plain(make):
    """An evaluation of whose training nothing is known."""
    return lambda name: make(name, [True, False])


def names(arm):
    return [run.name for run in arm.runs]


@pytest.mark.parametrize("order", list(permutations(["ce-1", "ce-2", "mce-1", "mce-2"])))
def test_every_order_gives_the_same_pairs(trained, order):
    found = arrange_runs([trained(name) for name in order])
    (arm,) = found.arms
    assert {(a.name.partition("-")[2], b.name.partition("-")[2]) for a, b in found.pairs(arm)} == {
        ("1", "1"),
        ("2", "2"),
    }
    first = order[0].partition("-")[0]
    assert {name.partition("-")[0] for name in names(found.baseline)} == {first}
    assert found.how == "by the methods and seeds that the trainings recorded"


def test_a_shells_order_is_no_pairing(trained):
    found = arrange_runs([trained(name) for name in ("ce-1", "ce-2", "ce-10", "mce-1", "mce-10", "mce-2")])
    assert names(found.baseline) == ["ce-1", "ce-2", "ce-10"]
    assert names(found.arms[0]) == ["mce-1", "mce-2", "mce-10"]


def test_several_methods_are_several_arms(trained):
    found = arrange_runs([trained(name) for name in ("ce-1", "ce-2", "emo-1", "emo-2", "mce-2", "mce-1")])
    assert [names(arm) for arm in (found.baseline, *found.arms)] == [
        ["ce-1", "ce-2"],
        ["emo-1", "emo-2"],
        ["mce-1", "mce-2"],
    ]
    one_seed = arrange_runs(
        [trained("ce-7"), trained("emo-7"), trained("mce-8")]
    )  # one each: seeds need not be alike
    assert [names(arm) for arm in one_seed.arms] == [["emo-7"], ["mce-8"]]


def test_where_the_loss_is_the_same_the_other_settings_are_the_method(trained):
    runs = [trained(f"mce-{s}", learning_rate=rate) for s, rate in ((1, 1e-5), (2, 1e-5), (3, 2e-5))]
    with pytest.raises(EvaluationError, match="not every seed is there in every arm"):
        arrange_runs(runs)


def test_two_runs_are_taken_as_given(plain):
    found = arrange_runs([plain("mce"), plain("ce")])
    assert (names(found.baseline), names(found.arms[0])) == (["mce"], ["ce"])


def test_more_runs_without_records_are_asked_for(plain):
    runs = [plain(name) for name in ("ce1", "ce2", "mce1", "mce2")]
    with pytest.raises(EvaluationError) as caught:
        arrange_runs(runs, "mce-llm report")
    message = str(caught.value)
    assert "not clear which of 4 runs are held against which" in message
    assert "ce1: no recipe.yaml of a training at ce1" in message
    paths = [str(run.path) for run in runs]
    assert f"mce-llm report --baseline {paths[0]} {paths[2]} --arm {paths[1]} {paths[3]}" in message


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["ce-1", "ce-2", "ce-3"], "not every seed"),
        (["ce-1", "ce-2", "mce-1"], "not every seed"),
        (["ce-1", "ce-2", "mce-1", "mce-3"], "not every seed is there in every arm"),
    ],
)
def test_records_that_do_not_fit_are_asked_for(trained, given, why):
    if given == ["ce-1", "ce-2", "ce-3"]:
        why = "trained with the same settings but for the seed"
    with pytest.raises(EvaluationError, match=why) as caught:
        arrange_runs([trained(name) for name in given])
    assert "ce-1: CE, seed 1" in str(caught.value)


def test_a_seed_that_is_there_twice(trained, tmp_path):
    twice = SavedRun.read(write_run(tmp_path / "again" / "gsm8k", [True, True], model=str(tmp_path / "ce-1")))
    with pytest.raises(EvaluationError, match="CE has one seed twice"):
        arrange_runs([trained("ce-1"), twice, trained("mce-1"), trained("mce-2")])


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two(trained, count):
    with pytest.raises(EvaluationError, match=f"got {count} folder"):
        arrange_runs([trained("ce-1")][:count])


def test_groups_are_paired_by_seed_whatever_their_order(trained):
    found = arrange_groups(
        [trained("ce-2"), trained("ce-1")], [("new", [trained("mce-1"), trained("mce-2")])]
    )
    assert names(found.arms[0]) == ["mce-2", "mce-1"]
    assert (found.arms[0].name, found.how) == ("new", "by the seeds that the trainings recorded")


def test_groups_without_records_are_paired_by_position_and_it_is_said(plain, trained):
    found = arrange_groups([plain("x1"), plain("x2")], [(None, [trained("mce-1"), trained("mce-2")])])
    assert found.how.startswith("by position: ")
    assert "no record of the training of x1, x2" in found.how


@pytest.mark.parametrize(
    ("baseline", "arm", "message"),
    [
        (["ce-1", "mce-1"], ["ce-2", "mce-2"], "one arm holds runs of different methods.*ce-1 CE, mce-1 CE"),
        (["ce-1", "ce-2"], ["mce-1", "mce-3"], r"trained with different seeds \(1, 2; 1, 3\)"),
    ],
)
def test_groups_that_the_records_contradict(trained, baseline, arm, message):
    groups = [trained(name) for name in baseline], [(None, [trained(name) for name in arm])]
    with pytest.raises(EvaluationError, match=message):
        arrange_groups(*groups)
    found = arrange_groups(*groups, allow_differences=True)
    assert names(found.arms[0]) == arm
    assert re.search(message, found.doubts[0])


@pytest.mark.parametrize(
    ("baseline", "arms", "message"),
    [
        (["ce-1", "ce-2"], [["mce-1"]], "the baseline has 2 runs and the arms have 1"),
        ([], [["mce-1"]], "--baseline is missing"),
        (["ce-1"], [], "--arm is missing"),
        (["ce-1"], [["ce-1"]], "is given 2 times"),
    ],
)
def test_groups_that_are_none(trained, baseline, arms, message):
    runs = {name: trained(name) for name in {*baseline, *(name for arm in arms for name in arm)}}
    with pytest.raises(EvaluationError, match=message):
        arrange_groups([runs[n] for n in baseline], [(None, [runs[n] for n in arm]) for arm in arms])
