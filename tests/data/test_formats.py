import re

import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.formats import check_records, detect_format


def convert(records, **options):
    records = records if isinstance(records, list) else [records]
    layout = detect_format("data", list(records[0]), records, **options)
    placed = [(f"record {n}", record) for n, record in enumerate(records, start=1)]
    converted = list(check_records("data", placed, layout))
    assert all(set(item) == set(layout.features) for item in converted)
    return converted[0]


def test_gsm8k_loses_calculator_notes_and_keeps_the_final_line():
    record = {"question": "Q", "answer": "He has 2*6=$<<2*6=12>>12.\nx << 3 and y >> 2\n#### 1,200 "}
    assert convert(record) == {
        "question": "Q",
        "response": "He has 2*6=$12.\nx << 3 and y >> 2\n#### 1,200 ",
        "answer": "1,200",
    }


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("So 2.\nThe answer is: 2", "2"),
        ("The answer is 1.\nThe answer is: $\\frac{1}{2}$ ", "$\\frac{1}{2}$"),
        ("I do not know.", None),
    ],
)
def test_metamath_answer_is_what_follows_the_last_the_answer_is(response, answer):
    record = {"query": "Q", "response": response, "type": "GSM_Rephrased"}
    assert convert(record) == {"question": "Q", "response": response, "answer": answer}


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $\boxed{\frac{\sqrt{3}}{2}}$.", r"\frac{\sqrt{3}}{2}"),
        (r"First $\boxed{1}$, but then $\boxed{\{2, 3\}}$.", r"\{2, 3\}"),
        (r"It is $\boxed 2$.", "2"),
        (r"It is $\fbox{2}$.", "2"),
        (r"It is $\boxed{x = \boxed{5}}$.", "5"),
    ],
)
def test_math_answer_is_what_the_last_box_holds(solution, answer):
    record = {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": solution}
    assert convert(record) == {"question": "Q", "response": solution, "answer": answer}
    assert convert(record | {"answer": "A", "subject": "Algebra"})["answer"] == "A"
    assert convert(record, format="math")["answer"] == answer


def test_pairs():
    assert convert({"question": "Q", "response": "R"}) == {"question": "Q", "response": "R"}
    assert convert({"question": "Q", "response": "R", "answer": "A"})["answer"] == "A"


def test_conversations_of_both_spellings():
    expected = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]}
    assert convert({"messages": [m | {"extra": 1} for m in expected["messages"]]}) == expected
    assert convert({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}]}) == (
        expected
    )
    # As a table gives it: every key in every message.
    both = [{"role": None, "content": None, "from": "human", "value": "Q"}]
    both += [{"role": None, "content": None, "from": "gpt", "value": "R"}]
    assert convert({"conversations": both}) == expected


def test_columns_by_name():
    record = {"problem": "Q", "solution": "R", "gold": "A", "question": "other"}
    columns = {"question": "problem", "response": "solution"}
    assert convert(record, columns=columns) == {"question": "Q", "response": "R"}
    assert convert(record, columns=columns | {"answer": "gold"})["answer"] == "A"
    gsm8k = {"q": "Q", "a": "2\n#### 2"}
    assert convert(gsm8k, columns={"question": "q", "answer": "a"})["answer"] == "2"
    assert convert(gsm8k, columns={"question": "q", "answer": "a"}, format="gsm8k")["answer"] == "2"
    assert convert({"talk": [{"role": "assistant", "content": "R"}]}, columns={"messages": "talk"})


GOOD = {"question": "Q", "response": "R"}


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (GOOD, {"format": "gms8k"}, "unknown format 'gms8k' (did you mean 'gsm8k'?)"),
        (GOOD, {"format": "gsm8k"}, "needs the answer in the column 'answer', and the columns are"),
        (
            {"quesion": "Q", "response": "R"},
            {"format": "plain"},
            "'question' (did you mean 'quesion'?)",
        ),
        ({"text": "x"}, {}, "no known format has the columns 'text'; say which holds what"),
        ({"question": "Q", "answer": "5"}, {}, "no known format has the columns 'question', 'answer'"),
        (
            GOOD,
            {"columns": {"question": "qestion", "respnse": "response"}},
            "unknown role 'respnse' (did you mean 'response'?)",
        ),
        (
            GOOD,
            {"columns": {"question": "qestion", "response": "response"}},
            "no column 'qestion' for the question (did you mean 'question'?)",
        ),
        (GOOD, {"columns": {"messages": "question"}, "format": "plain"}, "'plain' has no role messages"),
        (GOOD, {"columns": {"question": "question", "messages": "response"}}, "'chat' has no role question"),
        ([GOOD, GOOD | {"response": None}], {}, "record 2: 'response' is missing"),
        ([GOOD, {"question": "Q"}], {}, "record 2: 'response' is missing"),
        ([GOOD, GOOD | {"response": " \n"}], {}, "record 2: 'response' is empty"),
        ([GOOD, GOOD | {"question": 5}], {}, "record 2: 'question' is int 5, not a string"),
        ([GOOD, GOOD | {"question": ["x"]}], {}, "record 2: 'question' is list ['x'], not a string"),
        ([GOOD | {"answer": 5}], {}, "record 1: 'answer' is int 5, not a string"),
        (
            [{"question": "Q", "answer": "#### 5"}, {"question": "Q", "answer": "It is 5."}],
            {},
            "record 2: 'answer' has no '#### <final answer>' line: 'It is 5.'",
        ),
        (
            [
                {"problem": "Q", "solution": r"\boxed{1}"},
                {"problem": "Q", "solution": r"It is \boxed{\frac12."},
            ],
            {},
            r"record 2: 'solution' has no \boxed{<final answer>}: 'It is \\boxed{\\frac12.'",
        ),
        (
            {"problem": "Q", "solution": r"\boxed{}"},
            {},
            r"record 1: 'solution' has no \boxed{<final answer>}",
        ),
        ({"problem": "Q", "solution": "S", "answer": ""}, {}, "record 1: 'answer' is empty"),
        ({"problem": "", "solution": r"\boxed{1}"}, {}, "record 1: 'problem' is empty"),
        (GOOD, {"format": "math"}, "needs the question in the column 'problem', and the columns are"),
        ({"messages": "hello"}, {}, "record 1: 'messages' is 'hello', not a list of messages"),
        ({"messages": []}, {}, "not a list of messages"),
        ({"messages": ["hi"]}, {}, "message 1 is 'hi', not an object with role and content"),
        ({"messages": [{"role": "bot", "content": "x"}]}, {}, "message 1 has the role 'bot'; known are"),
        ({"messages": [{"role": "assistant", "content": ""}]}, {}, "message 1: 'content' is empty"),
        ({"messages": [{"role": "assistant"}]}, {}, "message 1: 'value' is missing"),
        ({"messages": [{"role": "user", "content": "x"}]}, {}, "no message is from the assistant"),
    ],
)
def test_bad_input(records, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        convert(records, **options)


def test_all_bad_records_are_counted_and_the_first_shown():
    records = [GOOD] * 3 + [GOOD | {"response": ""}] * 9
    with pytest.raises(DataError, match="9 of 12 records cannot be used") as caught:
        convert(records)
    assert "record 4" in str(caught.value)
    assert "record 9" not in str(caught.value)
    assert "and 4 more" in str(caught.value)
