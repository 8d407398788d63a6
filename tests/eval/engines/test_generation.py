"""Generation in batches: the same answers for every batch size and engine, and exact ends."""

import itertools
import re
from functools import wraps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from mce_llm.eval.engines import bucketed
from mce_llm.eval.engines.bucketed import pad_left
from mce_llm.eval.engines.decoding import Decoding, Ends, Request, cut_at_stop
from mce_llm.eval.engines.generation import choose_batching, generate
from mce_llm.eval.engines.key_value_rows import KeyValueRows
from mce_llm.eval.errors import GenerationError


@pytest.fixture(scope="module")
def prompts(tokenizer, question_rows):
    return [tokenizer(row["question"])["input_ids"] for row in question_rows]


def answers(model, tokenizer, prompts, **options):
    options = {"max_new_tokens": 16, "batch_size": 8, "batching": "bucketed", **options}
    decoding = Decoding(
        **{key: options.pop(key) for key in list(options) if key in Decoding.__dataclass_fields__}
    )
    found = list(generate(model, tokenizer, prompts, decoding, **options))
    return sorted(found, key=lambda item: (item.index, item.sample))


KINDS = ["llama", "gpt2", "mistral", "qwen2"]
ENGINES = ["bucketed", "static", "continuous"]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_and_engine_change_nothing(kind, tokenizer, prompts, make_model):
    """Float32: the same answers alone, in batches, with rows that are refilled, and behind a common beginning."""
    model = make_model(kind, len(tokenizer))
    beginning = tokenizer("The answer is: Question: Tom has 4 apples and very quickly buys 6. How many?")[
        "input_ids"
    ]
    for asked in (prompts, [beginning + prompt for prompt in prompts]):
        alone = answers(model, tokenizer, asked, batch_size=1)
        assert len({item.text for item in alone}) > len(prompts) // 2  # the answers do depend on the prompt
        for batching, batch_size in (
            ("bucketed", 8),
            ("static", 4),
            ("continuous", 1),
            ("continuous", 3),
            ("continuous", 8),
        ):
            assert answers(model, tokenizer, asked, batch_size=batch_size, batching=batching) == alone


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_end_at_different_times_and_are_refilled(kind, tokenizer, prompts, make_model):
    """Answers of 1 to 40 tokens: rows come and go, the cache grows, moves and shrinks."""
    model = make_model(kind, len(tokenizer))
    options = {"max_new_tokens": 40, "stop": [" a", "pl", "ck"]}
    alone = answers(model, tokenizer, prompts * 3, batch_size=1, **options)
    assert len({item.n_tokens for item in alone}) > 3
    assert {"stop", "length"} <= {item.finished for item in alone}
    for batch_size in (2, 5, 64):
        assert (
            answers(model, tokenizer, prompts * 3, batch_size=batch_size, batching="continuous", **options)
            == alone
        )


