"""Every variant of adapters on every kind of head: what is trained, the value of the loss, and what is refused."""

import copy
import re

import peft
import pytest
import torch

from helpers.adapters import EVERY, HEADS, VARIANTS, adapted_model, lora_settings, trained_names
from helpers.models import make_batch, make_model
from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.finetuning.adapters import with_lora
from mce_llm.finetuning.configuration import parse_recipe
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.lm import MatrixLossConfig, TokenGeometry, patch_model, reference_matrix_cross_entropy
from mce_llm.running.settings import ConfigurationError

finetune = load_script("recipes/finetune.py")

EXACT = MatrixLossConfig(weight=0.7, support=None, order=16)


def definition(model, batch):
    """CE + λ·MCE from a stock model's own logits, through the dense losses."""
    model = model.double().eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    geometry = TokenGeometry.from_table(model.get_output_embeddings().weight, EXACT)
    matrix = reference_matrix_cross_entropy(logits, labels, geometry, EXACT)
    return (torch.nn.functional.cross_entropy(logits, labels) + EXACT.weight * matrix).item()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(("variant", "head"), EVERY)
def test_loss_is_that_of_the_merged_model(variant, head):
    model = adapted_model(variant, head)
    expected_names = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if "dora" in variant else set())
    saved = {
        "saved": {"lm_head"},
        "saved-tied": {"embed_tokens"},
    }  # of a tied pair peft trains the one as the other
    assert trained_names(model) == expected_names | saved.get(head, set())
    batch = make_batch()
    expected = definition(copy.deepcopy(model).merge_and_unload(), batch)
    assert abs(expected - definition(make_model(HEADS[head][0]), batch)) > 2e-3  # the base model's is another

    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    patch_model(model, EXACT)
    loss = model.train()(**batch).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())

    model.zero_grad()
    model.get_base_model().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for name, p in trained.items():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    for name, p in model.named_parameters():
        assert name in trained or torch.equal(p, frozen[name]), name


def test_gradients_are_those_of_the_stock_loss():
    """At weight 0 on DoRA with a whole head, against autograd through the stock model."""
    ours, stock = (adapted_model("dora", "saved") for _ in range(2))
    batch = make_batch()
    patch_model(ours, MatrixLossConfig(weight=0.0))
    ours(**batch).loss.backward()
    stock(**batch).loss.backward()
    for (name, a), b in zip(ours.named_parameters(), stock.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_scales_of_lora_and_rslora():
    """lora_alpha / r and lora_alpha / √r."""
    for variant, scale in (("lora", 3 / 2), ("rslora", 3 / 2**0.5)):
        layer = adapted_model(variant).get_base_model().model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == pytest.approx(scale)


def test_tied_embeddings_stay_tied():
    for name in ("lm_head", "embed_tokens", "lm_head, embed_tokens"):
        model = with_lora(make_model("llama-tied"), lora_settings(lora_modules_to_save=name))
        base = model.get_base_model()
        assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
        assert base.get_input_embeddings().weight.requires_grad
        patch = patch_model(model, MatrixLossConfig(), token_mask=torch.ones(61, dtype=torch.bool))
        assert patch.model is base


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        ("self_attn.q_proj", {"q_proj"}),
        (r".*layers\.1\.mlp\.(up|down)_proj", {"up_proj", "down_proj"}),
        ("all-linear", {f"{name}_proj" for name in ("q", "k", "v", "o", "up", "down", "gate")}),
        ("embed_tokens", {"embed_tokens"}),
    ],
)
def test_targets(targets, layers):
    model = with_lora(make_model(), lora_settings(lora_target_modules=targets))
    wrapped = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert wrapped == layers


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens", "norm,self_attn"])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_what_is_trained_is_float32_on_a_bfloat16_model(family, saved):
    model = with_lora(make_model(family).bfloat16(), lora_settings(lora_modules_to_save=saved))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    streams = []
    last = model.get_base_model().model.layers[1]
    last.register_forward_hook(lambda _, inputs, __: streams.append(inputs[0].dtype))
    patch = patch_model(model, MatrixLossConfig())
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**make_batch()).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
    assert streams == [torch.bfloat16] * 2  # the residual stream does not grow to float32
    patch.remove()
    assert (
        model(input_ids=make_batch()["input_ids"]).logits.isfinite().all()
    )  # generation runs without autocast


