"""Loading what a task asks: references that cannot be judged by, and what a run without them leaves on record."""

import json
from pathlib import Path

import pytest

from mce_llm.data import DataError, write_jsonl
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k, main
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.eval.tasks import GSM8K, MATH

ROWS = [
    {"question": "1 + 1?", "answer": "2"},
    {"question": "When?", "answer": "5:30"},
    {"question": "2 + 2?", "answer": 4},
    {"question": "Why?", "answer": None},
    {"question": "3 + 3?", "answer": "so\n#### 6"},
]


@pytest.fixture
def data(tmp_path):
    return write_jsonl(ROWS, tmp_path / "data.jsonl")


def test_each_is_refused_by_its_line(data):
    with pytest.raises(DataError) as caught:
        GSM8K.load(str(data))
    said = str(caught.value)
    assert "2 of 5 records have no reference answer that GSM8K can judge by" in said
    assert f"{data}, line 2: the reference answer '5:30' is not one number" in said
    assert f"{data}, line 4: there is no reference answer" in said
    assert "leave them out with --unreadable_references skip" in said


def test_a_long_list_is_cut(tmp_path):
    path = write_jsonl([{"question": "q", "answer": "x"}] * 9 + ROWS[:1], tmp_path / "data.jsonl")
    with pytest.raises(DataError, match=r"line 5(?s:.*)… and 4 more"):
        GSM8K.load(str(path))


def test_skipping(data):
    questions = GSM8K.load(str(data), unreadable="skip")
    assert questions.rows["question"] == ["1 + 1?", "2 + 2?", "3 + 3?"]
    assert questions.rows["answer"] == ["2", "4", "6"]
    assert len(questions.skipped) == 2
    assert len(MATH.load(str(data), unreadable="skip").rows) == 4  # 5:30 is an expression
    assert len(GSM8K.load(str(data), limit=2, unreadable="skip").rows) == 1  # the first two, without one


def test_not_all_can_be_skipped(tmp_path):
    path = write_jsonl([{"question": "q", "answer": "x"}], tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="GSM8K needs an answer such as '18'"):
        GSM8K.load(str(path), unreadable="skip")


def test_a_question_that_is_missing_is_never_skipped(tmp_path):
    path = write_jsonl([*ROWS, {"question": None, "answer": "5"}], tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="line 6: 'question' is missing"):
        GSM8K.load(str(path), unreadable="skip")


def test_multiple_choice_is_noted(tmp_path):
    path = write_jsonl(
        [{"Problem": "p", "options": "a ) 38 , b ) 7", "correct": "b"}], tmp_path / "data.jsonl"
    )
    questions = GSM8K.load(str(path))
    assert questions.rows["answer"] == ["7"]
    assert "the options are not shown to the model" in questions.notes[0]


def test_unused_columns_are_said_and_recorded_and_change_nothing(tmp_path, model_directory, capsys):
    row = {"question": "1 + 1?", "answer": "2", "unit": "$", "id": 3}
    data = write_jsonl([row], tmp_path / "data.jsonl")
    words = [f"--model={model_directory}", f"--data={data}", f"--output={tmp_path / 'o'}", "--prompt=plain"]
    words.append("--max_new_tokens=4")
    recorded = tmp_path / "o" / "config.json"
    assert main(words) == 0
    assert f"questions of {data}, without the columns 'unit', 'id'\n" in capsys.readouterr().out
    config = json.loads(recorded.read_text())
    assert config["unused_columns"] == ["unit", "id"]
    # As an earlier version left it, unfinished, and with another column in the data.
    recorded.write_text(json.dumps({key: value for key, value in config.items() if key != "unused_columns"}))
    (tmp_path / "o" / "summary.json").unlink()
    write_jsonl([{**row, "level": 1}], data)
    assert main(words) == 0
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["continued"] == 1
    assert json.loads(recorded.read_text())["unused_columns"] == ["unit", "id", "level"]


def test_what_was_skipped_is_on_record(data, tmp_path, model_directory, capsys):
    given = {"model": model_directory, "data": data, "prompt": "plain", "max_new_tokens": 4}
    words = [f"--{name}={value}" for name, value in given.items()]
    assert main([*words, f"--output={tmp_path / 'a'}"]) == 2
    assert f"{data}, line 2" in capsys.readouterr().err
    for name in ("a", "b"):
        assert main([*words, f"--output={tmp_path / name}", "--unreadable_references", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "warning: left out, for references that cannot be judged by: 2 questions" in printed
    assert "2 questions, for references that cannot be judged by" in printed
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (summary["n"], summary["skipped"]) == (3, 2)
    assert [place.partition(":")[0] for place in config["skipped"]] == [f"{data}, line 2", f"{data}, line 4"]
    one, other = SavedRun.read(tmp_path / "a"), SavedRun.read(tmp_path / "b")
    assert one.identity == other.identity
    assert compare_runs([(one, other)]).pairs[0].difference == 0
    # The same questions without the others, asked outright, are the same; a change of what is skipped is not.
    kept = write_jsonl([ROWS[0], ROWS[2], ROWS[4]], tmp_path / "kept.jsonl")
    evaluate_gsm8k(
        Gsm8kConfig(
            **{key: str(value) for key, value in given.items() if key not in ("data", "max_new_tokens")},
            data=str(kept),
            output=str(tmp_path / "c"),
            max_new_tokens=4,
        )
    )
    assert SavedRun.read(tmp_path / "c").identity == one.identity
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in (*ROWS[:3], *ROWS[4:])))
    assert main([*words, f"--output={tmp_path / 'a'}", "--unreadable_references", "skip"]) == 2
    assert "skipped: [" in capsys.readouterr().err


def test_columns_and_bare_numbers_on_the_command_line(tmp_path, model_directory):
    path = write_jsonl([{"prompt_text": "1 + 1?", "target": 2.0, "id": 7}], tmp_path / "data.jsonl")
    given = {
        "model": model_directory,
        "data": path,
        "prompt": "plain",
        "max_new_tokens": 4,
        "output": tmp_path / "o",
    }
    words = [f"--{name}={value}" for name, value in given.items()]
    assert main([*words, "--columns", "{question: prompt_text, answer: target}"]) == 0
    (item,) = map(json.loads, (tmp_path / "o" / "items.jsonl").read_text().splitlines())
    assert (item["question"], item["gold"]) == ("1 + 1?", "2.0")
    assert main([*words, "--columns", '{"question": "prompt_text", "answer": "id"}']) == 2
    file = tmp_path / "evaluation.yaml"
    file.write_text("columns:\n  question: prompt_text\n  answer: target\n")
    assert main([*words, "--config", str(file), "--overwrite", "true"]) == 0


def test_names_of_columns_that_are_not_there(tmp_path, model_directory, questions, capsys):
    words = [f"--model={model_directory}", f"--data={questions}", f"--output={tmp_path / 'o'}"]
    assert main([*words, "--columns", "{question: quetsion}"]) == 2
    printed = capsys.readouterr().err
    assert "there is no column 'quetsion' for the question (did you mean 'question'?)" in printed
    assert "The columns are 'question', 'answer'" in printed
