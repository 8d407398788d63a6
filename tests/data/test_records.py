import bz2
import csv
import gzip
import json
import lzma
import re
import stat

import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.records import read_records, write_jsonl


def records_of(path):
    (only,) = read_records(path).values()
    return only


RECORDS = [{"question": "a\u2028b", "answer": "2020-01-01"}, {"question": "é½", "answer": "007"}]


def test_round_trip_keeps_every_character_and_type(tmp_path):
    path = write_jsonl(RECORDS, tmp_path / "new" / "data.jsonl")
    assert records_of(path) == (RECORDS, ["line 1", "line 2"])
    assert path.read_bytes().count(b"\n") == 2


def test_write_is_all_or_nothing(tmp_path):
    path = write_jsonl(RECORDS, tmp_path / "data.jsonl")
    with pytest.raises(TypeError):
        write_jsonl([{"a": "fine"}, {"a": object()}], path)
    assert records_of(path)[0] == RECORDS
    assert [item.name for item in tmp_path.iterdir()] == ["data.jsonl"]


def test_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "other").touch()
    path = write_jsonl(RECORDS, tmp_path / "data.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_list_lines_and_csv_agree(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(RECORDS, indent=1))
    (tmp_path / "lines.json").write_text("\ufeff" + "\n\n".join(json.dumps(record) for record in RECORDS))
    (tmp_path / "table.csv").write_text("question,answer\r\na\u2028b,2020-01-01\r\né½,007\r\n", newline="")
    assert records_of(tmp_path / "list.json") == (RECORDS, ["record 1", "record 2"])
    assert records_of(tmp_path / "lines.json") == (RECORDS, ["line 1", "line 3"])
    assert records_of(tmp_path / "table.csv") == (RECORDS, ["record 1", "record 2"])


def test_csv_keeps_empty_cells_numbers_and_quoted_line_ends(tmp_path):
    (tmp_path / "t.csv").write_text('q,a\n"one, two\nthree",NA\n5,\n')
    assert records_of(tmp_path / "t.csv")[0] == [{"q": "one, two\nthree", "a": "NA"}, {"q": "5", "a": ""}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \n", "the file is empty"),
        ("a.json", b"[]", "an empty list"),
        ("a.csv", b"q,a\n", "a header but no record"),
        ("a.jsonl", b'{"q": 1}\n{"q": \n{"q": 3}\nx', "2 of 4 lines are not valid JSON"),
        ("a.jsonl", b'{"q": 1}\n\n{"q": "a" "b"}', "line 3, column 11: Expecting ',' delimiter"),
        ("a.json", b'[{"q": 1},\n{"q" 2}]', "line 2, column 6: not valid JSON"),
        ("a.json", b"[" * 100_000, "a.json: cannot be read as JSON: RecursionError"),
        (
            "a.json",
            b'[{"q": 1' + b"0" * 5000 + b"}]",
            "a.json: cannot be read as JSON: ValueError: Exceeds the limit",
        ),
        ("a.jsonl", b'{"q": 1' + b"0" * 5000 + b"}", "line 1: ValueError: Exceeds the limit"),
        ("a.jsonl", b'{"q": ' + b"[" * 100_000 + b"}", "line 1: RecursionError"),
        ("a.json", b'{"q": 1,\n "r": 2', "line 1, column 9"),
        ("a.csv", b"q,a,q\n1,2,3\n", "the header has 'q' more than once"),
        ("a.tsv", b"q\ta\n1\t2\t3\n", "quote fields that hold a tab"),
        ("a.jsonl.gz", gzip.compress(b'{"q": 1}', mtime=0)[:-9], "not a whole .gz file"),
        ("a.jsonl.gz", b'{"q": 1}', "not a whole .gz file"),
        ("a.json.bz2", bz2.compress(b'{"q": 1}')[:-3], "not a whole .bz2 file"),
        ("a.csv.xz", lzma.compress(b"q,a\n1,2")[:-3], "not a whole .xz file"),
        ("a.jsonl", b'{"q": 1}\n[1, 2]\n"x"', "2 of 3 records are not objects"),
        ("a.json", b'[{"q": 1}, 5]', "record 2: int 5"),
        ("a.jsonl", b'{"q": "\xff"}', "byte 7 is not UTF-8"),
        ("a.csv", b"q,a\n1,2\n1,2,3\n1\n", "2 of 3 records do not fit the header"),
        ("a.csv", b'q,a\n"1,2\n', "not valid CSV"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_only_the_first_bad_lines_are_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text("x\n" * 50)
    with pytest.raises(DataError, match="50 of 50 lines") as caught:
        read_records(tmp_path / "a.jsonl")
    assert str(caught.value).count("column") == 5
    assert "and 45 more" in str(caught.value)


@pytest.mark.parametrize("compress", [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_compressed_files_are_those_within(tmp_path, compress, name):
    ending, function = compress
    plain = tmp_path / name
    if name.endswith("sv"):
        tab = "\t" if name.endswith("tsv") else ","
        plain.write_text(
            f"question{tab}answer\n" + "".join(f"{r['question']}{tab}{r['answer']}\n" for r in RECORDS)
        )
    else:
        write_jsonl(RECORDS, plain)
    (tmp_path / f"{name}.{ending}").write_bytes(function(plain.read_bytes()))
    assert records_of(tmp_path / f"{name}.{ending}") == records_of(plain)
    assert records_of(plain)[0] == RECORDS


def test_a_csv_with_an_index_without_a_name_and_fields_of_any_length(tmp_path):
    long = "x" * 300_000
    (tmp_path / "a.csv").write_text(f",question,answer\n0,{long},1\n1,b,2\n")
    limit = csv.field_size_limit()
    assert records_of(tmp_path / "a.csv")[0] == [
        {"": "0", "question": long, "answer": "1"},
        {"": "1", "question": "b", "answer": "2"},
    ]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("sign", [";", "\t"])
def test_a_csv_that_is_separated_otherwise(tmp_path, sign):
    (tmp_path / "a.csv").write_text(f"question{sign}answer\none, two{sign}3\n")
    assert records_of(tmp_path / "a.csv")[0] == [{"question": "one, two", "answer": "3"}]


def test_a_list_under_a_name(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "notes": ["x"], "data": RECORDS}))
    assert read_records(path) == {"train": (RECORDS, ["data, record 1", "data, record 2"])}


def test_several_lists_are_splits(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": RECORDS, "test": RECORDS[:1]}))
    found = read_records(path)
    assert {name: len(records) for name, (records, _) in found.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_as_one_whatever_the_file_is_called(tmp_path, indent):
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORDS, indent=indent))
    assert records_of(tmp_path / "a.jsonl") == (RECORDS, ["record 1", "record 2"])


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_is_one_record_even_with_a_list_of_messages(tmp_path, indent):
    record = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}], "id": 1}
    (tmp_path / "a.json").write_text(json.dumps(record, indent=indent))
    assert records_of(tmp_path / "a.json")[0] == [record]


def test_a_record_with_a_list_of_its_own_is_a_record(tmp_path):
    record = {"question": "Q", "response": "R", "steps": [{"question": "1", "response": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert records_of(tmp_path / "a.json")[0] == [record]
