"""Which rows of a head are tokens: padding that is nothing else stays out, and no label may be left out."""

import datasets
import pytest
import torch
import transformers

from helpers.models import VOCABULARY, make_batch, make_model
from helpers.monitored import Rows, arguments, collate
from mce_llm.data import train_tokenizer
from mce_llm.lm import (
    LossInputError,
    MatrixLossConfig,
    MatrixTrainer,
    TokenGeometry,
    UnsupportedModelError,
    linear_matrix_cross_entropy,
    patch_model,
    token_mask_of,
)
from mce_llm.lm.token_mask import tokenizer_in

EXACT = MatrixLossConfig(support=None, order=32, weight=0.7)
CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def make_tokenizer(**special):
    """One with `<|im_end|>` as its padding token, which is neither EOS nor anything else."""
    tokenizer = train_tokenizer(["what is it ? it is so"] * 3, vocab_size=262)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.pad_token = "<|im_end|>"
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


def model_for(tokenizer, **config):
    model = make_model(vocab_size=len(tokenizer) + 3)
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def left_out(tokenizer, **named):
    mask = token_mask_of(tokenizer, len(tokenizer) + 3, **named)
    return [i for i in range(len(tokenizer)) if not mask[i]]


def test_rows_that_are_no_tokens_and_padding_that_is_nothing_else_stay_out():
    tokenizer = make_tokenizer()
    mask = token_mask_of(tokenizer, len(tokenizer) + 3)
    assert left_out(tokenizer) == [tokenizer.pad_token_id]
    assert not mask[len(tokenizer) :].any()
    with pytest.raises(
        UnsupportedModelError,
        match=r"ids up to \d+, the model's head only 200 rows; set resize_embeddings: true",
    ):
        token_mask_of(tokenizer, 200)


@pytest.mark.parametrize("name", ["eos_token", "bos_token", "unk_token", "sep_token"])
def test_padding_with_another_special_token_hides_none(name):
    assert left_out(make_tokenizer(**{name: "<|im_end|>"})) == []


def test_padding_that_the_chat_template_writes_is_a_token():
    assert left_out(make_tokenizer(chat_template=CHATML)) == []
    assert left_out(make_tokenizer(chat_template={"default": "{{ 1 }}", "tools": CHATML})) == []
    other = make_tokenizer(chat_template=CHATML.replace("<|im_end|>", ""))
    assert left_out(other) == [other.pad_token_id]


def test_padding_that_ends_the_models_texts_is_a_token():
    tokenizer = make_tokenizer()
    padding, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert left_out(tokenizer, model=model_for(tokenizer)) == [padding]
    assert left_out(tokenizer, model=model_for(tokenizer, eos_token_id=padding)) == []
    assert left_out(tokenizer, model=model_for(tokenizer, eos_token_id=[end, padding])) == []
    model = model_for(tokenizer)
    model.generation_config.eos_token_id = [end, padding]
    assert left_out(tokenizer, model=model) == []


@pytest.mark.parametrize("column", ["labels", "input_ids"])
def test_padding_that_the_data_hold_is_a_token(column):
    tokenizer = make_tokenizer()
    padding = tokenizer.pad_token_id
    plain, held = [{column: [5, -100, 7]}, {column: []}], [{column: [5]}, {column: [-100, padding]}]
    for make in (datasets.Dataset.from_list, list, tuple):
        assert left_out(tokenizer, rows=[make(plain)]) == [padding]
        assert left_out(tokenizer, rows=[make(plain), make(held)]) == []
        assert left_out(tokenizer, rows=[None, {"a": make(plain), "b": make(held)}]) == []
    assert left_out(tokenizer, rows=[[{column: torch.tensor([1, padding])}]]) == []
    assert left_out(tokenizer, rows=[datasets.Dataset.from_list(held).select([0])]) == [padding]
    # A stream is not looked at, and inputs are no labels where there are labels.
    assert left_out(tokenizer, rows=[datasets.Dataset.from_list(held).to_iterable_dataset()]) == [padding]
    both = [{"input_ids": [padding], "labels": [-100]}]
    assert left_out(tokenizer, rows=[both]) == [padding]