@pytest.mark.parametrize("broken", ["right padding", "no mask"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wrong_padding_would_be_seen(kind, broken, tokenizer, prompts, monkeypatch, make_model):
    """Negative control of the parity test: both classic errors change answers."""
    model = make_model(kind, len(tokenizer))
    alone = answers(model, tokenizer, prompts, batch_size=1)

    def wrong(prompts, filler, multiple):
        ids_BL, mask_BL = pad_left(prompts, filler)
        if broken == "no mask":
            return ids_BL, torch.ones_like(mask_BL)
        length = ids_BL.shape[1]
        return torch.tensor(
            [[*prompt, *[filler] * (length - len(prompt))] for prompt in prompts]
        ), mask_BL.flip(1)

    monkeypatch.setattr(bucketed, "pad_left", wrong)
    assert answers(model, tokenizer, prompts, batch_size=8) != alone


@pytest.mark.parametrize("broken", ["mask", "positions", "rows"])
def test_wrong_rows_would_be_seen(broken, tokenizer, prompts, monkeypatch, make_model):
    """Negative control for refilled rows: a mask, positions or places that are one off change answers."""
    model = make_model("llama", len(tokenizer))
    alone = answers(model, tokenizer, prompts, batch_size=1)
    if broken == "mask":
        monkeypatch.setattr(
            KeyValueRows,
            "mask_BC",
            property(lambda self: torch.ones(self.rows, self.end + 1, dtype=torch.long)),
        )
    else:
        original = KeyValueRows.put

        def put(self, rows, lengths, states):
            original(self, rows[::-1] if broken == "rows" else rows, lengths, states)
            if broken == "positions":
                self.lengths = [length + 7 * bool(length) for length in self.lengths]

        monkeypatch.setattr(KeyValueRows, "put", put)
    assert answers(model, tokenizer, prompts, batch_size=8, batching="continuous") != alone


def test_the_common_beginning_is_computed_once(llama, tokenizer, prompts, monkeypatch):
    beginning = tokenizer("The answer is: Question: Tom has 4 apples and very quickly buys 6. How many?")[
        "input_ids"
    ]
    seen = []
    original = llama.forward

    @wraps(original)
    def forward(input_ids, **kwargs):
        seen.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(llama, "forward", forward)
    answers(llama, tokenizer, [beginning + prompt for prompt in prompts], batch_size=4, batching="continuous")
    first, *rest = seen
    assert first[0] == 1
    assert first[1] >= len(beginning)
    assert max(length for _, length in rest) < max(map(len, prompts))


def test_samples_depend_on_their_own_numbers_alone(llama, tokenizer, prompts):
    options = {"temperature": 1.0, "top_p": 0.95, "num_samples": 3, "seed": 5}
    expected = answers(llama, tokenizer, prompts, batch_size=1, **options)
    assert [(item.index, item.sample) for item in expected] == [
        (n, k) for n in range(len(prompts)) for k in range(3)
    ]
    assert len({item.text for item in expected}) > 20
    for batching in ENGINES:
        assert answers(llama, tokenizer, prompts, batch_size=7, batching=batching, **options) == expected
    assert answers(llama, tokenizer, prompts, **{**options, "seed": 6}) != expected
    # What was answered before is left out, and the others do not change; numbers may be given from outside.
    done = {(0, 1), (4, 0), (4, 1), (4, 2)}
    rest = answers(llama, tokenizer, prompts, done=done, batching="continuous", **options)
    assert rest == [item for item in expected if (item.index, item.sample) not in done]
    some = answers(llama, tokenizer, prompts[3:5], indices=[3, 4], batching="continuous", **options)
    assert some == [item for item in expected if item.index in (3, 4)]


def test_first_tokens_are_those_of_a_plain_forward_loop(llama, tokenizer, prompts):
    """An oracle that shares nothing with `generate`: the whole sequence again for every token."""
    found = answers(llama, tokenizer, prompts[:3], max_new_tokens=6)
    for prompt, item in zip(prompts[:3], found, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(item.n_tokens):
                ids.append(int(llama(torch.tensor([ids])).logits[0, -1].argmax()))
        new = ids[len(prompt) :]
        assert tokenizer.decode(new, skip_special_tokens=True) == item.text


def test_the_checkpoints_sampling_settings_do_not_count(llama, tokenizer, prompts):
    expected = answers(llama, tokenizer, prompts)
    before = llama.generation_config
    llama.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, no_repeat_ngram_size=1, max_length=5
    )
    try:
        assert answers(llama, tokenizer, prompts) == expected
        assert llama.generation_config.repetition_penalty == 3.0  # and they are left as they were
    finally:
        llama.generation_config = before


@pytest.mark.parametrize("batching", ENGINES)
def test_model_and_tokenizer_are_left_as_they_were(batching, llama, tokenizer, prompts):
    llama.train()
    side, pad = tokenizer.padding_side, tokenizer.pad_token_id
    stream = generate(llama, tokenizer, prompts, Decoding(max_new_tokens=2), batch_size=4, batching=batching)
    next(stream)
    assert llama.training  # also between batches, and when the caller stops half-way
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
    llama.eval()
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == (side, pad)


def script(model, tokenizer, monkeypatch, texts):
    """Make the model say the given texts, row by row, whatever it is asked."""
    rows = [[*tokenizer(text)["input_ids"]] for text in texts]

    original = model.forward

    @wraps(original)  # `generate` reads the signature, in which names differ between versions of transformers
    def forward(input_ids, **kwargs):
        forward.step += 1
        logits_BV = torch.zeros(input_ids.shape[0], 1, len(tokenizer))
        for row, ids in enumerate(rows):
            logits_BV[
                row, 0, ids[forward.step - 1] if forward.step <= len(ids) else tokenizer.eos_token_id
            ] = 1
        result = original(input_ids=input_ids, **kwargs)
        result.logits = logits_BV
        return result

    forward.step = 0
    monkeypatch.setattr(model, "forward", forward)


def test_ends_of_rows(tokenizer, prompts, monkeypatch, make_model):
    model = make_model("llama", len(tokenizer))
    texts = ["It is 4.", "It is 5.\nQuestion: more\nQuestion: 6", "7 " * 30, "Questio not", "é\nQuestion:"]
    script(model, tokenizer, monkeypatch, texts)
    same = [prompts[0]] * len(texts)
    found = answers(model, tokenizer, same, stop=["\nQuestion:", "### Instruction"], max_new_tokens=30)
    assert [(item.text, item.finished) for item in found] == [
        ("It is 4.", "eos"),
        ("It is 5.", "stop"),
        (tokenizer.decode(tokenizer("7 " * 30)["input_ids"][:30]), "length"),
        ("Questio not", "eos"),
        ("é", "stop"),
    ]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert found[0].n_tokens == len(ids[0]) + 1  # EOS counts
    assert found[2].n_tokens == 30
    until = found[1].n_tokens
    assert "\nQuestion:" in tokenizer.decode(ids[1][:until])
    assert "\nQuestion:" not in tokenizer.decode(ids[1][: until - 1])


@pytest.mark.parametrize("split", range(1, 11))
def test_stop_string_across_token_boundaries(split, llama, tokenizer, prompts, monkeypatch, make_model):
    """The stop string is cut into two differently at each time; both parts are tokenised apart."""
    model = make_model("llama", len(tokenizer))
    stop = "\nQuestion:"
    script(model, tokenizer, monkeypatch, ["x"])
    ids = [tokenizer(part)["input_ids"] for part in ("So 4", stop[:split], stop[split:], "9 9 9")]
    monkeypatch.undo()
    flat = [token for part in ids if part for token in part]

    original = model.forward
    steps: list[int] = []

    @wraps(original)
    def forward(input_ids, **kwargs):
        result = original(input_ids=input_ids, **kwargs)
        logits = torch.zeros(input_ids.shape[0], 1, len(tokenizer))
        logits[:, 0, flat[min(len(steps), len(flat) - 1)]] = 1
        steps.append(1)
        result.logits = logits
        return result

    monkeypatch.setattr(model, "forward", forward)
    (found,) = answers(model, tokenizer, prompts[:1], stop=[stop], max_new_tokens=40)
    assert (found.text, found.finished) == ("So 4", "stop")
    assert found.n_tokens <= sum(map(len, ids[:3]))


def test_cut_at_the_earliest_stop_string():
    assert cut_at_stop("a###b\nQ", ["\nQ", "###"]) == ("a", True)
    assert cut_at_stop("abc", ["###"]) == ("abc", False)
    assert cut_at_stop("###", ["###"]) == ("", True)


def feed(tokenizer, ids, **options):
    """Give an answer's tokens to `Ends` one by one, as every engine does."""
    ends = Ends(tokenizer, [tokenizer.eos_token_id], Decoding(**options))
    for length in range(1, len(ids) + 1):
        if ends.reached(ids[:length]):
            return ends.finish(Request(0, 0, (1,)), ids[:length])
    raise AssertionError("the answer did not end")


@settings(deadline=None)
@given(
    before=st.text("abc é7\n.", max_size=8),
    after=st.text("ab\n7", max_size=5),
    stop=st.sampled_from(["\nQ:", "Response", "é", "###", " ", "Q: ", "\n\n", "日本"]),
    data=st.data(),
)
def test_stop_strings_however_they_fall_into_tokens(before, after, stop, data, tokenizer):
    text = before + stop + after
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)]) if a < b]
    ids = [token for piece in pieces for token in tokenizer(piece)["input_ids"]]
    found = feed(tokenizer, [*ids, tokenizer.eos_token_id], stop=(stop,), max_new_tokens=99)
    assert found.finished == "stop"
    assert found.text == text[: text.index(stop)]
    assert stop not in tokenizer.decode(ids[: found.n_tokens - 1])  # as soon as it was complete


