"""Models that accelerate has spread with hooks: the loss of the model in one piece, or a refusal."""

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules

from helpers.models import make_batch, make_model
from mce_llm.errors import LossInputError
from mce_llm.lm import MatrixLossConfig, UnsupportedModelError, linear_matrix_cross_entropy, patch_model

CONFIG = MatrixLossConfig(weight=0.7)
DEVICE_MAPS = {
    "hooks alone": {"": "cpu"},
    "head on disk": {"model": "cpu", "lm_head": "disk"},
    "layer on disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
    "layers on disk": {"model": "disk", "lm_head": "cpu"},
}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def dispatched(model, folder, device_map):
    return accelerate.dispatch_model(model, DEVICE_MAPS[device_map], offload_dir=folder, force_hooks=True)


def freeze_offloaded(model):
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.is_meta)


@pytest.mark.parametrize("order", ["patch first", "dispatch first"])
@pytest.mark.parametrize("device_map", DEVICE_MAPS)
@pytest.mark.parametrize("family", ["llama", "gemma2-softcap", "qwen2"])
def test_loss_and_gradients_are_those_of_the_model_in_one_piece(tmp_path, family, device_map, order):
    # accelerate unties what it offloads.
    stock, whole, model = (make_model(family, tie_word_embeddings=False) for _ in range(3))
    batch = make_batch()
    patch_model(whole, CONFIG)
    if order == "patch first":
        patch = patch_model(model, CONFIG)
    dispatched(model, tmp_path, device_map)
    if order == "dispatch first":
        patch = patch_model(model, CONFIG)
    freeze_offloaded(model)
    for name, parameter in model.named_parameters():
        whole.get_parameter(name).requires_grad_(parameter.requires_grad)
    expected, loss = whole(**batch).loss, model(**batch).loss
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    assert gradients(model).keys() == gradients(whole).keys() != set()
    torch.testing.assert_close(gradients(model), gradients(whole))
    remove_hook_from_submodules(model)
    torch.testing.assert_close(model(**batch).loss, expected)
    patch.remove()
    assert torch.equal(model(**batch).logits, stock(**batch).logits)


def test_offloaded_parameters_cannot_be_trained(tmp_path):
    model, batch = make_model(), make_batch()
    dispatched(model, tmp_path, "head on disk")
    model(**batch).loss.backward()
    assert model.model.norm.weight.grad is not None
    assert model.lm_head.weight.grad is None, "the stock loss loses this gradient without a word"
    patch = patch_model(model, CONFIG)
    message = r"offloaded .*: 1 trainable parameter .*lm_head\.weight.*requires_grad_\(False\)"
    with pytest.raises(UnsupportedModelError, match=message):
        model(**batch)
    assert patch.last is None
    whole = make_model().eval()
    patch_model(whole, CONFIG)
    torch.testing.assert_close(model.eval()(**batch).loss, whole(**batch).loss)


@pytest.mark.parametrize("device_map", ["head on disk", "layers on disk"])
def test_evaluation_has_logits_and_shows_the_weight_to_the_observer(tmp_path, device_map):
    whole, batch = make_model().eval(), make_batch()
    model = dispatched(make_model().eval(), tmp_path, device_map)
    patch, seen = patch_model(model, CONFIG), []
    patch.keep_logits = True
    patch.observer = lambda observation: seen.append(observation.weight_VD.clone())
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, whole(**batch).logits)
        text = model.generate(input_ids=batch["input_ids"], max_new_tokens=3, do_sample=False)
        assert torch.equal(
            text, whole.generate(input_ids=batch["input_ids"], max_new_tokens=3, do_sample=False)
        )
    assert torch.equal(seen[0], whole.lm_head.weight)


def test_input_embeddings_have_to_be_on_a_device(tmp_path):
    config, batch = MatrixLossConfig(embeddings="input"), make_batch()
    whole = make_model()
    patch_model(whole, config)
    model = dispatched(make_model(), tmp_path / "head", "head on disk")
    patch_model(model, config)
    freeze_offloaded(model)
    torch.testing.assert_close(model(**batch).loss, whole(**batch).loss)
    offloaded = dispatched(make_model().eval(), tmp_path / "layers", "layers on disk")
    patch_model(offloaded, config)
    with pytest.raises(UnsupportedModelError, match=r"input embeddings are offloaded.*embeddings='output'"):
        offloaded(**batch)


def test_tensors_on_different_devices_are_named():
    hidden, labels = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(LossInputError, match="hidden is on cpu, but weight on meta; move them to one device"):
        linear_matrix_cross_entropy(hidden, torch.zeros(5, 4, device="meta"), labels, CONFIG)
