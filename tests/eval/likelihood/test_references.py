"""Solutions as training encodes them, and the division of their tokens."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.data import DataError, get_prompt, load_examples, tokenize_examples, train_tokenizer
from mce_llm.eval.likelihood.evaluation import LIKELIHOOD
from mce_llm.eval.likelihood.items import GROUPS
from mce_llm.eval.likelihood.references import encode_references, token_groups

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = train_tokenizer(["She has 16 eggs and 3 more, = 19. ####"] * 3, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def encoded(tokenizer, solution_file, prompt):
    questions = LIKELIHOOD.load(str(solution_file))
    return encode_references(questions.rows, get_prompt(prompt), tokenizer)


@pytest.mark.parametrize("prompt", ["plain", "metamath", "chat"])
def test_ids_and_labels_are_those_of_training(prompt, chat_tokenizer, solution_file):
    trained, _ = tokenize_examples(
        load_examples(str(solution_file)), chat_tokenizer, get_prompt(prompt), max_length=4096
    )
    template = get_prompt(prompt)
    rows = LIKELIHOOD.load(str(solution_file)).rows
    for row, example in zip(rows, trained, strict=True):
        pair = template.encode_pair(chat_tokenizer, row["question"], row["solution"])
        ids = pair.prompt_ids + pair.completion_ids
        assert ids == example["input_ids"]
        assert [-100] * len(pair.prompt_ids) + pair.completion_ids == example["labels"]


def by_hand(tokenizer, reference, prompt):
    """The groups by decoding prefixes, and by patterns that are right for these solutions."""
    ids = reference.completion_ids[:-1]  # without the end
    text = tokenizer.decode(ids)
    ends = [len(tokenizer.decode(ids[: number + 1])) for number in range(len(ids))]
    spans = list(zip([0, *ends], ends, strict=False))
    literals = [match.span() for match in re.finditer(r"\d[\d,./]*\d%?|\d%?", text)]
    results = [match.span(1) for match in re.finditer(r"(?<!>)=\s*\$?(\d[\d,./]*\d|\d)", text)]
    answer = (text.rindex("#### ") + 5, len(text))

    def touches(span, places, pattern):
        return any(
            re.search(pattern, text[max(span[0], first) : min(span[1], last)])
            for first, last in places
            if max(span[0], first) < min(span[1], last)
        )

    def inside(span):
        return all(any(a <= place < b for a, b in literals) for place in range(*span))

    numbers = [touches(span, literals, r"\d") or inside(span) for span in spans]
    return {
        "all": [True] * len(spans) + [True],
        "numbers": [*numbers, False],
        "results": [*(n and touches(s, results, r"\S") for n, s in zip(numbers, spans, strict=True)), False],
        "answer": [*(touches(span, [answer], r"\S") for span in spans), False],
        "words": [*(not number for number in numbers), True],
    }


@pytest.mark.parametrize("prompt", ["plain", "chat"])
@pytest.mark.parametrize("size", [260, 300, 420])
def test_groups_by_hand(size, prompt, solution_file, solutions):
    """With digits alone, in pairs, and joined to what is around them."""
    texts = [re.sub("<<.*?>>", "", solution) for _, solution, _ in solutions]
    tokenizer = train_tokenizer([*texts, "= $18.", " 18", "$18", "18.", "1,2"] * 5, vocab_size=size)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    references = encoded(tokenizer, solution_file, prompt)
    assert [reference.gold for reference in references] == [gold for *_, gold in solutions]
    for reference in references:
        expected = by_hand(tokenizer, reference, prompt)
        assert list(reference.groups) == list(GROUPS)
        for name in GROUPS:
            np.testing.assert_array_equal(reference.groups[name], expected[name], err_msg=name)
        assert reference.groups["answer"].any()


def places_of(pieces):
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    return list(zip([0, *ends], ends, strict=False))


@pytest.mark.parametrize(
    ("pieces", "numbers", "results"),
    [
        (["=", " ", "1", "8"], [0, 0, 1, 1], [0, 0, 1, 1]),
        (["=", " 18", "."], [0, 1, 0], [0, 1, 0]),
        (["=", "$18."], [0, 1], [0, 1]),
        (["a", " $18"], [0, 1], [0, 0]),
        (["1", ",", "234", ",", " 5"], [1, 1, 1, 0, 1], [0, 0, 0, 0, 0]),
        (["1", "/", "2", "%", "%"], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]),
        (["1", "/", " 2"], [1, 0, 1], [0, 0, 0]),
        (["3", "%."], [1, 0], [0, 0]),
        (["5= 5", "="], [1, 0], [1, 0]),
    ],
)
def test_tokens_that_mix_digits_and_others(pieces, numbers, results):
    text = "".join(pieces)
    groups = token_groups(text, places_of(pieces), (0, len(text)), None)
    assert groups["numbers"].astype(int).tolist() == numbers
    assert groups["results"].astype(int).tolist() == results
    assert not groups["answer"].any()


@given(st.lists(st.text(alphabet="012 =,.$ab\n/%", min_size=0, max_size=4), max_size=12), st.data())
def test_groups_of_any_division(pieces, data):
    text = "".join(pieces)
    answer = data.draw(st.none() | st.tuples(*[st.integers(0, len(text))] * 2).map(sorted).map(tuple))
    groups = token_groups(text, places_of(pieces), (0, len(text)), answer)
    assert all(groups["all"])
    np.testing.assert_array_equal(groups["words"], ~groups["numbers"])
    assert not (groups["results"] & ~groups["numbers"]).any()
    for piece, number in zip(pieces, groups["numbers"], strict=True):
        if re.search(r"\d", piece):
            assert number
        if not piece.strip() or (re.search(r"[ab=]", piece) and not re.search(r"\d", piece)):
            assert not number


def test_a_slow_tokenizer_is_refused(solution_file, tokenizer):
    class Slow:
        is_fast = False
        name_or_path = "models/slow"

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

    with pytest.raises(
        DataError, match="the tokenizer 'models/slow' is a Slow, which does not say which characters"
    ):
        encoded(Slow(), solution_file, "plain")


def test_a_template_that_rewrites_solutions_is_refused(chat_tokenizer, solution_file):
    chat_tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
    try:
        with pytest.raises(
            DataError, match=r"does not write 6 of 7 reference solutions.*\n  - question 1: 'She"
        ):
            encoded(chat_tokenizer, solution_file, "chat")
    finally:
        chat_tokenizer.chat_template = CHATML
