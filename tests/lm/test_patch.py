"""The model patch: stock losses over every family, right parts, refusals, and no trace after removal."""

import inspect
import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from helpers.models import CONFIGS, VOCABULARY, make_batch, make_model
from mce_llm.lm import (
    BypassedLossError,
    LossInputError,
    MatrixLossConfig,
    TokenGeometry,
    UnsupportedModelError,
    patch_model,
    reference_matrix_cross_entropy,
)
from mce_llm.lm.heads import find_head

CE_ONLY = MatrixLossConfig(weight=0.0)
EXACT = MatrixLossConfig(support=None, order=32, weight=0.7)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stock(model, batch):
    """Loss, gradients and logits of the unpatched model."""
    output = model(**batch)
    output.loss.backward()
    found = gradients(model)
    model.zero_grad()
    return output.loss.detach(), found, output.logits.detach()


@pytest.mark.parametrize("family", CONFIGS)
def test_weight_zero_is_the_stock_loss_and_gradient(family):
    model, batch = make_model(family), make_batch()
    loss, expected, _ = stock(model, batch)
    patch_model(model, CE_ONLY)
    output = model(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-5)
    ours = gradients(model)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_matrix_part_is_that_of_the_models_own_logits(family):
    model, batch = make_model(family), make_batch()
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].double().flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    geometry = TokenGeometry.from_table(model.get_output_embeddings().weight.double(), EXACT)
    expected = reference_matrix_cross_entropy(logits, labels, geometry, EXACT)
    patch = patch_model(model, EXACT)
    model(**batch)
    assert patch.last.num_tokens == (labels != -100).sum()
    assert (patch.last.matrix_sum / patch.last.num_tokens).item() == pytest.approx(expected.item(), rel=1e-4)


def test_what_follows_the_head_is_measured():
    for family, treatment in {
        "llama": (1.0, None),
        "gemma2-softcap": (1.0, 2.0),
        "cohere-scale": (0.25, None),
        "granite-scale": (1 / 3, None),
    }.items():
        head = find_head(make_model(family))
        assert head.logit_scale == pytest.approx(treatment[0], rel=1e-5)
        assert head.softcap == treatment[1]


def test_an_unknown_treatment_of_logits_is_refused():
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + output.logits.abs()
            return output

    odd = Odd(make_model().config)
    with pytest.raises(UnsupportedModelError, match="neither a scale nor a softcap"):
        patch_model(odd, EXACT)


def test_num_items_and_shift_labels_reach_the_loss():
    model, batch = make_model(), make_batch()
    plain, _, _ = stock(model, batch)
    patch_model(model, CE_ONLY)
    count = (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, plain / 2)
    labels = batch.pop("labels")
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(**batch, shift_labels=shifted).loss, plain)


def test_without_labels_and_in_generation_nothing_changes():
    model, batch = make_model().eval(), make_batch()
    labels = batch.pop("labels")
    logits, text = model(**batch).logits, model.generate(**batch, max_new_tokens=4, do_sample=False)
    patch_model(model, EXACT)
    assert torch.equal(model(**batch).logits, logits)
    assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), text)
    assert model(**batch, labels=labels).logits is None


# Dynamo looks at .grad of every tensor that it guards, and torch 2.6 warns about Python 3.13.0.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("loss", ["token", "marginal", "expected", "label_smoothing", "emo"])
def test_compiled_model_has_the_same_loss_and_gradients(loss):
    other = loss in ("label_smoothing", "emo")
    config = MatrixLossConfig(loss=loss) if other else MatrixLossConfig(kind=loss, support=7, weight=0.7)
    batch = make_batch()
    eager, compiled = make_model(), make_model()
    patch_model(eager, config)
    patch_model(compiled, config)
    expected = eager(**batch).loss
    expected.backward()
    # Tracing and autograd graphs as with the default backend, without its need for a C++ compiler.
    loss = torch.compile(compiled, backend="aot_eager")(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(compiled), gradients(eager), rtol=1e-4, atol=1e-6)


def test_logits_come_back_in_eval_mode_when_asked_for():
    model, batch = make_model().eval(), make_batch()
    logits = model(**batch).logits
    patch = patch_model(model, EXACT)
    patch.keep_logits = True
    assert torch.equal(model(**batch).logits, logits)
    assert model.train()(**batch).logits is None


def test_positional_arguments_tuples_and_the_signature():
    model, batch = make_model().eval(), make_batch()
    names = list(inspect.signature(model.forward).parameters)
    expected = model(**batch).loss
    patch_model(model, CE_ONLY)
    assert list(inspect.signature(model.forward).parameters) == names
    torch.testing.assert_close(model(batch["input_ids"], labels=batch["labels"]).loss, expected)
    torch.testing.assert_close(model(**batch, return_dict=False)[0], expected)


def test_evaluation_reports_the_matrix_part_of_a_cross_entropy_run():
    model, batch = make_model(), make_batch()
    patch = patch_model(model, CE_ONLY)
    model(**batch)
    assert patch.last.matrix_sum is None
    model.eval()
    attached = model(**batch).loss
    assert attached.requires_grad, "eval mode with gradients still trains"
    with torch.no_grad():
        loss = model(**batch).loss
    torch.testing.assert_close(loss, attached.detach())
    assert patch.last.matrix_sum is not None
    assert patch.last.details.keys() == {"tail_mass", "quadrature_gap"}


