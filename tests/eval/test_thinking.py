"""Evaluations of models that think first: blocks that the prompt opens, tags that are special tokens, tags of one's own."""

import copy
import json

import pytest
from transformers import AddedToken

from mce_llm.eval.engines.decoding import Decoding, Ends, Generation
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
from mce_llm.eval.tasks import GSM8K

TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:<think>\n{% endif %}"
ROW = {"question": "q", "answer": "18"}


@pytest.fixture
def thinker(tokenizer):
    """A tokenizer whose template opens a block, and with tags that are special tokens."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE
    changed.add_tokens(
        [AddedToken(text, special=True) for text in ("[THINK]", "[/THINK]", "[[T]]", "[[/T]]")]
    )
    return changed


@pytest.mark.parametrize(
    ("text", "opened", "found_by", "correct"),
    [
        ("20 or so", "<think>", "thinking", False),
        ("20</think>The answer is 18.", "<think>", "answer_is", True),
        ("#### 20</think>18", "<think>", "last_number", True),
        ("The answer is 18.", "", "answer_is", True),
    ],
)
def test_a_response_is_kept_with_the_tag_that_the_prompt_ended_with(text, opened, found_by, correct):
    item = GSM8K.judge(ROW, Generation(0, 0, text, 9, "eos"), opened=opened)
    assert (item["response"], item["found_by"], item["correct"]) == (opened + text, found_by, correct)


def test_an_evaluation_of_a_model_whose_prompt_opens_a_block(tmp_path, llama, thinker, questions):
    config = Gsm8kConfig(
        model="random",
        output=str(tmp_path / "out"),
        data=str(questions),
        prompt="chat",
        max_new_tokens=5,
        limit=4,
    )
    model = copy.deepcopy(llama)
    model.resize_token_embeddings(len(thinker))
    summary = evaluate_gsm8k(config, model, thinker)
    assert summary.found_by == {"thinking": 4}
    assert (summary.still_thinking, summary.correct) == (4, 0)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert all(item["response"].startswith("<think>") and item["predicted"] is None for item in items)


def test_special_tokens_around_thoughts_stay_in_the_text(thinker):
    ends = Ends(thinker, [0], Decoding())
    ids = thinker.encode("[THINK]20[/THINK] The answer is 18[[T]]", add_special_tokens=False)
    assert ends.decode(ids).replace(" ", "") == "[THINK]20[/THINK]Theansweris18"
    assert "[THINK]" not in thinker.decode(ids, skip_special_tokens=True)


def test_tags_of_one_s_own(tmp_path, llama, thinker, questions):
    def config(tags, name="out"):
        return Gsm8kConfig(
            model="random", output=str(tmp_path / name), data=str(questions), prompt="plain", max_new_tokens=2, limit=2,
            thinking_tags=tags,
        )  # fmt: skip

    assert config("ponder, [[A]] [[/A]]").thinking == ("ponder", "[[A]] [[/A]]")
    assert "thinking_tags" not in config(None).recorded()
    with pytest.raises(EvaluationError, match="thinking_tags: a thinking tag is a name"):
        config("<ponder>")
    model = copy.deepcopy(llama)
    model.resize_token_embeddings(len(thinker))
    with pytest.raises(EvaluationError, match=r"\[\[T\]\], \[\[/T\]\] are special tokens"):
        evaluate_gsm8k(config("[[T]] [[/T]]"), model, thinker)
    evaluate_gsm8k(config("ponder"), model, thinker)
    with pytest.raises(EvaluationError, match="thinking_tags"):
        evaluate_gsm8k(config("mull"), model, thinker)
    item = GSM8K.judge(ROW, Generation(0, 0, "<mull>20</mull> 18", 9, "eos"), thinking_tags=("mull",))
    assert item["correct"]
