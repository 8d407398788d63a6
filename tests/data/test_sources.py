import json
import re

import datasets
import pytest

from mce_llm.data import sources
from mce_llm.data.errors import DataError
from mce_llm.data.records import write_jsonl
from mce_llm.data.sources import load_examples
from mce_llm.data.synthetic import generate_problems

PROBLEMS = generate_problems(20)
CONVERTED = [
    {"question": p["question"], "response": p["answer"], "answer": p["answer"].rsplit(" ", 1)[1]}
    for p in PROBLEMS
]


@pytest.fixture(autouse=True)
def _nobody_asks_whether_the_hub_is_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    """A data set as the hub stores it: one parquet file a split."""
    for split, records in (("train", PROBLEMS), ("test", PROBLEMS[:3])):
        table = datasets.Dataset.from_list(records)
        table.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "hub"


def save_list(path):
    path.write_text(json.dumps(PROBLEMS))


def save_parquet(path):
    datasets.Dataset.from_list(PROBLEMS).to_parquet(path)


def save_csv(path):
    datasets.Dataset.from_list(PROBLEMS).to_csv(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.jsonl", lambda path: write_jsonl(PROBLEMS, path)),
        ("a.json", save_list),
        ("a.parquet", save_parquet),
        ("a.csv", save_csv),
        ("saved", lambda path: datasets.Dataset.from_list(PROBLEMS).save_to_disk(path)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"limit": 4}, {"limit": 4, "seed": 1}, {"seed": 1}])
def test_every_kind_of_source_gives_the_same_examples(tmp_path, name, save, options):
    save(tmp_path / name)
    found = load_examples(str(tmp_path / name), **options)
    assert found.column_names == ["question", "response", "answer"]
    if "seed" not in options:
        assert found.to_list() == CONVERTED[: options.get("limit")]
    else:
        write_jsonl(PROBLEMS, tmp_path / "b.jsonl")
        assert found.to_list() == load_examples(str(tmp_path / "b.jsonl"), **options).to_list()
        assert found.to_list() != CONVERTED[: options.get("limit")]
        by_question = {item["question"]: item for item in CONVERTED}
        assert all(by_question[item["question"]] == item for item in found)


def test_directory_with_data_files(folder):
    assert load_examples(str(folder)).to_list() == CONVERTED
    assert load_examples(str(folder), split="test").to_list() == CONVERTED[:3]
    assert load_examples(str(folder), split="train[:2]").to_list() == CONVERTED[:2]


def test_saved_splits(tmp_path):
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(PROBLEMS)})
    saved.save_to_disk(tmp_path / "saved")
    assert load_examples(str(tmp_path / "saved")).to_list() == CONVERTED
    with pytest.raises(DataError, match=r"no split 'tran' \(did you mean 'train'\?\); there are train"):
        load_examples(str(tmp_path / "saved"), split="tran")


@pytest.mark.parametrize(
    ("source", "options", "asked"),
    [
        ("gsm8k", {}, ("openai/gsm8k", "main")),
        ("gsm8k", {"name": "socratic"}, ("openai/gsm8k", "socratic")),
        ("math", {}, ("DigitalLearningGmbH/MATH-lighteval", "default")),
        ("metamathqa", {}, ("meta-math/MetaMathQA", None)),
        ("someone/problems", {"name": "small"}, ("someone/problems", "small")),
    ],
)
def test_hub_sources(folder, monkeypatch, source, options, asked):
    # The hub's answer is played by the same files in a local folder.
    load_dataset, calls = datasets.load_dataset, []

    def from_folder(hub_id, name=None, *, split, revision):
        calls.append((hub_id, name))
        assert revision is None
        return load_dataset(str(folder), split=split)

    monkeypatch.setattr(sources.datasets, "load_dataset", from_folder)
    assert load_examples(source, split="test", **options).to_list() == CONVERTED[:3]
    assert calls == [asked]


def test_a_local_directory_may_have_the_name_of_a_known_source(folder, monkeypatch):
    folder.rename(folder.parent / "gsm8k")
    monkeypatch.chdir(folder.parent)
    assert load_examples("./gsm8k").to_list() == CONVERTED


def test_values_keep_their_text(tmp_path):
    # A table loader would make timestamps of these.
    write_jsonl([{"question": "When?", "response": "2020-01-01"}], tmp_path / "a.jsonl")
    assert load_examples(str(tmp_path / "a.jsonl"))["response"][:] == ["2020-01-01"]


def test_columns_that_are_not_used_may_hold_anything(tmp_path):
    records = [{"question": "Q", "response": "R", "meta": meta} for meta in (1, "x", {"a": [1, "y"]}, None)]
    write_jsonl(records, tmp_path / "a.jsonl")
    assert len(load_examples(str(tmp_path / "a.jsonl"))) == 4


def test_conversations_from_lines_and_from_parquet(tmp_path):
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}]
    expected = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]}]
    write_jsonl([{"conversations": talk}], tmp_path / "a.jsonl")
    datasets.Dataset.from_list([{"conversations": talk}]).to_parquet(tmp_path / "a.parquet")
    assert load_examples(str(tmp_path / "a.jsonl")).to_list() == expected
    assert load_examples(str(tmp_path / "a.parquet")).to_list() == expected