@pytest.mark.parametrize(
    ("changed", "patterns"),
    [
        ({"lora_alpha": 32}, ["lora_alpha without lora_r: set lora_r to the rank .* leave it out"]),
        (
            {
                "use_dora": True,
                "quantization": "4bit",
                "merge_adapters": True,
                "lora_modules_to_save": "lm_head",
            },
            [
                "quantization, lora_modules_to_save, use_dora, merge_adapters without lora_r: .* leave them out"
            ],
        ),
        (
            {"lora_r": 4, "lora_alpha": 0, "lora_dropout": 1.0, "quantization": "4bits"},
            [
                "lora_alpha must be positive, got 0",
                r"lora_dropout must be in \[0, 1\)",
                "got '4bits' .did you mean '4bit'",
            ],
        ),
        ({"lora_r": 4, "quantization": "8bit", "dtype": "auto"}, ["quantization needs a dtype"]),
        (
            {"lora_r": 4, "model_name_or_path": None, "model_config": "{model_type: llama}"}
            | {"tokenizer_name_or_path": "t"},
            ["lora_r with model_config: adapters would train beside random weights"],
        ),
    ],
)
def test_settings_that_cannot_be_used(changed, patterns):
    with pytest.raises(ConfigurationError) as caught:
        ModelArguments(**{"model_name_or_path": "m", **changed})
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)


def test_layers_may_be_lists_in_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: m\ndataset: d\noutput_dir: o\nuse_cpu: true\nlora_r: 4\n"
        "lora_target_modules: [q_proj, v_proj]\nlora_modules_to_save: [lm_head, norm]\n"
    )
    model = parse_recipe(["--config", str(path)]).model
    assert (model.lora_target_modules, model.lora_modules_to_save) == ("q_proj,v_proj", "lm_head,norm")


REFUSED = [
    ("llama", {"lora_target_modules": "q_proj,lm_head"}, "puts an adapter on the output head lm_head"),
    (
        "llama",
        {"lora_target_modules": "lm_head", "use_dora": True},
        "train it whole with lora_modules_to_save: lm_head",
    ),
    (
        "llama",
        {"lora_target_modules": r".*(q_proj|lm_head)"},
        r"\(q_proj\|lm_head\)' puts an adapter on the output head",
    ),
    ("gpt-neox", {"lora_target_modules": "lm_head"}, "take lm_head out"),
    ("llama-tied", {"lora_target_modules": "lm_head"}, "puts an adapter on the output head"),
    (
        "llama-tied",
        {"lora_target_modules": "q_proj,embed_tokens"},
        "model.embed_tokens, whose weight is the output head's",
    ),
    ("llama", {"lora_modules_to_save": "lm_haed"}, r"no layer 'lm_haed' \(did you mean 'lm_head'\?\)"),
    ("llama", {"lora_modules_to_save": "rotary_emb"}, "'rotary_emb' has no weights"),
    ("llama", {"lora_modules_to_save": "head,mpl"}, "no layer 'mpl'"),
    ("llama", {"lora_target_modules": "wq, wk"}, "lora_target_modules 'wq, wk': .*'w[qk]'.*not found"),
    ("llama", {"lora_target_modules": "norm"}, "lora_target_modules 'norm': .*not supported"),
    ("llama", {"lora_target_modules": ""}, "lora_target_modules '': "),
    ("mixtral-router", {"use_dora": True}, "use_dora"),
]


@pytest.mark.parametrize(("family", "changed", "pattern"), REFUSED)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_adapters_that_cannot_be_put_on(family, changed, pattern):
    with pytest.raises(ModelSourceError, match=pattern):
        with_lora(make_model(family), lora_settings(**changed))


@pytest.fixture
def without_data(monkeypatch):
    def read(*_, **__):
        raise AssertionError("data were read before the adapters were checked")

    monkeypatch.setattr(finetune, "tokenized", read)


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"lora_target_modules": "q_proj,lm_head"}, "puts an adapter on the output head"),
        ({"lora_target_modules": "lm_head", "use_dora": "true"}, "puts an adapter on the output head"),
        ({"lora_target_modules": ".*lm_head"}, "puts an adapter on the output head"),
        ({"lora_modules_to_save": "head,lm_haed"}, "no layer 'lm_haed'"),
        (
            {"lora_target_modules": "embed_tokens", "matrix_embeddings": "input"},
            "matrix_embeddings: input reads",
        ),
    ],
)
def test_refusals_come_before_data_and_weights(settings, without_data, monkeypatch, changed, pattern):
    monkeypatch.setattr(finetune, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ModelSourceError, match=pattern):
        finetune.main(words(settings, lora_r=2, **changed))


def test_the_check_comes_first_and_draws_no_random_numbers(settings, without_data):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(AssertionError, match="data were read"):
        finetune.main(words(settings, lora_r=2, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_input_geometry_under_an_embedding_adapter_is_refused_by_the_patch():
    model = with_lora(make_model(), lora_settings(lora_target_modules="embed_tokens"))
    patch_model(model, MatrixLossConfig(embeddings="input"))
    with pytest.raises(TypeError, match="input embeddings are wrapped by an adapter"):
        model(**make_batch())


def test_every_variant_is_another_model():
    logits = []
    for variant in VARIANTS:
        with torch.no_grad():
            logits.append(adapted_model(variant)(input_ids=make_batch()["input_ids"]).logits)
    for index, a in enumerate(logits):
        assert all((a - b).abs().max() > 1e-3 for b in logits[:index])
