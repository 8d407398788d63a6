import datasets
import pytest

from mce_llm.data import generate_problems, load_examples, write_jsonl
from mce_llm.data.errors import DataError
from mce_llm.data.files import files_of, is_pattern, looks_local

ROWS = generate_problems(9)


@pytest.fixture
def folder(tmp_path):
    write_jsonl(ROWS[:4], tmp_path / "data" / "part-1.jsonl")
    write_jsonl(ROWS[4:], tmp_path / "data" / "part-2.jsonl")
    return tmp_path / "data"


def questions(source, **options):
    return load_examples(str(source), **options)["question"][:]


def asked(rows):
    return [row["question"] for row in rows]


def test_a_pattern_is_its_files_in_order(folder, monkeypatch):
    assert questions(folder / "part-*.jsonl") == asked(ROWS)
    monkeypatch.chdir(folder)
    assert questions("part-[2].jsonl") == asked(ROWS[4:])
    assert questions("**/*.jsonl") == asked(ROWS)


def test_a_folder_of_files_is_read_like_each_of_them(folder):
    assert questions(folder) == asked(ROWS)
    assert questions(folder, split="train[:3]") == asked(ROWS[:3])


def test_the_splits_of_a_folder_are_in_the_names_of_its_files(tmp_path):
    write_jsonl(ROWS[:6], tmp_path / "train.jsonl")
    write_jsonl(ROWS[6:], tmp_path / "test.jsonl")
    assert questions(tmp_path) == asked(ROWS[:6])
    assert questions(tmp_path, default_split="test") == asked(ROWS[6:])
    assert questions(tmp_path, split="test[1:]+train[:1]") == asked([*ROWS[7:], ROWS[0]])
    with pytest.raises(DataError, match="no split 'dev'; there are train, test"):
        questions(tmp_path, split="dev")


def test_no_file_of_a_folder_is_left_out_without_a_word(folder):
    (folder / "extra.csv").write_text("question,answer\nQ,#### 1\n")
    with pytest.raises(
        DataError, match=r"only those in \.jsonl would be read, and extra\.csv left out; name .*a pattern"
    ):
        questions(folder)


def test_a_broken_record_is_named_with_its_file(folder):
    write_jsonl([{"question": "Q", "answer": ""}], folder / "part-3.jsonl")
    with pytest.raises(DataError, match=r"part-3\.jsonl, line 1: 'answer' is empty"):
        questions(folder / "*.jsonl", seed=1)


def test_a_file_has_the_split_train_and_its_slices(folder):
    path = folder / "part-2.jsonl"
    assert questions(path, split="train[:2]") == asked(ROWS[4:6])
    assert questions(path, split="train[40%:]") == asked(ROWS[6:])
    # What is asked for by nobody is all there is.
    assert questions(path, default_split="test") == asked(ROWS[4:])
    for split in ("test", "test[:50%]", "train+test"):
        with pytest.raises(DataError, match=r"part-2\.jsonl: no split 'test'; there are train"):
            questions(path, split=split)


def test_a_saved_data_set_has_slices_too(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    parts = {"train": datasets.Dataset.from_list(ROWS[:6]), "test": datasets.Dataset.from_list(ROWS[6:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert questions(tmp_path / "one", split="train[5:]") == asked(ROWS[5:])
    assert questions(tmp_path / "two", split="test[:1]+train[:1]") == asked([ROWS[6], ROWS[0]])
    assert questions(tmp_path / "two", default_split="test") == asked(ROWS[6:])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_by_pattern(tmp_path, suffix):
    for number, rows in enumerate((ROWS[:4], ROWS[4:])):
        table = datasets.Dataset.from_list(rows)
        if suffix == "parquet":
            table.to_parquet(tmp_path / f"{number}.parquet")
        else:
            table.save_to_disk(tmp_path / f"saved{number}")
            (tmp_path / f"saved{number}" / "data-00000-of-00001.arrow").rename(tmp_path / f"{number}.arrow")
    assert questions(tmp_path / f"*.{suffix}", split="train[1:]") == asked(ROWS[1:])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nothing-*.jsonl", {}, "no file has a name like that"),
        ("part-1.jsonl", {"revision": "main"}, "a revision ('main') is for data sets of the hub"),
        (
            "part-1.jsonl",
            {"name": "main"},
            "a configuration ('main') is for data sets of the hub and folders",
        ),
        ("*", {}, "cannot read .txt"),
    ],
)
def test_bad_sources(folder, source, options, message):
    (folder / "notes.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        load_examples(str(folder / source), **options)
    assert message in str(caught.value)


def test_what_looks_local():
    assert all(map(looks_local, ("a.jsonl.gz", "a.tsv", "data/*.jsonl", "./x", "~/x", "a/b/c")))
    assert not any(map(looks_local, ("gsm8k", "openai/gsm8k", "org/data.v2")))
    assert is_pattern("a*")


def test_a_file_with_a_sign_of_patterns_in_its_name_is_a_file(tmp_path):
    write_jsonl(ROWS, tmp_path / "a[1].jsonl")
    assert list(files_of(str(tmp_path / "a[1].jsonl"))["train"]) == [tmp_path / "a[1].jsonl"]


def test_a_card_that_says_nothing_of_files_hides_none(folder):
    (folder / "extra.csv").write_text("question,answer\nQ,#### 1\n")
    (folder / "README.md").write_text("# About\n")
    with pytest.raises(DataError, match=r"extra\.csv left out"):
        questions(folder)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: part-*.jsonl\n---\n"
    )
    assert questions(folder) == asked(ROWS)
