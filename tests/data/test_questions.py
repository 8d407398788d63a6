"""Questions with reference answers, in the forms that public data sets have."""

import json
import re
from decimal import Decimal
from fractions import Fraction

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.data import DataError, load_examples, write_jsonl
from mce_llm.data.questions import BadReference, final_answer
from mce_llm.data.requests import Request
from mce_llm.data.sources import read_examples

MATHQA = "a ) 38 , b ) 27.675 , c ) 30"

# Name → a record of that form, its question, its reference.
PUBLIC = {
    "AIME": ({"id": 3, "problem": "p", "answer": "204"}, "p", "204"),
    "AIME with a solution": ({"problem": "p", "solution": "long", "answer": "073", "url": "u"}, "p", "073"),
    "AMC": ({"id": 1, "problem": "p", "answer": 142.0, "url": "u"}, "p", "142.0"),
    "MATH-500": (
        {"problem": "p", "solution": r"so \boxed{5}", "answer": r"\left(3,\frac{\pi}{2}\right)", "level": 2},
        "p",
        r"\left(3,\frac{\pi}{2}\right)",
    ),
    "MATH": ({"problem": "p", "solution": r"\boxed{1}, so \boxed{\frac12}."}, "p", r"\frac12"),
    "OlympiadBench": (
        {"question": "q", "context": None, "solution": ["s", "t"], "final_answer": ["$2$"], "unit": None},
        "q",
        "$2$",
    ),
    "OlympiadBench with a context": (
        {"question": "q", "context": "Let x be 1.", "solution": ["s"], "final_answer": ["2"]},
        "Let x be 1.\nq",
        "2",
    ),
    "SVAMP": (
        {"ID": "c", "Body": "I have 3.", "Question": "How many?", "Equation": "( 3.0 )", "Answer": "3.0"},
        "I have 3. How many?",
        "3.0",
    ),
    "SVAMP joined": (
        {"Body": "I have 3.", "Question": "I have 3. How many?", "Answer": 3},
        "I have 3. How many?",
        "3",
    ),
    "ASDiv": (
        {"body": "I have 7.", "question": "How many?", "solution_type": "Sum", "answer": "9 (red apples)"},
        "I have 7. How many?",
        "9",
    ),
    "MultiArith": ({"question": " q ", "final_ans": "5"}, " q ", "5"),
    "MAWPS": ({"iIndex": 1, "sQuestion": "q", "lEquations": ["X=5"], "lSolutions": [5.0]}, "q", "5.0"),
    "MAWPS with places": (
        {
            "Question": "N_00 cups and N_01 more",
            "Numbers": "8.0 2.5",
            "Equation": "+ N_00 N_01",
            "Answer": 10.5,
        },
        "8 cups and 2.5 more",
        "10.5",
    ),
    "GSM8K": ({"question": "q", "answer": "It <<1+4=5>>is.\n#### 5"}, "q", "5"),
    "GSM-Plus": (
        {"question": "q", "solution": "s", "answer": "5", "seed_question": "o", "seed_answer": "7"},
        "q",
        "5",
    ),
    "GSM-Symbolic": (
        {"id": 1, "question": "q", "answer": "x\n#### 5", "original_answer": "#### 7"},
        "q",
        "5",
    ),
    "MGSM": ({"question": "q", "answer": None, "answer_number": 11, "equation_solution": None}, "q", "11"),
    "MGSM's examples": (
        {"question": "q", "answer": "Step-by-Step Answer: The answer is 12.", "answer_number": 11},
        "q",
        "11",
    ),
    "MetaMathQA": (
        {"query": "q", "original_question": "o", "response": "x\n#### 5\nThe answer is: 5", "type": "t"},
        "q",
        "5",
    ),
    "MathQA": ({"Problem": "p", "Rationale": "r", "options": MATHQA, "correct": "b"}, "p", "27.675"),
    "AQuA-RAT": (
        {"question": "q", "options": ["A)21", "B)21.5"], "rationale": "r", "correct": "B"},
        "q",
        "21.5",
    ),
    "columns of a spreadsheet": ({"Question": "q", "Final Answer": "5", "No.": 1}, "q", "5"),
    "BIG-bench": ({"input": "q", "target": "5"}, "q", "5"),
    "Alpaca": ({"instruction": "q", "input": "2+3", "output": "The answer is: 5"}, "q\n2+3", "5"),
    "Dolly": ({"instruction": "q", "context": "2+3", "response": "5"}, "q\n2+3", "5"),
    "a prompt of messages": ({"prompt": [{"role": "user", "content": "q"}], "answer": "5"}, "q", "5"),
    "a conversation": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so\n#### 5"}]},
        "q",
        "5",
    ),
    "XTuner": ({"conversation": [{"system": "", "input": "q", "output": "The answer is: 5"}]}, "q", "5"),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "The answer is: 5"}]},
        "q",
        "5",
    ),
}


