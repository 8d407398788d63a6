"""Blocks of reasoning: what stands behind them is judged, whatever stands inside."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.answers import extract_answer, is_correct
from mce_llm.eval.judging.reasoning import (
    ThinkingTagsError,
    is_thinking_tag,
    opens_thought,
    outside_of_thought,
)

BLOCKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<THINK>", "</THINK>"),
    ('<think budget="9">', "</think >"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<scratchpad>", "</scratchpad>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
]
WRONG = [
    "The answer is 20? No, 18.",
    "#### 20",
    "\\boxed{20}",
    "**20**",
    "A: 20",
    "20",
    "<answer>20</answer>",
]
RIGHT = ["She makes **18** dollars.", "\n\n\\boxed{18}", "The answer is 18.", "\n18", "<answer>18</answer>"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0])
@pytest.mark.parametrize("style", [None, "math"])
def test_what_stands_behind_a_block_is_judged(block, style):
    opening, closing = block
    for wrong in WRONG:
        for right in RIGHT:
            for text in (
                f"{opening}{wrong}{closing}{right}",
                f"{wrong}{closing}{right}",
                f"Hm. {opening}\n{wrong}\n{closing}{right}",
            ):
                assert is_correct(extract_answer(text, style), "18", style), text
            unfinished = extract_answer(f"{opening}{wrong}", style)
            assert (unfinished.found_by, unfinished.value, unfinished.is_unfinished) == (
                "thinking",
                None,
                True,
            )
            assert not unfinished.is_missing
            assert not is_correct(unfinished, "20", style)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think> 18.</think>", 18),  # a stray closing tag behind the answer
        ("<think>a<think>b</think>20</think> 18", 18),
        ("<reasoning>a <think>b</think> 20</reasoning> 18", 18),
        ("<think>a</think>The answer is 19.<think>no</think>The answer is 18.", 18),
        ("The answer is 18.\n<think>20</think>", 18),  # nothing behind: what stood before
        ("<think>20</think>18<|im_end|>\n<|im_start|>assistant\n<think>7</think>5", 18),
        ("<think>\n\n</think>\n\n18", 18),
        ("analysisWe try 20.assistantfinalShe makes 18.", 18),  # channels without their special tokens
        ("Analysis: 16 - 3 - 4 = 9, so 18", 18),  # a word, no channel
        ("x < think > 18", 18),
    ],
)
def test_where_blocks_end(text, value):
    assert extract_answer(text).value == value


@pytest.mark.parametrize(
    "text",
    ["<think>20<|im_end|>\n18", "analysisWe try 20.", "<think>a</think><think>20", "20 is it <think>no, 18"],
)
def test_unfinished(text):
    assert extract_answer(text).found_by == "thinking"


def test_a_block_without_an_answer_behind_it():
    assert extract_answer("<think>20</think>").found_by == "none"
    assert extract_answer("20</think>").found_by == "none"


def test_other_tags():
    assert extract_answer("<mull>20</mull>18").value == 18
    assert extract_answer("<mull>#### 20</mull>18").value == 20
    assert extract_answer("<mull>#### 20</mull>18", thinking_tags=["mull"]).value == 18
    assert extract_answer("[[T]]#### 20[[/T]]18", thinking_tags=["[[T]] [[/T]]"]).value == 18
    assert extract_answer("<think>#### 20</think>18", thinking_tags=["mull"]).value == 18
    for tag in ("", "<mull>", "a b c", "x x"):
        with pytest.raises(ThinkingTagsError, match="a thinking tag is a name"):
            extract_answer("18", thinking_tags=[tag])


def test_prompts_that_open_a_block():
    assert opens_thought("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opens_thought("assistant\n<think>\n\n</think>\n\n") == ""
    assert opens_thought("Question: what is <think>? Answer:") == ""
    assert opens_thought("[[T]]", ["[[T]] [[/T]]"]) == "[[T]]"
    assert is_thinking_tag("[THINK]")
    assert is_thinking_tag("</think>")
    assert not is_thinking_tag("</s>")


@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "18", "[THINK]", "[/THINK]", "</s>", "<answer>", " x ", "\n"]
        ),
        max_size=9,
    )
)
def test_every_text_has_an_outside(parts):
    outside = outside_of_thought("".join(parts))
    assert outside.text == "" or not outside.unfinished
    assert outside.text in "".join(parts)


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "a<think>", "<", "<a_", "<reasoning>a</think>", "</s>", "x</s>"]
)
def test_time_is_linear(piece):
    started = time.process_time()
    outside_of_thought(piece * (300_000 // len(piece)))
    assert time.process_time() - started < 3
