"""Worked solutions beside the questions of an evaluation: the texts that training reads, and where their answer stands."""

import pytest

from mce_llm.data import DataError, load_examples, write_jsonl
from mce_llm.data.boxed import boxed_answer
from mce_llm.data.final_answers import ANSWER_PLACE, BadReference, final_answer, marked_answer
from mce_llm.data.sources import Request, read_examples
from mce_llm.eval.answers import is_correct
from mce_llm.eval.judging.references import GoldAnswerError, gold_expression, gold_value

TRAINED = {
    "GSM8K": ({"question": "q", "answer": "so 2+3=<<2+3=5>>5\n#### 5"}, "so 2+3=5\n#### 5", "5"),
    "MATH": (
        {"problem": "q", "solution": r"so $\boxed{\frac12}$.", "level": "1"},
        r"so $\boxed{\frac12}$.",
        r"\frac12",
    ),
    "MATH-500": ({"problem": "q", "solution": r"so $\boxed{ 5 }$", "answer": "5"}, r"so $\boxed{ 5 }$", "5"),
    "MetaMathQA": (
        {"query": "q", "response": "#### 4\nThe answer is: 5 "},
        "#### 4\nThe answer is: 5 ",
        "5",
    ),
    "pairs": ({"question": "q", "response": "<<2+3=5>>\n#### 5"}, "<<2+3=5>>\n#### 5", "5"),
    "Alpaca": ({"instruction": "q", "output": "The answer is: 5"}, "The answer is: 5", "5"),
    "no mark": ({"question": "q", "response": "It is five.", "answer": "5"}, "It is five.", None),
}
OTHERS = {
    "a bare answer": ({"Question": "q", "Answer": 51.0}, "51.0", "51.0"),
    "a unit": ({"question": "q", "answer": "9 (apples)"}, "9 (apples)", "9"),
    "a conversation": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so\n#### 5"}]},
        "so\n#### 5",
        "5",
    ),
    "a conversation with the answer beside it": (
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so\n#### 5"}],
            "answer": "5",
        },
        "so\n#### 5",
        "5",
    ),
    "multiple choice": ({"question": "q", "options": ["a)4", "b)5"], "correct": "b"}, "5", "5"),
    "a rationale": (
        {"question": "q", "options": ["a)4", "b)5"], "correct": "b", "solution": "since 2+3, 5"},
        "since 2+3, 5",
        None,
    ),
    "GSM8K with a column of final answers": (
        {"question": "q", "answer": "so <<2+3=5>>5\n#### 5", "final_answer": "5"},
        "so 5\n#### 5",
        "5",
    ),
}


def read(record, folder, **asked):
    path = write_jsonl([record], folder / "data.jsonl")
    examples, _ = read_examples(str(path), Request(evaluation=True, solutions=True, **asked))
    (row,) = examples.to_list()
    return row


@pytest.mark.parametrize("name", TRAINED | OTHERS)
def test_solutions_and_the_place_of_their_answer(name, tmp_path):
    record, solution, answer = (TRAINED | OTHERS)[name]
    row = read(record, tmp_path)
    assert row["problem"] is None
    assert row["solution"] == solution
    start, end = (row[place] for place in ANSWER_PLACE)
    assert (None if start is None else solution[start:end]) == answer


@pytest.mark.parametrize("name", TRAINED)
def test_solutions_are_what_training_reads(name, tmp_path):
    record, solution, _ = TRAINED[name]
    assert load_examples(str(write_jsonl([record], tmp_path / "data.jsonl")))["response"] == [solution]


def test_answers_alone_are_read_as_before(tmp_path):
    path = write_jsonl([TRAINED["GSM8K"][0]], tmp_path / "data.jsonl")
    examples, _ = read_examples(str(path), Request(evaluation=True))
    assert examples.to_list() == [{"question": "q", "answer": "5", "problem": None}]


def test_named_columns(tmp_path):
    record = {"ask": "q", "steps": "so\n#### 5", "value": "6", "response": "no"}
    row = read(record, tmp_path, columns={"question": "ask", "answer": "value", "response": "steps"})
    assert (row["answer"], row["solution"]) == ("6", "so\n#### 5")
    assert row["solution"][row["answer_start"] : row["answer_end"]] == "5"
    with pytest.raises(DataError, match="answer and response say the same"):
        read_examples(
            str(tmp_path / "data.jsonl"),
            Request(evaluation=True, columns={"question": "ask", "answer": "value", "response": "steps"}),
        )


def test_a_record_without_a_solution_says_so(tmp_path):
    rows = [
        {"problem": "q", "solution": r"\boxed{5}", "answer": "5"},
        {"problem": "q", "solution": "", "answer": "5"},
    ]
    path = write_jsonl(rows, tmp_path / "data.jsonl")
    examples, _ = read_examples(str(path), Request(evaluation=True, solutions=True))
    assert examples["problem"] == [None, "there is no reference answer"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n#### 1 \nb\n####\t2", "2"),
        (r"#### 1 and \boxed{2}", "1 and \\boxed{2}"),
        (r"so \boxed{1} or \fbox{ \frac{1}{2} }.", r"1} or \fbox{ \frac{1}{2}"),
        (r"so \boxed{1}, hence \fbox{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed 7", "7"),
        ("The answer is: 3\nThe answer is 4.", "4."),
        ("nothing", None),
    ],
)
def test_marks(text, expected):
    place = marked_answer(text)
    assert (None if place is None else text[place]) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so the roots are $\boxed{1}$ and $\boxed{2}$.", "1, 2"),
        (r"First $\boxed{9}$. Then $x = \boxed{3}$ or $x = \boxed{-2}$", "3, -2"),
        (r"\boxed{3}, \boxed{5}, \boxed{7}", "3, 5, 7"),
        (r"\boxed{5} and \boxed{5}", "5"),
        (r"\boxed{A} \text{ and } \boxed{B}", "A, B"),
        (r"\boxed{9} eggs at $2, so \boxed{18}", "18"),
        (r"It is $\boxed{\frac{1}{2}}$ or $\boxed{0.5}$.", r"\frac{1}{2}"),
        (r"She makes \boxed{1,000}, or \boxed{\$1000.0}.", "1,000"),
        (r"\boxed{\frac{1}{2}} or \boxed{-\frac{1}{2}}", r"\frac{1}{2}, -\frac{1}{2}"),
        (r"\boxed{\frac{1}{0}}, \boxed{2}", r"\frac{1}{0}, 2"),
    ],
)
def test_joined_boxes_are_one_answer(text, answer):
    assert boxed_answer(text)[0] == answer
    assert final_answer(text, "it", worked=True) == answer
    assert is_correct(text, gold_expression(text), style="math")
    assert text[marked_answer(text)].startswith(answer.split(",")[0])


def test_said_first():
    text = "The answer is: 3\n#### 4"
    assert text[marked_answer(text)] == "4"
    assert text[marked_answer(text, said_first=True)] == "3"
    assert final_answer(text, "it", worked=True) == "3"
    with pytest.raises(BadReference, match="marks no final answer"):
        final_answer("It is five.", "it", worked=True)


def test_several_answers_are_no_number():
    for text in (
        r"$\boxed{1}$ and $\boxed{2}$",
        final_answer(r"$\boxed{1}$ and $\boxed{2}$", "it", worked=True),
    ):
        with pytest.raises(GoldAnswerError):
            gold_value(text)
