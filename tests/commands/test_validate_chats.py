"""`mce-llm validate` over conversations: what a template leaves out, and examples made of turns."""

from helpers.recipes import save_chat_model
from helpers.validation import texts, validated
from mce_llm.data import write_jsonl


def test_what_a_chat_template_leaves_out_and_what_plays_no_part(command, recipe, place, tmp_path):
    model = save_chat_model(place, tmp_path / "chat")
    turns = [
        {"role": "user", "content": "Q", "time": "noon"},
        {"role": "assistant", "content": "R", "reasoning_content": "Hm."},
    ]
    write_jsonl([{"messages": turns, "id": 1}] * 9, tmp_path / "talks.jsonl")
    found = validated(
        command,
        recipe(model_name_or_path=str(model), dataset=str(tmp_path / "*.jsonl"), prompt="chat"),
        "--max_length",
        "200",
    )
    assert "train data: the chat template leaves out reasoning: 9 in 9 examples" in "\n".join(
        texts(found, "warning")
    )
    in_order = "\n".join(texts(found, "ok"))
    assert "the chat template leaves out field time: 9 in 9 examples" in in_order
    assert "read as chat; columns that play no part: 'id'" in in_order
    data = found["data"]["train"]
    assert (data["format"], data["unused"], data["records"]) == ("chat", ["id"], 9)
    assert {entry["kind"] for entry in data["lost"]} == {"reasoning", "field time"}
    assert [fetch["detail"] for fetch in found["fetches"] if fetch["role"] == "dataset"] == ["1 file"]


def test_each_turn_in_an_example_of_its_own(command, recipe, place, tmp_path):
    model = save_chat_model(place, tmp_path / "chat")
    turns = [
        {"role": role, "content": text}
        for role, text in zip(["user", "assistant"] * 3, "QRSTUV", strict=True)
    ]
    path = write_jsonl([{"messages": turns}] * 5, tmp_path / "talks.jsonl")
    changed = recipe(model_name_or_path=str(model), dataset=str(path), prompt="chat", train_turns="each")
    found = validated(command, changed)["data"]["train"]
    assert (found["records"], found["examples"], found["kept"], found["duplicates"]) == (5, 15, 15, 4)
    shown = command("validate", changed).output
    assert "15, one for each trained turn of 5 records" in shown


def test_the_day_of_a_template_that_writes_the_date(command, recipe, place, tmp_path):
    model = save_chat_model(place, tmp_path / "chat")
    path = model / "chat_template.jinja"
    template = path.read_text(encoding="utf-8")
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]
    data = write_jsonl([{"messages": turns}] * 9, tmp_path / "talks.jsonl")
    changed = recipe(model_name_or_path=str(model), dataset=str(data), prompt="chat")
    assert validated(command, changed, "--max_length", "200")["data"]["train"]["day"] is None
    path.write_text("{{ strftime_now('%d.%m.%Y') }}" + template, encoding="utf-8")
    found = validated(command, changed, "--max_length", "200")
    assert found["data"]["train"]["day"] == "2024-07-26"
    assert "train data: the chat template writes today's date" in "\n".join(texts(found, "ok"))
    given = ("--chat_template_kwargs", "{strftime_now: 2026-12-01}")
    assert validated(command, changed, "--max_length", "200", *given)["data"]["train"]["day"] == "2026-12-01"
