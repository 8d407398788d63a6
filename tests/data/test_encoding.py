import copy

import pytest
from tokenizers import processors

from mce_llm.data.encoding import (
    bare_ids,
    continuation_ids,
    opening_ids,
    placed_continuation,
    special_prefix,
)
from mce_llm.data.errors import DataError


def test_opening_has_bos_as_the_tokenizer_adds_it_and_no_eos(any_tokenizer):
    ids = opening_ids(any_tokenizer, "How many apples?")
    expected = any_tokenizer("How many apples?")["input_ids"]
    if expected[-1] == any_tokenizer.eos_token_id:
        expected = expected[:-1]
    assert ids == expected
    assert any_tokenizer.eos_token_id not in ids
    if any_tokenizer.bos_token_id is not None:
        assert ids.count(any_tokenizer.bos_token_id) == 1


def test_bos_already_in_the_text_is_not_doubled(sentencepiece):
    assert opening_ids(sentencepiece, "<s>How many?").count(sentencepiece.bos_token_id) == 1


def test_special_prefix(any_tokenizer):
    bos = any_tokenizer.bos_token_id
    assert special_prefix(any_tokenizer) == ([] if bos is None else [bos])


@pytest.mark.parametrize("text", ["To find", " To find", "\n7 + 5", "7 + 5 = 12\n#### 12", "", "▁x", "é½"])
@pytest.mark.parametrize("before", ["Answer:", "### Response:", "1 +"])
def test_continuation_decodes_to_the_two_texts_joined(any_tokenizer, before, text):
    ids = bare_ids(any_tokenizer, before) + continuation_ids(any_tokenizer, text)
    # SentencePiece spells a space as "▁", so that character itself comes back as a space.
    spaced = any_tokenizer.unk_token is not None
    assert any_tokenizer.decode(ids) == (before + text).replace("▁", " " if spaced else "▁")


def test_plain_tokenisation_would_slip_a_space_in(sentencepiece):
    # Negative control: this is what continuation_ids is for.
    ids = bare_ids(sentencepiece, "Response:") + bare_ids(sentencepiece, "To find")
    assert sentencepiece.decode(ids) == "Response: To find"


def test_literal_reads_special_tokens_as_characters(any_tokenizer):
    eos = any_tokenizer.eos_token
    assert any_tokenizer.eos_token_id in bare_ids(any_tokenizer, f"a{eos}b")
    assert any_tokenizer.eos_token_id not in continuation_ids(any_tokenizer, f"a{eos}b", literal=True)
    # and the next call is not affected
    assert any_tokenizer.eos_token_id in bare_ids(any_tokenizer, f"a{eos}b")


def test_special_prefix_of_several_tokens(byte_level):
    tokenizer = type(byte_level)(tokenizer_object=byte_level.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    ids = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", ids[0]), ("<sop>", ids[1])]
    )
    assert opening_ids(tokenizer, "How")[:2] == ids


@pytest.mark.parametrize(
    "text", ["She has 1,234 eggs.", " 18", "18", "a\n#### 5%", "é½ 三", "  two  spaces", ""]
)
@pytest.mark.parametrize("literal", [False, True])
def test_places_are_those_of_the_same_tokens(any_tokenizer, text, literal):
    placed = placed_continuation(any_tokenizer, text, literal=literal)
    assert placed.ids == continuation_ids(any_tokenizer, text, literal=literal)
    assert len(placed.ids) == len(placed.places)
    visible = {place for place, character in enumerate(text) if not character.isspace()}
    covered = [set(range(begin, end)) for begin, end in placed.places]
    assert visible <= set().union(*covered)
    for token, (begin, end) in zip(placed.ids, placed.places, strict=True):
        assert 0 <= begin <= end <= len(text)
        written = any_tokenizer.decode([token]).strip()
        if written.isascii() and text.isascii():
            assert written == text[begin:end].strip()


def test_a_tokenizer_that_does_not_know_the_places(byte_level):
    class Slow(type(byte_level)):
        is_fast = False

    slow = copy.copy(byte_level)
    slow.__class__ = Slow
    with pytest.raises(DataError, match="is a Slow, which does not say which characters a token stands for"):
        placed_continuation(slow, "5")