def test_record_numbers_are_those_of_the_file_even_when_shuffled(tmp_path):
    records = [*PROBLEMS, {"question": "Q", "answer": ""}]
    write_jsonl(records, tmp_path / "a.jsonl")
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"line 21: 'answer' is empty"):
        load_examples(str(tmp_path / "a.jsonl"), seed=3)
    with pytest.raises(DataError, match=r"record 21: 'answer' is empty"):
        load_examples(str(tmp_path / "a.parquet"), seed=3)
    # A record that is not taken is not looked at.
    assert len(load_examples(str(tmp_path / "a.jsonl"), limit=20)) == 20


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("{tmp}/trian.jsonl", {}, "no such file (did you mean 'train.jsonl'?)"),
        ("{tmp}/nowhere/a.jsonl", {}, "the directory {tmp}/nowhere does not exist either"),
        ("{tmp}/notes.txt", {}, "cannot read .txt; use .json, .jsonl, .ndjson, .csv, .tsv, .parquet"),
        ("{tmp}/broken.parquet", {}, "not a readable parquet file"),
        ("{tmp}/empty", {}, "no data set can be loaded from this directory"),
        ("{tmp}/halfsaved", {}, "a saved data set that cannot be loaded"),
        ("{tmp}/none.parquet", {}, "the data set has no record"),
        ("{tmp}/numbers.parquet", {}, "record 1: 'response' is int 5, not a string"),
        ("{tmp}/train.jsonl", {"columns": {"question": "x"}}, "no column 'x'"),
        ("{tmp}/train.jsonl", {"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_bad_sources(tmp_path, source, options, message):
    write_jsonl(PROBLEMS, tmp_path / "train.jsonl")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "empty").mkdir()
    (tmp_path / "halfsaved").mkdir()
    (tmp_path / "halfsaved" / "dataset_info.json").write_text("{}")
    features = datasets.Features({"question": datasets.Value("string"), "response": datasets.Value("string")})
    datasets.Dataset.from_dict({"question": [], "response": []}, features=features).to_parquet(
        tmp_path / "none.parquet"
    )
    datasets.Dataset.from_list([{"question": "Q", "response": 5}]).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match=re.escape(message.replace("{tmp}", str(tmp_path)))):
        load_examples(source.replace("{tmp}", str(tmp_path)), **options)


def test_unknown_split_of_a_directory(folder):
    with pytest.raises(DataError, match="no split 'dev'; there are train, test"):
        load_examples(str(folder), split="dev")


@pytest.mark.parametrize("source", ["gsm8k", "someone/problems"])
def test_unreachable_hub_names_the_id_and_a_way_out(monkeypatch, source):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nmore lines")

    monkeypatch.setattr(sources.datasets, "load_dataset", unreachable)
    shown = "openai/gsm8k (main)" if source == "gsm8k" else source
    with pytest.raises(DataError, match=re.escape(repr(shown))) as caught:
        load_examples(source)
    assert "ConnectionError: Couldn't reach the hub more lines;" in str(caught.value)
    assert "give the path of a local copy" in str(caught.value)


def test_mistyped_alias(monkeypatch):
    def unknown(*args, **kwargs):
        raise FileNotFoundError("Dataset 'gsm8' doesn't exist on the Hub")

    monkeypatch.setattr(sources.datasets, "load_dataset", unknown)
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        load_examples("gsm8")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Q", "completion": "R", "label": False}, "records have label: false"),
        (
            {"question": "Q", "response": "R", "chosen": "R", "rejected": "S"},
            "no completions; train on the chosen ones",
        ),
    ],
)
def test_records_that_are_not_all_to_be_learnt_are_refused(tmp_path, record, message):
    write_jsonl([record], tmp_path / "a.jsonl")
    datasets.Dataset.from_list([record]).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(DataError, match=message):
            load_examples(str(tmp_path / name))


def test_the_name_of_a_loader_reads_nothing_that_lies_about(tmp_path, monkeypatch):
    write_jsonl(PROBLEMS, tmp_path / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'json' is the name of a loader"):
        load_examples("json")


def test_what_is_ignored_is_known(tmp_path):
    request = sources.Request()
    record = {"question": "Q", "response": "R", "reasoning": "T", "tools": "[]", "train": False, "note": "x"}
    write_jsonl([record], tmp_path / "a.jsonl")
    reading = sources.read_examples(str(tmp_path / "a.jsonl"), request)[1]
    assert reading.ignored == ("reasoning", "train")
    assert reading.unused == ("reasoning", "tools", "train", "note")
    record = {"question": "Q", "response": "R", "passage": "P", "Body": "B", "table": "", "note": "x"}
    write_jsonl([record], tmp_path / "b.jsonl")
    assert sources.read_examples(str(tmp_path / "b.jsonl"), request)[1].ignored == ("passage", "Body")
