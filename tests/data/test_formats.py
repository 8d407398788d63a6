import json
import re

import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.formats import check_records, detect_format, keys_of


def convert(records, **options):
    records = records if isinstance(records, list) else [records]
    layout = detect_format("data", list(records[0]), records, **options)
    placed = [(f"record {n}", record) for n, record in enumerate(records, start=1)]
    converted = list(check_records("data", placed, layout))
    features = layout.features(set().union(*map(keys_of, converted)))
    assert all(set(item) == set(features) for item in converted)
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
    assert convert({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}]}) == (
        expected
    )
    # As a table gives it: every key in every message.
    both = [{"role": None, "content": None, "from": "human", "value": "Q"}]
    both += [{"role": None, "content": None, "from": "gpt", "value": "R"}]
    assert convert({"conversations": both}) == expected
    # A field that is not known here may be known to the chat template.
    more = convert({"messages": [m | {"extra": 1} for m in expected["messages"]]})
    assert [json.loads(message["fields"]) for message in more["messages"]] == [{"extra": 1}] * 2


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
        (
            [GOOD | {"answer": [5]}],
            {"columns": {"question": "question", "response": "response", "answer": "answer"}},
            "record 1: 'answer' is list [5], not a string",
        ),
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
        ({"problem": "", "solution": r"\boxed{1}"}, {}, "record 1: 'problem' is empty"),
        (GOOD, {"format": "math"}, "needs the question in the column 'problem', and the columns are"),
        ({"messages": "hello"}, {}, "record 1: 'messages' is 'hello', not a list of messages"),
        ({"messages": []}, {}, "not a list of messages"),
        ({"messages": ["hi"]}, {}, "message 1 is 'hi', not an object with role and content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, {}, "message 1: the role is 'robot'; known are"),
        ({"messages": [{"role": "assistant", "content": ""}]}, {}, "message 1: 'content' is empty"),
        ({"messages": [{"role": "assistant"}]}, {}, "message 1: 'content' is missing"),
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


ALPACA = {"instruction": "Add them.", "input": "2, 3", "output": "5"}


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        (ALPACA, {}, ("Add them.\n2, 3", "5")),
        (ALPACA | {"input": ""}, {}, ("Add them.", "5")),
        (ALPACA | {"input": None}, {}, ("Add them.", "5")),
        (ALPACA, {"columns": {"question": "instruction", "response": "output"}}, ("Add them.\n2, 3", "5")),
        (
            ALPACA,
            {"columns": {"question": "instruction", "response": "output", "input": None}},
            ("Add them.", "5"),
        ),
        (ALPACA | {"system": "", "history": []}, {}, ("Add them.\n2, 3", "5")),
        ({"instruction": "Q", "context": "C", "response": "R", "category": "qa"}, {}, ("Q\nC", "R")),
        ({"prompt": "Q", "completion": "R"}, {}, ("Q", "R")),
        ({"prompt": "Q", "response": "R"}, {}, ("Q", "R")),
        ({"a": "Q", "b": "R"}, {"columns": {"prompt": "a", "completion": "b"}}, ("Q", "R")),
        (
            {"q": "Q", "more": "C", "r": "R"},
            {"columns": {"question": "q", "input": "more", "response": "r"}},
            ("Q\nC", "R"),
        ),
    ],
)
def test_pairs_of_other_tools(record, options, expected):
    assert convert(record, **options) == dict(zip(("question", "response"), expected, strict=True))


def test_a_system_prompt_or_a_history_makes_a_conversation_of_a_pair():
    record = ALPACA | {"system": "Be brief.", "history": [["1+1?", "2"]]}
    said = [
        ("system", "Be brief."),
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "Add them.\n2, 3"),
        ("assistant", "5"),
    ]
    assert convert(record) == {"messages": [{"role": role, "content": content} for role, content in said]}
    # One record of many suffices.
    first = convert([ALPACA | {"system": None, "history": None}, record])
    assert first["messages"][0] == {"role": "user", "content": "Add them.\n2, 3"}
    assert set(convert(record, columns={"system": None, "history": None}, format="alpaca")) == {
        "question",
        "response",
    }
    prompt = {"prompt": "Q", "completion": "R", "system": "Be brief."}
    assert [message["role"] for message in convert(prompt)["messages"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [(42, "42"), (0.5, "0.5"), (None, None), ("", None), ("18", "18"), ([1], None), (True, None)],
)
def test_an_answer_that_training_does_not_need_refuses_nothing(answer, text):
    assert convert(GOOD | {"answer": answer}) == GOOD | {"answer": text}


@pytest.mark.parametrize("value", ["Q\ud83d", "\udc00"])
@pytest.mark.parametrize("column", ["question", "response"])
def test_half_a_surrogate_pair_is_refused_and_named(column, value):
    with pytest.raises(DataError, match=rf"record 1: '{column}' holds half of a surrogate pair"):
        convert(GOOD | {column: value})


def test_a_history_that_is_none():
    with pytest.raises(
        DataError, match=r"turn 1 of the history is \['1\+1\?'\], not a question and an answer"
    ):
        convert(ALPACA | {"history": [["1+1?"]]})


def test_a_system_prompt_beside_a_query_makes_a_conversation():
    found = convert({"query": "Q", "response": "R", "system": "S", "history": []})
    assert [message["role"] for message in found["messages"]] == ["system", "user", "assistant"]
    assert set(convert({"query": "Q", "response": "R", "system": ""})) == {"question", "response", "answer"}


def test_an_instruction_that_is_in_the_input():
    assert convert({"instruction": "", "input": "Q?", "output": "A"}) == {"question": "Q?", "response": "A"}
