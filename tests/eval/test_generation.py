"""Batched greedy generation: the same answers for every batch size, and exact ends."""

import re
from functools import wraps

import pytest
import torch
from transformers import GenerationConfig

from mce_llm.eval import generation
from mce_llm.eval.errors import GenerationError
from mce_llm.eval.generation import cut_at_stop, generate_greedy, pad_left


@pytest.fixture(scope="module")
def prompts(tokenizer, question_rows):
    return [tokenizer(row["question"])["input_ids"] for row in question_rows]


def answers(model, tokenizer, prompts, **options):
    options = {"max_new_tokens": 16, "batch_size": 8, **options}
    found = list(generate_greedy(model, tokenizer, prompts, **options))
    assert sorted(item.index for item in found) == list(range(len(prompts)))  # each exactly once
    return sorted(found, key=lambda item: item.index)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batch_size_changes_nothing(kind, tokenizer, prompts, make_model):
    model = make_model(kind, len(tokenizer))
    alone = answers(model, tokenizer, prompts, batch_size=1)
    assert answers(model, tokenizer, prompts, batch_size=8) == alone
    assert answers(model, tokenizer, prompts, batch_size=3) == alone
    assert len({item.text for item in alone}) > len(prompts) // 2  # the answers do depend on the prompt


@pytest.mark.parametrize("broken", ["right padding", "no mask"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wrong_padding_would_be_seen(kind, broken, tokenizer, prompts, monkeypatch, make_model):
    """Negative control of the parity test: both classic errors change answers."""
    model = make_model(kind, len(tokenizer))
    alone = answers(model, tokenizer, prompts, batch_size=1)

    def wrong(prompts, filler):
        ids_BL, mask_BL = pad_left(prompts, filler)
        if broken == "no mask":
            return ids_BL, torch.ones_like(mask_BL)
        length = ids_BL.shape[1]
        return torch.tensor(
            [[*prompt, *[filler] * (length - len(prompt))] for prompt in prompts]
        ), mask_BL.flip(1)

    monkeypatch.setattr(generation, "pad_left", wrong)
    assert answers(model, tokenizer, prompts, batch_size=8) != alone


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


def test_model_and_tokenizer_are_left_as_they_were(llama, tokenizer, prompts):
    llama.train()
    side, pad = tokenizer.padding_side, tokenizer.pad_token_id
    stream = generate_greedy(llama, tokenizer, prompts, max_new_tokens=2, batch_size=4)
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


def test_several_end_tokens(llama, tokenizer, prompts):
    free = answers(llama, tokenizer, prompts[:4], max_new_tokens=8)
    token = tokenizer(free[0].text)["input_ids"][0]
    ended = answers(
        llama, tokenizer, prompts[:4], max_new_tokens=8, end_token_ids=[tokenizer.eos_token_id, token]
    )
    assert all(item.n_tokens <= other.n_tokens for item, other in zip(ended, free, strict=True))


def test_no_prompts_no_answers(llama, tokenizer):
    assert answers(llama, tokenizer, []) == []


def test_nan_weights_are_refused(tokenizer, prompts, make_model):
    model = make_model("llama", len(tokenizer))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(
        GenerationError, match=r"logits are NaN or infinite for 8 of 8 prompts .* new token 1 .*float32"
    ):
        answers(model, tokenizer, prompts)


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
    ],
)
def test_bad_input(options, message, llama, tokenizer, prompts):
    options = {"prompts": prompts, "max_new_tokens": 8, **options}
    with pytest.raises(GenerationError, match=re.escape(message)):
        list(generate_greedy(llama, tokenizer, options.pop("prompts"), **options))
