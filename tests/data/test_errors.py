import pickle

from mce_llm.data.errors import DataError, problem_list, shorten


def test_shorten_keeps_short_values_and_cuts_long_ones():
    assert shorten("abc") == "'abc'"
    assert len(shorten("x" * 500)) == 60


def test_problem_list_counts_what_it_leaves_out():
    assert problem_list(["a", "b"], 7).endswith("… and 5 more")
    assert "more" not in problem_list(["a"], 1)


def test_error_survives_pickling():
    # Tokenising in several processes sends it through a pipe.
    assert str(pickle.loads(pickle.dumps(DataError("line 3")))) == "line 3"
