"""Hashes change with everything that answers depend on, and with nothing else."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval import fingerprints
from mce_llm.eval.fingerprints import files_fingerprint, fingerprint, model_fingerprint


@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
)
def test_the_order_of_keys_does_not_count(content):
    assert fingerprint(dict(reversed(content.items()))) == fingerprint(content)
    assert fingerprint({**content, "more": 1}) != fingerprint(content) or content.get("more") == 1


@pytest.mark.parametrize(
    ("a", "b"), [(["a", "b"], ["b", "a"]), ({"x": 1}, {"x": "1"}), ([["ab"]], [["a", "b"]]), ("é", "e")]
)
def test_different_contents(a, b):
    assert fingerprint(a) != fingerprint(b)


def test_one_bit_of_one_weight(llama, monkeypatch):
    before = model_fingerprint(llama)
    assert model_fingerprint(copy.deepcopy(llama)) == before
    changed = copy.deepcopy(llama)
    with torch.no_grad():
        weight = changed.model.layers[1].mlp.down_proj.weight
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(torch.inf))
    assert model_fingerprint(changed) != before
    assert model_fingerprint(copy.deepcopy(llama).bfloat16()) != before
    monkeypatch.setattr(fingerprints, "_PIECE", 100)  # in many pieces
    assert model_fingerprint(llama) == before


def test_an_adapter_counts(llama):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = [get_peft_model(copy.deepcopy(llama), config) for _ in range(2)]
    assert model_fingerprint(adapted[0]) != model_fingerprint(adapted[1])


def test_files(tmp_path, model_directory):
    before = files_fingerprint([model_directory])
    for file in model_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert files_fingerprint([tmp_path]) == before
    (tmp_path / "README.md").write_text("a card")
    assert files_fingerprint([tmp_path]) == before
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert files_fingerprint([tmp_path]) != before
    assert files_fingerprint([model_directory, tmp_path]) != before