def read(records, folder, ending="jsonl", **asked):
    """Read records from a file."""
    path = folder / f"data.{ending}"
    if ending == "jsonl":
        write_jsonl(records, path)
    elif ending == "json":
        path.write_text(json.dumps(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return read_examples(str(path), Request(default_split="test", evaluation=True, **asked))


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", PUBLIC)
def test_public_forms(name, ending, tmp_path):
    record, question, answer = PUBLIC[name]
    examples, _ = read([record], tmp_path, ending)
    assert examples.to_list() == [{"question": question, "answer": answer, "problem": None}]


def test_a_table_saved_to_disk(tmp_path):
    record = {"problem": "p", "answer": 7}
    datasets.Dataset.from_list([record, record]).save_to_disk(str(tmp_path / "saved"))
    examples, reading = read_examples(str(tmp_path / "saved"), Request(evaluation=True))
    assert examples["answer"] == ["7", "7"]
    assert reading.place(1).endswith("saved, record 2")


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_exact(tmp_path_factory, number):
    """A number is what its JSON says; 0.1 is a tenth, and 1e22 has no power of two in it."""
    folder = tmp_path_factory.mktemp("numbers")
    (answer,) = read([{"question": "q", "answer": number}], folder)[0]["answer"]
    assert Fraction(answer) == Fraction(Decimal(json.dumps(number)))
    assert "e" not in answer.lower()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.float32(), 0.1, "0.1"),
        (pa.float64(), 0.1, "0.1"),
        (pa.decimal128(5, 2), Decimal("51.50"), "51.50"),
    ],
)
def test_numbers_of_tables(kind, value, expected, tmp_path):
    pq.write_table(
        pa.table({"question": ["q"], "answer": pa.array([value], kind)}), tmp_path / "data.parquet"
    )
    examples, _ = read_examples(str(tmp_path / "data.parquet"), Request(evaluation=True))
    assert examples["answer"] == [expected]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "there is no reference answer"),
        ("  ", "there is no reference answer"),
        ([], "there is no reference answer"),
        (float("nan"), "there is no reference answer"),
        (float("inf"), "'answer' is inf, which is no number"),
        (True, "'answer' is bool True, neither a text nor a number"),
        ({"value": 5}, "'answer' is dict"),
        (["1", "2"], "'answer' is a list of 2 answers, and one is needed"),
        ([["1"]], "'answer' is a list in a list"),
        ("\ud83d", "half of a surrogate pair"),
        ("first we do this and then we do that, and so on and on until it is done", "marks no final answer"),
    ],
)
def test_references_that_cannot_be_taken(answer, problem, tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"question": "q", "answer": "5"}, {"question": "q", "answer": answer}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, reading = read_examples(str(path), Request(evaluation=True))
    good, bad = examples.to_list()
    assert (good["answer"], good["problem"]) == ("5", None)
    assert bad["answer"] is None
    assert problem in bad["problem"]
    assert reading.place(1) == f"{path}, line 2"


def test_marks():
    assert final_answer("#### 1\nno, \n#### 2", "x") == "2"
    assert final_answer(r"\boxed{3}. The answer is: 4", "x") == "3"
    assert final_answer(r"\boxed{3}. The answer is: 4", "x", worked=True) == "4"
    assert final_answer(r"\boxed{3}. The answer is: 4", "x", worked=True, said_first=False) == "3"
    assert final_answer(r"\text{even}", "x") == r"\text{even}"
    assert final_answer("$1,234.50", "x", worked=True) == "$1,234.50"
    assert final_answer("2 (x)", "x") == "2 (x)"  # a product
    for text in ("Paris", "x+1", "so it is 5"):
        with pytest.raises(BadReference, match="x is a text that marks no final answer"):
            final_answer(text, "x", worked=True)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"question": "prompt_text", "answer": "zz"}, ("p", "5")),
        ({"question": "prompt_text", "response": "worked"}, ("p", "6")),
        ({"prompt": "prompt_text", "completion": "worked"}, ("p", "6")),
        ({"question": "prompt_text", "answer": "worked", "context": "zz"}, ("5\np", "6")),
        ({"question": "prompt_text", "answer": "zz", "image": None}, ("p", "5")),
    ],
)
def test_named_columns(columns, expected, tmp_path):
    record = {
        "prompt_text": "p",
        "zz": "5",
        "worked": "x\n#### 6",
        "image": "" if "image" not in columns else "x.png",
    }
    examples, _ = read([record], tmp_path, columns=columns)
    assert (examples[0]["question"], examples[0]["answer"]) == expected


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_columns_inside_others(ending, tmp_path):
    """As sets for reinforcement learning have them."""
    record = {
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"style": "rule", "ground_truth": "5"},
        "extra.info": "6",
    }
    for column, answer in (("reward_model.ground_truth", "5"), ("extra.info", "6")):
        examples, _ = read([record, record], tmp_path, ending, columns={"answer": column})
        assert examples["question"] == ["q", "q"]
        assert examples["answer"] == [answer, answer]
    for missing in ("reward.ground_truth", "reward_model.ground_trut", "prompt.content"):
        with pytest.raises(DataError, match=f"there is no column '{re.escape(missing)}'"):
            read([record], tmp_path, ending, columns={"answer": missing})