def test_several_end_tokens(llama, tokenizer, prompts):
    free = answers(llama, tokenizer, prompts[:4], max_new_tokens=8)
    token = tokenizer(free[0].text)["input_ids"][0]
    ended = answers(
        llama, tokenizer, prompts[:4], max_new_tokens=8, end_token_ids=[tokenizer.eos_token_id, token]
    )
    assert all(item.n_tokens <= other.n_tokens for item, other in zip(ended, free, strict=True))


@pytest.mark.parametrize("batching", ENGINES)
def test_no_prompts_no_answers(batching, llama, tokenizer):
    assert answers(llama, tokenizer, [], batching=batching) == []


@pytest.mark.parametrize("batching", ENGINES)
def test_one_token_and_one_prompt(batching, llama, tokenizer, prompts):
    (found,) = answers(llama, tokenizer, prompts[:1], max_new_tokens=1, batching=batching)
    assert (found.n_tokens, found.finished) == (1, "length")


@pytest.mark.parametrize("options", [{}, {"batching": "continuous"}, {"temperature": 1.0}])
def test_nan_weights_are_refused(options, tokenizer, prompts, make_model):
    model = make_model("llama", len(tokenizer))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(
        GenerationError, match=r"logits are NaN or infinite for 8 of 8 prompts .* new token 1 .*float32"
    ):
        answers(model, tokenizer, prompts, **options)


