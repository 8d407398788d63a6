"""The cache whose rows come and go, against plain lists of what each row holds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from mce_llm.eval.engines.key_value_rows import KeyValueRows

LAYERS, HEADS, WIDTH = 2, 3, 4


def states(rows, columns, counter):
    """Numbers that are all different, (rows, HEADS, columns, WIDTH), for keys and values of each layer."""
    shape = (rows, HEADS, columns, WIDTH)
    size = rows * HEADS * columns * WIDTH
    made = []
    for _ in range(2 * LAYERS):
        made.append(torch.arange(counter[0], counter[0] + size, dtype=torch.float64).reshape(shape))
        counter[0] += size
    return made


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_row_keeps_its_own_tokens(data):
    count = data.draw(st.integers(1, 5))
    cache = KeyValueRows(count, torch.device("cpu"))
    held = [None] * count  # of each row: the tensors that its tokens have, along the columns
    counter = [1]
    for _ in range(data.draw(st.integers(1, 12))):
        free = [row for row, content in enumerate(held) if content is None]
        active = [row for row, content in enumerate(held) if content is not None]
        action = data.draw(st.sampled_from(["put"] * bool(free) + ["step", "end", "keep"] * bool(active)))
        if action == "put":
            rows = free[: data.draw(st.integers(1, len(free)))]
            lengths = [data.draw(st.integers(1, 9)) for _ in rows]
            new = states(len(rows), max(lengths), counter)
            prompts = DynamicCache()
            for layer in range(LAYERS):
                prompts.update(new[2 * layer], new[2 * layer + 1], layer)
            cache.put(rows, lengths, prompts)
            for source, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                held[row] = [tensor[source, :, :length] for tensor in new]
        elif action == "step":
            cache.tidy(active)
            assert cache.mask_BC.shape == (len(held), cache.end + 1)
            new = states(len(held), 1, counter)
            with torch.inference_mode():  # as every model runs
                for layer in range(LAYERS):
                    cache.cache.update(new[2 * layer], new[2 * layer + 1], layer)
            cache.advance(active)
            for row in active:
                held[row] = [
                    torch.cat([old, tensor[row]], dim=1) for old, tensor in zip(held[row], new, strict=True)
                ]
        elif action == "end":
            held[data.draw(st.sampled_from(active))] = None
        else:
            cache.keep(active)
            held = [held[row] for row in active]
        for row, content in enumerate(held):
            if content is None:
                continue
            length = content[0].shape[1]
            assert cache.lengths[row] == length
            mask = cache.mask_BC[row]
            assert mask.tolist() == [0] * (cache.end - length) + [1] * (length + 1)
            for layer in range(LAYERS):
                seen = cache.cache.layers[layer]
                for tensor, expected in zip((seen.keys, seen.values), content[2 * layer :], strict=False):
                    assert tensor.shape[2] == cache.end
                    assert torch.equal(tensor[row, :, cache.end - length :], expected)
                    assert torch.isfinite(tensor).all()  # what is masked must not be NaN


def test_columns_that_no_row_uses_are_dropped():
    cache = KeyValueRows(2, torch.device("cpu"))
    prompts = DynamicCache()
    for layer in range(LAYERS):
        prompts.update(torch.ones(2, HEADS, 40, WIDTH), torch.ones(2, HEADS, 40, WIDTH), layer)
    cache.put([0, 1], [40, 5], prompts)
    cache.tidy([0, 1])
    assert cache.end == 40
    cache.tidy([1])
    assert cache.end == 5
    assert cache.cache.layers[0].keys.shape[2] == 5
