import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mce_llm.data.collation import CompletionCollator
from mce_llm.data.errors import DataError
from mce_llm.data.packing import best_fit, pack_examples

IGNORE = -100


def tokenized(lengths):
    """Examples whose tokens are all different, so that each can be found again."""
    ends = np.cumsum(lengths).tolist()
    rows = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    labels = [[IGNORE] * (len(row) // 3) + row[len(row) // 3 :] for row in rows]
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": labels})


def split_row(row):
    """Cut a packed row where its positions start again."""
    starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True)]


def check_packed(dataset, packed, max_length):
    examples = {row["input_ids"][0]: row for row in dataset}
    for row in packed:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= max_length
        for part in split_row(row):
            example = examples.pop(row["input_ids"][part][0])
            assert row["input_ids"][part] == example["input_ids"]
            assert row["labels"][part] == [IGNORE, *example["labels"][1:]]
            assert row["position_ids"][part] == list(range(len(example["input_ids"])))
    assert not examples  # every example is there, once


@given(data=st.data(), max_length=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_token_exactly_once_and_never_over_the_limit(data, max_length):
    lengths = data.draw(st.lists(st.integers(1, max_length), min_size=1, max_size=40))
    dataset = tokenized(lengths)
    packed, report = pack_examples(dataset, max_length)
    check_packed(dataset, packed, max_length)
    assert report.examples == len(lengths)
    assert report.rows == len(packed)
    assert report.tokens == sum(lengths)
    assert 0 < report.efficiency <= 1


@given(data=st.data(), max_length=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_best_fit_is_near_the_fewest_rows(data, max_length):
    lengths = data.draw(st.lists(st.integers(1, max_length), min_size=1, max_size=80))
    rows = best_fit(lengths, max_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in row) for row in rows]
    assert max(totals) <= max_length
    # No more than one row can be half empty, else two of them would have been one.
    assert sum(2 * total <= max_length for total in totals) <= 1


def test_best_fit_prefers_the_fullest_row_that_has_room():
    # 7, 6 and 5 open rows with room for 3, 4 and 5; 3 fills the first, 4 the second.
    assert best_fit([6, 3, 7, 4, 5], 10) == [[0, 3], [1, 2], [4]]


def test_packing_is_deterministic_and_keeps_a_selection():
    lengths = np.random.default_rng(0).integers(1, 50, 300).tolist()
    dataset = tokenized(lengths).select(range(299, -1, -2))  # an indirect, reversed view
    first, report = pack_examples(dataset, 64)
    second, _ = pack_examples(dataset, 64)
    check_packed(dataset, first, 64)
    assert first.to_list() == second.to_list()
    assert report.efficiency > 0.95
    assert "packing efficiency" in str(report)
    assert f"{report.efficiency:.1%}" in str(report)


def test_many_rows(monkeypatch):
    monkeypatch.setattr("mce_llm.data.packing._ROWS_PER_CHUNK", 7)
    dataset = tokenized([3, 5, 2, 8, 1] * 20)
    check_packed(dataset, pack_examples(dataset, 8)[0], 8)


def test_the_source_is_left_as_it_was():
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})
    packed, _ = pack_examples(dataset, 4)
    assert packed[0]["labels"] == [IGNORE, 2]
    assert dataset[0]["labels"] == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[1]]}, "needs the column labels; call tokenize_examples first"),
        ({"input_ids": [[1]], "labels": [[1]], "position_ids": [[0]]}, "packed already"),
        ({"input_ids": [], "labels": []}, "there is no example to pack"),
        ({"input_ids": [[1]], "labels": [[1, 2]]}, "example 1 has 1 and 2"),
        ({"input_ids": [[1], [1] * 9], "labels": [[1], [1] * 9]}, "1 of 2 .*example 2 has 9 tokens"),
        ({"input_ids": [[1], []], "labels": [[1], []]}, "example 2 has 0 tokens"),
    ],
)
def test_bad_input(columns, message):
    with pytest.raises(DataError, match=message):
        pack_examples(datasets.Dataset.from_dict(columns), 8)


MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 4, "num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
}


def tiny_model(name, attention):
    model_class, config_class, options = MODELS[name]
    config = config_class(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # sharper attention, so that a token seen by mistake shows
                parameter.mul_(3)
    return model


def small_batch():
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 64, length).tolist() for length in (7, 5, 9, 12, 4, 1)]
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    packed, _ = pack_examples(dataset, 16)
    assert 1 < len(packed) < len(rows)
    return dataset, packed


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("flatten", [False, True])
def test_packed_examples_do_not_see_each_other(name, attention, flatten):
    model = tiny_model(name, attention)
    dataset, packed = small_batch()
    batch = CompletionCollator(0, pad_to_multiple_of=20, flatten_packed=flatten)(packed.to_list())
    with torch.no_grad():
        alone = {
            tuple(ids): model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            for ids in dataset["input_ids"]
        }

        def largest_difference(**inputs):
            logits = model(**inputs).logits
            if flatten:
                rows = logits[0].split([len(row["input_ids"]) for row in packed] + [logits.shape[1] - 38])
            else:
                rows = logits
            return max(
                float((rows[i][part] - alone[tuple(row["input_ids"][part])]).abs().max())
                for i, row in enumerate(packed)
                for part in split_row(row)
            )

        # Logits are of size 1; float32 sums in another order differ by about 1e-6.
        assert largest_difference(**batch) < 1e-5
        # Negative controls: each of the three things that keep examples apart is needed.
        assert largest_difference(**{k: v for k, v in batch.items() if k != "position_ids"}) > 1e-2
        mask = torch.ones_like(batch["input_ids"])
        assert largest_difference(**batch, attention_mask=mask) > 1e-2
        assert largest_difference(**(batch | {"use_cache": True})) > 1e-2


@pytest.mark.parametrize("flatten", [False, True])
def test_packed_loss_and_gradient_equal_the_unpacked_ones(flatten):
    model = tiny_model("llama", "sdpa")
    dataset, packed = small_batch()

    def loss_and_gradient(rows):
        model.zero_grad()
        batch = CompletionCollator(0, flatten_packed=flatten)(rows.to_list())
        loss = model(**batch).loss  # the mean over all trained tokens of the batch
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients)

    unpacked_loss, unpacked_gradient = loss_and_gradient(dataset)
    packed_loss, packed_gradient = loss_and_gradient(packed)
    assert packed_loss == pytest.approx(unpacked_loss, abs=1e-5)
    assert torch.allclose(packed_gradient, unpacked_gradient, atol=1e-5)
