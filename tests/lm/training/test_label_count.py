"""What a batch's loss is divided by: the labels of all micro-batches that something predicts, whatever the model's class says.

transformers' trainer asks the class: those of `accepts_loss_kwargs = False` (Gemma 4's and Qwen3-VL's among them) get the mean
of every micro-batch, and of those without a `loss_type` (GPT-2) the first label of every row is counted, which nothing
predicts.
"""

import pytest
import torch
import transformers

from helpers.models import make_model
from helpers.monitored import InOrder, arguments

LENGTHS = (2, 30, 4, 60)
WIDTH = 64


def vision_model():
    torch.manual_seed(0)
    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: 120 + number for number, name in enumerate(special)}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    )


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "n_positions": WIDTH, "n_embd": 32, "n_layer": 2, "n_head": 4}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropouts))


MODELS = {
    "llama": lambda: make_model("llama", vocab_size=128),
    "accepts no count": vision_model,
    "no loss_type": gpt2,
}


class Rows(torch.utils.data.Dataset):
    """Rows of few and of many labels; with `whole`, every token is one, the first included."""

    def __init__(self, whole=False):
        generator = torch.Generator().manual_seed(1)
        self._rows = []
        for trained in LENGTHS:
            ids = torch.randint(3, 100, (WIDTH,), generator=generator)
            labels = ids.clone()
            labels[: 0 if whole else -trained] = -100
            self._rows.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


class AsTheClassSays(InOrder):
    """The negative control: the stock trainer's choice."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        stock = transformers.Trainer(model=self.model, args=self.args)
        self.model_accepts_loss_kwargs = stock.model_accepts_loss_kwargs
        self._shifts = stock._loss_shifts_labels

    def _get_num_items_in_batch(self, batch_samples, device):
        if self._shifts:
            return super()._get_num_items_in_batch(batch_samples, device)
        return transformers.Trainer._get_num_items_in_batch(self, batch_samples, device)


def step(folder, name, rows_at_once, *, trainer=InOrder, whole=False):
    model = MODELS[name]()
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    trainer = trainer(
        model=model,
        args=arguments(
            folder,
            max_steps=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=len(LENGTHS) // rows_at_once,
            monitor_steps=0,
        ),
        train_dataset=Rows(whole),
    )
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    change = torch.cat([weight.detach().flatten() for weight in model.parameters()]) - before
    return log, change


def difference(one, other):
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_rows_are_one_batch_for_every_class(tmp_path, name):
    (whole, change), (parts, accumulated) = (
        step(tmp_path / str(rows), name, rows) for rows in (len(LENGTHS), 1)
    )
    assert difference(change, accumulated) < 1e-5
    for log in (whole, parts):
        assert log["loss"] == pytest.approx(log["ce_loss"] + log["mce_loss"], rel=1e-5)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_label_of_a_row_is_not_counted(tmp_path, name):
    log, _ = step(tmp_path, name, 2, whole=True)
    assert log["loss"] == pytest.approx(log["ce_loss"] + log["mce_loss"], rel=1e-5)


def test_what_the_class_says_would_be_another_loss(tmp_path):
    """The means of four micro-batches, and a loss that is too small by one token in 64."""
    whole, change = step(tmp_path / "a", "accepts no count", len(LENGTHS))
    parts, accumulated = step(tmp_path / "b", "accepts no count", 1, trainer=AsTheClassSays)
    assert difference(change, accumulated) > 0.5
    assert parts["loss"] != pytest.approx(whole["loss"], rel=1e-3)
    log, _ = step(tmp_path / "c", "no loss_type", 2, trainer=AsTheClassSays, whole=True)
    assert log["loss"] == pytest.approx((log["ce_loss"] + log["mce_loss"]) * (WIDTH - 1) / WIDTH, rel=1e-5)