def test_the_engine_fits_the_model(llama, tokenizer, prompts):
    assert choose_batching(llama) == "continuous"
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    mamba = MambaForCausalLM(config).eval()
    assert choose_batching(mamba) == "bucketed"
    with pytest.raises(GenerationError, match=r"MambaForCausalLM .*; use batching bucketed"):
        answers(mamba, tokenizer, prompts[:2], batching="continuous")
    found = answers(mamba, tokenizer, prompts[:2], batching="auto", max_new_tokens=3)
    assert [item.index for item in found] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"stop": "###"}, "stop must be a list of non-empty strings, got '###'"),
        ({"stop": [""]}, "stop must be a list of non-empty strings, got ['']"),
        ({"end_token_ids": []}, "no token ends an answer"),
        ({"max_new_tokens": 510}, "more than the 512 positions of the model; lower max_new_tokens to"),
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[1, 99999]]}, "token id 99999, but the model knows ids below"),
        (
            {"batching": "contiguous"},
            "batching must be one of auto, continuous, bucketed, static, got 'contiguous'",
        ),
        ({"prompts": [[1], [1]], "indices": [3, 3]}, "indices must number the 2 prompts, each differently"),
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or more, got -1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"temperature": 1.0, "top_k": -1}, "top_k must be 0 (all tokens) or more, got -1"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_samples": 4}, "num_samples is 4 and temperature 0"),
        ({"top_p": 0.9}, "top_p and top_k have no effect with temperature 0"),
    ],
)
def test_bad_input(options, message, llama, tokenizer, prompts):
    options = {"prompts": prompts, "max_new_tokens": 8, **options}
    with pytest.raises(GenerationError, match=re.escape(message)):
        answers(llama, tokenizer, options.pop("prompts"), **options)