@pytest.mark.parametrize(
    ("record", "columns", "message"),
    [
        (
            {"prompt_text": "p", "zz": 5},
            None,
            "known to hold a question or a reference answer(?s:.*)'prompt_text', 'zz'",
        ),
        ({"question": "p", "zz": 5}, None, "known to hold a reference answer.*--columns '{question: NAME"),
        ({"question": None, "answer": 5}, None, "known to hold a question, or it is empty"),
        (
            {"question": "q", "zz": 5},
            {"answer": "z"},
            "there is no column 'z' for the answer \\(did you mean 'zz'",
        ),
        ({"question": "q", "zz": 5}, {"answr": "zz"}, "unknown role 'answr' \\(did you mean 'answer'\\?\\)"),
        ({"question": "q", "zz": 5}, {"answer": 3}, "the answer must be the name of a column, got 3"),
        ({"question": "q", "a": 5}, {"answer": "a", "response": "a"}, "answer and response say the same"),
        ({"question": "q", "answer": 5, "images": ["x"]}, None, "come with 'images', which no prompt shows"),
        (
            {"question": "q", "answer": 5, "system": "Be brief."},
            None,
            "--system_prompt, or .* '{system: null}'",
        ),
        (
            {"question": "q", "answer": 5, "pre_text": ["x"], "Table": "t", "image": "i"},
            None,
            r"come with 'image', which no prompt shows(?s:.*)come with 'pre_text', 'Table', which is not shown with "
            r"them; .*'{context: pre_text}', or .* '{pre_text: null, Table: null}'",
        ),
        (
            {"question": "q", "answer": 5, "context": "c", "passage": "p"},
            None,
            "come with 'passage', .* in place of 'context' with --columns '{context: passage}'",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}], "answer": 5, "context": "c"},
            None,
            "come with 'context', .*'{context: context}'",
        ),
        ({"question": 3, "answer": 5}, None, "line 1: 'question' is int 3, not a string"),
        (
            {"Question": "N_02 cups", "Numbers": "1 2", "Answer": 5},
            None,
            "a place for number 02, and there are 2",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]},
            None,
            "roles \\(system, user, assistant\\) is not one question .* with --system_prompt",
        ),
        (
            {"prompt": [{"role": r, "content": "x"} for r in ("system", "user")], "answer": "3"},
            None,
            "roles \\(system, user\\) is not one question .* with --system_prompt",
        ),
        (
            {"conversation": [{"system": "In French.", "input": "q", "output": "#### 5"}]},
            None,
            "roles \\(system, user, assistant\\) is not one question .* with --system_prompt",
        ),
        (
            {"conversation": [{"input": "q", "output": "#### 5"}] * 2},
            None,
            "roles \\(user, assistant, user, assistant\\) is not one question",
        ),
    ],
)
def test_what_is_refused(record, columns, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read([record], tmp_path, columns=columns)


@pytest.mark.parametrize("name", ["table", "premise", "story", "paragraph", "pre_text", "post_text"])
def test_texts_beside_a_question_are_shown_or_left_out(name, tmp_path):
    record = {"question": "q", name: "t", "answer": 5, "id": 1}
    with pytest.raises(DataError, match=f"come with '{name}', which is not shown"):
        read([record], tmp_path)
    for columns, question, unused in (
        ({"context": name}, "t\nq", ("id",)),
        ({name: None}, "q", (name, "id")),
    ):
        examples, reading = read([record], tmp_path, columns=columns)
        assert (examples["question"], reading.unused) == ([question], unused)
    assert read([{**record, name: None}], tmp_path)[0]["question"] == ["q"]


def test_the_context_of_a_conversation_and_the_role_that_is_given_to_another(tmp_path):
    turns = [{"role": "user", "content": "q"}]
    record = {"prompt": turns, "answer": 5, "context": "c", "passage": "p"}
    examples, reading = read([record], tmp_path, columns={"context": "passage"})
    assert (examples["question"], reading.unused) == (["p\nq"], ("context",))
    assert read([record], tmp_path, columns={"passage": None})[0]["question"] == ["c\nq"]
    messages = {"messages": turns, "answer": 5, "context": "c"}
    assert read([messages], tmp_path, columns={"context": "context"})[0]["question"] == ["c\nq"]
    assert read([messages], tmp_path, columns={"context": None})[0]["question"] == ["q"]
    body = {"Body": "b", "Question": "q", "Answer": 5}
    assert read([body], tmp_path)[0]["question"] == ["b q"]
    assert read([body], tmp_path, columns={"context": None})[0]["question"] == ["q"]


def test_a_column_of_which_a_part_is_used_plays_a_part(tmp_path):
    record = {"question": "q", "reward": {"truth": "5"}, "id": 1}
    assert read([record], tmp_path, columns={"answer": "reward.truth"})[1].unused == ("id",)


def test_training_still_needs_a_response(tmp_path):
    path = write_jsonl([{"question": "q", "answer": "5"}], tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="no known format"):
        load_examples(str(path))
