"""Pictures beside text: handed on where the model takes them, refused where it would pass over them."""

import pytest
import torch
import transformers

from helpers.models import make_batch, make_model
from mce_llm.lm import (
    MatrixLossConfig,
    MatrixTrainer,
    MatrixTrainingArguments,
    UnsupportedModelError,
    check_model,
    patch_model,
)
from mce_llm.lm.checks.measurements import stir

_TEXT = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64}
_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_PICTURE = 60  # the id of a place of a picture


def gemma3():
    """A picture is one token wide."""
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=_TEXT,
        vision_config={**_TOWER, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        image_token_id=_PICTURE,
        boi_token_id=58,
        eoi_token_id=59,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def test_pictures_reach_a_model_that_takes_them():
    """At weight 0 loss and gradients, those of the picture's tower included, are the stock ones."""
    batch = make_batch(rows=2)
    batch["input_ids"][:, 1] = _PICTURE
    batch |= {
        "pixel_values": torch.randn(2, 3, 28, 28),
        "token_type_ids": (batch["input_ids"] == _PICTURE).long(),
    }
    model = gemma3().eval()
    stir(model)  # what makes tokens of a picture begins at zero
    stock = model(**batch)
    stock.loss.backward()
    tower = next(p for name, p in model.named_parameters() if name.endswith("patch_embedding.weight"))
    expected, tower.grad = tower.grad.clone(), None
    patch_model(model, MatrixLossConfig(weight=0))
    loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, stock.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tower.grad, expected, rtol=1e-3, atol=1e-7)
    assert expected.abs().max() > 0
    without = model(**{name: value for name, value in batch.items() if name != "pixel_values"}).loss
    assert abs(without - loss) > 1e-5  # they do matter


def test_pictures_for_a_text_model_are_refused():
    model = make_model()
    patch_model(model, MatrixLossConfig(weight=0))
    batch = {**make_batch(), "pixel_values": torch.randn(3, 3, 4, 4)}
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaForCausalLM takes no pixel_values, .* …ForConditionalGeneration"
    ):
        model(**batch)


def test_columns_of_pictures_for_a_text_model_are_refused(tmp_path):
    """`Trainer` would leave the column out without a word."""
    rows = [{"input_ids": [3, 4], "labels": [3, 4], "pixel_values": [[0.0]]}]
    with pytest.raises(UnsupportedModelError, match="takes no pixel_values"):
        MatrixTrainer(
            model=make_model(),
            args=MatrixTrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none"),
            train_dataset=rows,
        )


def test_text_through_a_multimodal_class():
    """It is no class of AutoModelForCausalLM, and its loss is that of one."""
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_TEXT},
        vision_config={"model_type": "pixtral", **_TOWER, "head_dim": 8, "image_size": 28, "patch_size": 14},
        image_token_id=_PICTURE,
    )
    assert check_model(transformers.Mistral3ForConditionalGeneration(config), packing=True).unchecked == ()
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        check_model(
            transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=16, d_ff=16, num_layers=1))
        )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"ignore_index": 0}, "ignore_index is 0, and labels that are not trained are -100"),
        ({"logits_to_keep": 4}, "logits_to_keep is 4 beside labels"),
        ({"logits_to_keep": torch.arange(2)}, "logits_to_keep is .* beside labels"),
    ],
)
def test_what_would_change_the_stock_loss_alone(argument, message):
    model, batch = make_model(), make_batch(rows=2)
    patch_model(model, MatrixLossConfig())
    with pytest.raises(ValueError, match=message):
        model(**batch, **argument)
    stock = {"ignore_index": -100, "logits_to_keep": 0}
    assert model(**batch, **stock).loss == model(**batch).loss
    unlabelled = {"input_ids": batch["input_ids"], "logits_to_keep": 1}
    assert model(**unlabelled).logits.shape[1] == 1
