"""Packing that nothing but the collator shows: the model is checked for it when the trainer is made, or at the first batch."""

import pytest
import torch
import transformers

from helpers.models import make_model
from helpers.monitored import Rows, arguments
from mce_llm.lm import MatrixTrainer, UncheckedModelWarning, UnsupportedModelError
from mce_llm.lm.checks.for_training import PackedBatches


def bloom():
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)
    )


def end_to_end(rows):
    """A collator of one's own."""
    batch = {name: torch.cat([row[name] for row in rows])[None] for name in ("input_ids", "labels")}
    lengths = [len(row["input_ids"]) for row in rows]
    return {**batch, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


def trainer(folder, model, collator, **changes):
    return MatrixTrainer(
        model=model,
        args=arguments(folder, max_steps=1, monitor_steps=0, **changes),
        train_dataset=Rows(4),
        eval_dataset=Rows(4),
        data_collator=collator,
    )


def test_the_flattening_collator_is_known(tmp_path):
    collator = transformers.DataCollatorWithFlattening()
    with pytest.raises(
        UnsupportedModelError, match=r"packing: examples in one row see each other.*or take a collator"
    ):
        trainer(tmp_path, bloom(), collator)
    trainer(tmp_path, make_model(), collator).train()


def test_another_one_is_noticed_at_the_first_batch(tmp_path):
    made = trainer(tmp_path, bloom(), end_to_end)
    with pytest.raises(UnsupportedModelError, match="packing: examples in one row see each other"):
        made.train()
    with pytest.raises(UnsupportedModelError, match="packing: examples in one row see each other"):
        trainer(tmp_path, bloom(), end_to_end).evaluate()
    trainer(tmp_path, make_model(), end_to_end).train()


def test_bounds_without_positions_are_packing_too(tmp_path):
    def bounded(rows):
        batch = end_to_end(rows)
        del batch["position_ids"]
        return {**batch, "cu_seq_lens_q": torch.tensor([0, 10, 20])}

    with pytest.raises(UnsupportedModelError, match="packing"):
        trainer(tmp_path, bloom(), bounded).evaluate()


def test_positions_of_single_examples_are_no_packing(tmp_path):
    args, model = arguments(tmp_path), bloom()
    positions = torch.arange(8).expand(2, 8)
    packed = torch.arange(4).repeat(2)[None]
    watch = PackedBatches(announced=False)
    for batch in (
        {"input_ids": positions},
        {"position_ids": positions},
        {"position_ids": positions.expand(3, 2, 8)},
        {"position_ids": packed, "attention_mask": torch.ones(1, 8)},
        {"position_ids": packed[:, :1]},
    ):
        watch.look(model, args, batch)
    PackedBatches(announced=True).look(model, args, {"position_ids": packed})  # checked before
    with pytest.raises(UnsupportedModelError, match="packing"):
        watch.look(model, args, {"position_ids": packed})


def test_a_check_that_is_left_out_is_said_then(tmp_path):
    with pytest.warns(UncheckedModelWarning, match="sees no later tokens is taken on trust"):
        made = trainer(tmp_path, make_model(), end_to_end, model_check=False)
    with pytest.warns(UncheckedModelWarning, match="keeps packed examples apart is taken on trust"):
        made.train()