def test_removal_restores_the_model():
    model, batch = make_model(), make_batch()
    loss, _, logits = stock(model, batch)
    patch = patch_model(model, EXACT)
    with pytest.raises(UnsupportedModelError, match="patched already"):
        patch_model(model, EXACT)
    patch.remove()
    output = model(**batch)
    assert torch.equal(output.logits, logits)
    assert torch.equal(output.loss.detach(), loss)


def test_input_embeddings_as_geometry():
    model, batch = make_model().eval(), make_batch()
    config = MatrixLossConfig(embeddings="input", support=None, order=32)
    logits = model(**batch).logits[:, :-1].double().flatten(0, 1)
    geometry = TokenGeometry.from_table(model.get_input_embeddings().weight.double(), config)
    expected = reference_matrix_cross_entropy(logits, batch["labels"][:, 1:].flatten(), geometry, config)
    patch = patch_model(model, config)
    model(**batch)
    assert (patch.last.matrix_sum / patch.last.num_tokens).item() == pytest.approx(expected.item(), rel=1e-4)


def test_lora_trains_the_adapter_and_leaves_the_head_alone():
    model, batch = make_model(), make_batch()
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False),
    )
    loss, expected, _ = stock(adapted, batch)
    patch_model(adapted, CE_ONLY)
    output = adapted(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss)
    for name, gradient in gradients(adapted).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_head_in_modules_to_save_is_the_copy_that_is_trained():
    model, batch = make_model(), make_batch()
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    copy = adapted.get_base_model().lm_head.modules_to_save["default"]
    with torch.no_grad():
        copy.weight.mul_(0.5)  # now the original head would give another loss
    loss, expected, _ = stock(adapted, batch)
    patch_model(adapted, CE_ONLY)
    output = adapted(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss)
    head = [name for name in expected if "lm_head" in name]
    assert head
    torch.testing.assert_close(copy.weight.grad, expected[head[0]], rtol=1e-4, atol=1e-6)


def _quantised():
    """torch's own dynamic quantisation, whose `weight` is a method."""
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class _Int8Linear(nn.Module):
    """What a quantised layer looks like from outside."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features, self.bias = 16, VOCABULARY, None
        self.register_buffer("weight", torch.zeros(VOCABULARY, 16, dtype=torch.int8))


def _with_head(head):
    model = make_model()
    model.lm_head = head
    return model


def _lora_on_head():
    return peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))


def _trained_rows():
    """peft's way to train some embeddings alone, of a head that is tied to them."""
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5])
    return peft.get_peft_model(make_model("llama-tied"), settings)


_BERT = {k: v for k, v in CONFIGS["gpt-neox"][1].items() if k not in ("bos_token_id", "eos_token_id")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: _with_head(_Int8Linear()),
            r"the head is a .*_Int8Linear, weight torch\.int8, not a plain floating",
        ),
        (lambda: _with_head(nn.Sequential(nn.Linear(16, VOCABULARY))), r"the head is a .*Sequential"),
        (_quantised, r"the head is a torch\.ao\..*quantized\.dynamic.*Linear, not a plain floating"),
        (_lora_on_head, "wrapped by an adapter .*modules_to_save"),
        (_trained_rows, r"trainable_token_indices .*its weight misses these rows.*ensure_weight_tying"),
        (
            lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_BERT)),
            "not a causal language model .*AutoModelForCausalLM",
        ),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=9, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
            ),
            "encoder-decoder",
        ),
        (lambda: nn.Linear(2, 2), "expected a Hugging Face causal language model .*got Linear"),
        (lambda: make_model().model, "LlamaModel is not a causal language model"),
        (
            lambda: transformers.BertLMHeadModel(transformers.BertConfig(**_BERT)),
            "BertLMHeadModel attends in both directions.*is_decoder=True",
        ),
    ],
)
def test_models_the_loss_would_be_wrong_for_are_refused(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        patch_model(make(), EXACT)


def test_training_past_the_patched_forward_is_an_error():
    model = make_model()
    patch = patch_model(model, MatrixLossConfig())
    batch = make_batch()
    model.train()
    model(**batch).loss.backward()
    model(input_ids=batch["input_ids"])
    with pytest.raises(BypassedLossError, match="trained past its own forward"):
        model.model(input_ids=batch["input_ids"])
    with torch.no_grad():
        model.model(input_ids=batch["input_ids"])
    model.eval().model(input_ids=batch["input_ids"])
    patch.remove()
    model.train().model(input_ids=batch["input_ids"])


@pytest.mark.parametrize("change", ["resized", "replaced"])
def test_a_head_that_was_replaced_after_the_patch_is_named(change):
    model = make_model("llama")
    patch_model(model, MatrixLossConfig())
    if change == "resized":
        model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    else:
        head = model.get_output_embeddings()
        model.set_output_embeddings(torch.nn.Linear(head.in_features, head.out_features, bias=False))
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(
        UnsupportedModelError, match="the output head was replaced after the model was patched"
    ):
        model(input_ids=ids, labels=ids)


def test_labels_that_are_not_one_a_token():
    model = make_model("llama")
    patch_model(model, MatrixLossConfig())
    with pytest.raises(LossInputError, match="there must be one label a token"):
        model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2]]))
