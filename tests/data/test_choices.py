"""The options of multiple choice, in the forms that public data have them."""

import pytest

from mce_llm.data.choices import chosen_option

MATHQA = "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these"


@pytest.mark.parametrize(
    ("options", "choice", "text"),
    [
        (MATHQA, "b", "27.675"),
        (MATHQA, "E", "none of these"),
        ("['a ) 38', 'b ) 7 and 2']", "a", "38"),
        (["A)21", "B)21.5", "C)22"], "B", "21.5"),
        (["A. 21", "B. 21.5"], "(a)", "21"),
        (["21", "A. 5"], "B", "A. 5"),  # a label that is not its own belongs to the text
        ([3, 4.5], "B", "4.5"),
        (["x", "y"], 1, "y"),
        (["x", "y"], "y", None),
        (["x", "y"], 2, None),
        (["x", "y"], True, None),
        (["1", "2"], 2, None),
        (["1", "x"], 0, "1"),
        ({"A": "21", "B": None, "C": "5"}, "c", "5"),
        ({"label": ["A", "B"], "text": ["21", "5"]}, "B", "5"),
        (None, "A", None),
        (["21"], None, None),
    ],
)
def test_the_text_of_the_right_option(options, choice, text):
    assert chosen_option(options, choice) == text


def test_a_place_that_may_be_a_text_is_refused():
    with pytest.raises(ValueError, match="the answer 1 is the place of one option and the text of another"):
        chosen_option(["1", "2"], 1)