def test_an_end_of_turn_that_pads_is_learnt(tmp_path):
    """At a label whose row is left out, the matrix loss would be the same whatever is predicted."""
    tokenizer = make_tokenizer(chat_template=CHATML)
    padding, model = tokenizer.pad_token_id, model_for(tokenizer)
    trainer = MatrixTrainer(model=model, args=arguments(tmp_path), processing_class=tokenizer)
    assert trainer.matrix_patch._token_mask[padding]
    mask, weight = trainer.matrix_patch._token_mask, model.lm_head.weight.detach()
    hidden, labels = torch.stack([weight[padding], -weight[padding]]) * 30, torch.tensor([padding])
    right, wrong = (
        linear_matrix_cross_entropy(one, weight, labels, EXACT, token_mask=mask).matrix_cross_entropy.item()
        for one in hidden.split(1)
    )
    assert right < 1.1
    assert wrong > 4


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_a_label_that_is_left_out_is_an_error(kind):
    model, batch = make_model(), make_batch()
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    mask[[5, 7]] = False
    batch["labels"][batch["labels"] == 5] = -100
    batch["labels"][1, 6] = 7
    patch_model(model, MatrixLossConfig(kind=kind), token_mask=mask)
    message = (
        r"token 7 is a label, but the token mask leaves it out .* would be the same whatever is predicted\. "
    )
    message += r"If it is the padding token and also learnt, pad with another one .*tokenizer.pad_token = "
    with pytest.raises(LossInputError, match=message):
        model(**batch)
    batch["labels"][batch["labels"] == 7] = -100
    assert torch.isfinite(model(**batch).loss)


def test_with_cross_entropy_alone_it_is_an_error_where_the_matrix_loss_is_measured():
    model, batch = make_model(), make_batch()
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    mask[7] = False
    batch["labels"][1, 6] = 7
    patch_model(model, MatrixLossConfig(weight=0.0), token_mask=mask)
    assert torch.isfinite(model(**batch).loss)
    model.eval()
    with torch.no_grad(), pytest.raises(LossInputError, match="token 7 is a label"):
        model(**batch)
    hidden, weight = torch.randn(2, 4), torch.randn(9, 4)
    for labels, message in (([1, 7], "token 7 is a label"), ([9, 7], r"labels must be in \[0, 9\)")):
        with pytest.raises(LossInputError, match=message):  # noqa: PT012 - the second raises at once
            output = linear_matrix_cross_entropy(
                hidden, weight, torch.tensor(labels), MatrixLossConfig(weight=0.0), token_mask=mask[:9]
            )
            output.matrix_cross_entropy  # noqa: B018


def test_a_phantom_row_as_a_label_is_an_error(tmp_path):
    """Rows of a padded vocabulary are no tokens, whatever the data say."""
    tokenizer = make_tokenizer()
    model = model_for(tokenizer)
    trainer = MatrixTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=Rows(4),
        data_collator=lambda rows: {
            **(batch := collate(rows)),
            "labels": torch.full_like(batch["labels"], len(tokenizer) + 1),
        },
        processing_class=tokenizer,
    )
    with pytest.raises(LossInputError, match=rf"token {len(tokenizer) + 1} is a label"):
        trainer.train()


class Processor(transformers.ProcessorMixin):
    """A processor of text alone."""

    attributes = ("tokenizer",)
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(self, tokenizer=None):
        super().__init__(tokenizer)


def test_a_processor_has_a_tokenizer_in_it(tmp_path):
    tokenizer = make_tokenizer()
    assert tokenizer_in(tokenizer) is tokenizer
    assert tokenizer_in(None) is None
    processor = Processor(tokenizer)
    assert tokenizer_in(processor) is tokenizer
    trainer = MatrixTrainer(model=model_for(tokenizer), args=arguments(tmp_path), processing_class=processor)
    mask = trainer.matrix_patch._token_mask
    assert mask.sum() == len(tokenizer) - 1


def test_phantom_rows_do_not_change_the_loss():
    model, batch = make_model(), make_batch()
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    mask[-1] = False
    batch["labels"][batch["labels"] == VOCABULARY - 1] = -100
    values = []
    for factor in (1.0, -3.0):
        with torch.no_grad():
            model.lm_head.weight[-1] *= factor
            model.lm_head.weight[-1] -= 0 if factor == 1.0 else 1.0
        patch = patch_model(model, EXACT, token_mask=mask)
        model(**batch)
        geometry = TokenGeometry.from_table(model.lm_head.weight, EXACT, mask)
        values.append(geometry.all_rows()[:-1])
        patch.remove()
    torch.testing.assert_close(values[0], values[1])
    with pytest.raises(ValueError, match="the head has 61 rows"):
        patch_model(model, EXACT, token_mask=mask[:-1])
