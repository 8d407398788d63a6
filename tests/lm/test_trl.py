"""MatrixSFTTrainer: MatrixTrainer's losses on the same tokens, TRL's own at weight 0, metrics, adapters, processes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

trl = pytest.importorskip("trl", minversion="1.0")

from helpers.sft import (  # noqa: E402
    ROWS,
    assert_same,
    assert_same_weights,
    common,
    logged,
    made,
    make_model,
    make_tokenizer,
    reference,
    trained,
)
from mce_llm.lm import MatrixLossConfig, MatrixSFTTrainer, patch_model  # noqa: E402

# TRL sets this one under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """MatrixTrainer with every row in every step."""
    return reference(tokenizer, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 64},
        {"token_metrics": False},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_completion_only_is_the_matrix_trainer_on_the_same_tokens(tokenizer, tmp_path, whole, changes):
    ours = trained(tokenizer, tmp_path, **changes)
    assert_same(ours, whole)
    assert bool(logged(ours, "entropy")) == changes.get("token_metrics", True)


def test_packed_rows_are_fewer_and_a_label_across_their_boundaries_would_show(tokenizer, tmp_path, whole):
    """Negative control for packing: with the first label of each sequence left in, the loss is another."""
    trainer = trained(tokenizer, tmp_path / "a", packing=True, max_length=64)
    assert len(trainer.train_dataset) < len(ROWS)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    starts = batch["position_ids"] == 0
    assert int(starts.sum()) == len(ROWS)
    assert (batch["labels"][starts] == -100).all()
    leaky = {**batch, "labels": torch.where(starts, batch["input_ids"], batch["labels"])}
    model = make_model(tokenizer)
    patch_model(model, MatrixLossConfig(), tokenizer=tokenizer)
    with torch.no_grad():
        right, wrong = (model(**b, use_cache=False).loss.item() for b in (batch, leaky))
        # Without the positions, every sequence sees those before it.
        mixed = model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss.item()
    expected = logged(whole, "loss")[0]
    assert right == pytest.approx(expected, rel=1e-5)
    assert abs(wrong - expected) > 1e-3 * expected
    assert abs(mixed - expected) > 1e-3 * expected


def test_whole_sequences(tokenizer, tmp_path):
    rows = [{"text": row["prompt"] + row["completion"]} for row in ROWS]
    assert_same(
        trained(tokenizer, tmp_path / "a", rows), reference(tokenizer, tmp_path / "b", mask_prompt=False)
    )


def test_assistant_only(tokenizer, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].strip()},
            ]
        }
        for row in ROWS
    ]
    ours = trained(tokenizer, tmp_path, rows, assistant_only_loss=True, max_steps=1)
    encoded = [
        tokenizer.apply_chat_template(
            row["messages"], return_assistant_tokens_mask=True, return_dict=True, tokenize=True
        )
        for row in rows
    ]
    model = make_model(tokenizer)
    patch = patch_model(model, MatrixLossConfig(), tokenizer=tokenizer)
    sums, count = torch.zeros(2), 0
    with torch.no_grad():
        for row in encoded:
            ids, mask = torch.tensor([row["input_ids"]]), torch.tensor([row["assistant_masks"]])
            model(input_ids=ids, labels=torch.where(mask == 1, ids, -100))
            sums += torch.stack([patch.last.cross_entropy_sum, patch.last.matrix_sum])
            count += patch.last.num_tokens
    assert 0 < count < sum(len(row["input_ids"]) for row in encoded) / 2
    assert [*logged(ours, "ce_loss"), *logged(ours, "mce_loss")] == pytest.approx(
        (sums / count).tolist(), rel=1e-5
    )


@pytest.mark.parametrize("accumulation", [1, 4])
def test_weight_zero_is_the_stock_sft_trainer(tokenizer, tmp_path, accumulation):
    changes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    evaluated = datasets.Dataset.from_list(ROWS[3:])
    over_labels = Version(trl.__version__) >= Version("1.12")
    ours = trained(tokenizer, tmp_path / "a", matrix_weight=0.0, eval_dataset=evaluated, **changes)
    stock = trained(
        tokenizer,
        tmp_path / "b",
        trainer_class=trl.SFTTrainer,
        config=trl.SFTConfig,
        eval_dataset=evaluated,
        loss_type="nll",
        **changes,
    )
    assert_same(ours, stock, ["loss", "num_tokens"])
    # TRL once took the entropy over all positions, and it weighs micro-batches alike, whatever their number of tokens.
    comparable = ["mean_token_accuracy"] + ["entropy"] * over_labels
    for name in comparable if accumulation == 1 else []:
        assert logged(ours, name) == pytest.approx(logged(stock, name), rel=1e-4)
    assert not logged(ours, "mce_loss")
    mine, theirs = ours.evaluate(), stock.evaluate()
    for name in ("eval_loss", *(["eval_entropy", "eval_mean_token_accuracy"] if over_labels else [])):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        ({"loss": "label_smoothing", "smoothing": 0.3}, {"ce_loss": 0.7, "smoothing_loss": 0.3}),
        ({"loss": "emo"}, {"ce_loss": 0.5, "emo_loss": 0.5}),
    ],
)
def test_other_losses_through_the_sft_trainer(tokenizer, tmp_path, changes, beside):
    trainer = trained(tokenizer, tmp_path, eval_dataset=datasets.Dataset.from_list(ROWS[3:]), **changes)
    total = sum(share * np.array(logged(trainer, name)) for name, share in beside.items())
    assert logged(trainer, "loss") == pytest.approx(total.tolist(), rel=1e-4)
    assert not logged(trainer, "mce_loss")
    metrics = trainer.evaluate()
    expected = sum(share * metrics[f"eval_{name}"] for name, share in beside.items())
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-12)
    assert metrics["eval_mce_loss"] > 0


@pytest.mark.parametrize(
    "changes", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "joined"]
)
def test_evaluation_is_over_all_labels(tokenizer, tmp_path, changes):
    rows, results = datasets.Dataset.from_list(ROWS[3:]), []
    for size in (1, 3, 8):
        trainer = made(
            tokenizer,
            tmp_path,
            eval_dataset=rows,
            matrix_weight=0.7,
            per_device_eval_batch_size=size,
            **changes,
        )
        results.append(trainer.evaluate())
    for metrics in results:
        total = metrics["eval_ce_loss"] + 0.7 * metrics["eval_mce_loss"]
        assert metrics["eval_loss"] == pytest.approx(total, rel=1e-12)
        for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
            assert metrics[name] == pytest.approx(results[0][name], rel=1e-6), name


def test_the_coefficient_of_the_routers_is_the_one_asked_for(tokenizer, tmp_path):
    """TRL writes it into the config, which the model has read by then."""
    if not hasattr(trl.SFTConfig, "router_aux_loss_coef"):
        pytest.skip("this version of TRL does not set it")
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, router_aux_loss_coef=0.5, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for asked, used in ((None, 0.5), (0.25, 0.25), (0.0, 0.0)):
        changes = {} if asked is None else {"router_aux_loss_coef": asked}
        model = transformers.MixtralForCausalLM(copy.deepcopy(config))
        trainer = trained(tokenizer, tmp_path, model=model, max_steps=1, **changes)
        (loss,), (ce,), (mce,) = (logged(trainer, name) for name in ("loss", "ce_loss", "mce_loss"))
        auxiliary = logged(trainer, "aux_loss") if used else [0.0]
        assert bool(logged(trainer, "aux_loss")) == bool(used)
        assert loss == pytest.approx(ce + mce + used * auxiliary[0], rel=1e-5)


def test_metrics_are_means_over_all_trained_tokens(tokenizer, tmp_path):
    ours = trained(
        tokenizer, tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    model, entropies, right = make_model(tokenizer).eval(), [], []
    for row in ROWS:
        prompt = len(tokenizer(row["prompt"])["input_ids"])
        ids = torch.tensor(
            tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        )
        with torch.no_grad():
            logits = model(ids[None]).logits[0, prompt - 1 : -1]
        entropies += torch.distributions.Categorical(logits=logits).entropy().tolist()
        right += (logits.argmax(-1) == ids[prompt:]).tolist()
    assert logged(ours, "entropy") == pytest.approx([sum(entropies) / len(entropies)], rel=1e-4)
    assert logged(ours, "mean_token_accuracy") == pytest.approx([sum(right) / len(right)], rel=1e-5)


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_adapters_made_by_the_trainer(tokenizer, tmp_path, modules_to_save):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=modules_to_save, task_type="CAUSAL_LM"
    )
    ours = made(tokenizer, tmp_path / "a", peft_config=config)
    wrapped = peft.get_peft_model(make_model(tokenizer), config)
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    wrapped.load_state_dict(before)
    ours.train()
    assert_same(ours, reference(tokenizer, tmp_path / "b", model=wrapped))
    moved = {n for n, p in ours.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("lora_B" in name for name in moved)
    assert any("lm_head.modules_to_save" in name for name in moved) == bool(modules_to_save)


def test_a_model_by_name(tokenizer, tmp_path, whole):
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    assert_same(trained(tokenizer, tmp_path / "run", model=str(tmp_path / "model")), whole)


def test_batch_kinds(tokenizer, tmp_path):
    changes = {"matrix_kind": "expected", "matrix_weight": 0.5}
    assert_same(
        trained(tokenizer, tmp_path / "a", **changes), reference(tokenizer, tmp_path / "b", **changes)
    )


def test_stock_config_with_a_matrix_loss(tokenizer, tmp_path, whole):
    trainer = MatrixSFTTrainer(
        make_model(tokenizer),
        trl.SFTConfig(**common(tmp_path)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
        matrix_loss=MatrixLossConfig(),
    )
    trainer.train()
    assert_same(trainer, whole)


def test_checkpoints_and_the_model_card(tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert_same_weights(loaded, trainer.model)
    card = (tmp_path / "README.md").read_text()
    assert "matrix-cross-entropy" in card
    assert f"| trl | {trl.__version__} |" in card


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from helpers.sft import logged, make_tokenizer, trained
from mce_llm.running.processes import leave_processes

out, rows = sys.argv[1:]
trainer = trained(make_tokenizer(), out, per_device_train_batch_size=int(rows))
if trainer.is_world_process_zero():
    torch.save(dict(trainer.model.state_dict()), out + "/weights.pt")
    names = ("loss", "ce_loss", "mce_loss", "entropy", "mean_token_accuracy", "num_tokens")
    log = {{name: logged(trainer, name) for name in names}}
    json.dump({{"world": trainer.accelerator.num_processes, "log": log}}, open(out + "/log.json", "w"))
leave_processes()
"""


@pytest.mark.slow
def test_two_processes_are_one(tokenizer, tmp_path):
    """Four rows on each of two ranks, with unequal numbers of trained tokens, are eight rows on one."""
    (tmp_path / "worker.py").write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "worker.py"), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "log.json").read_text())
    assert two["world"] == 2
    one = trained(tokenizer, tmp_path / "one")
    for name, values in two["log"].items():
        assert values == pytest.approx(logged(one, name), rel=1e-5), name
    weights = torch.load(tmp_path / "weights.pt")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_baseline_in_the_same_notebook(tokenizer, tmp_path):
    """TRL's own trainer, on a model that ours has had, trains TRL's own loss."""
    model = make_model(tokenizer)
    made(tokenizer, tmp_path / "a", model=model)
    stock = {"trainer_class": trl.SFTTrainer, "config": trl.SFTConfig}
    after = trained(tokenizer, tmp_path / "b", model=model, **stock)
    alone = trained(tokenizer, tmp_path / "c", **stock)
    assert logged(after, "loss") == logged(alone, "loss")
    assert_same_weights(after.model, alone.model)
    again = made(tokenizer, tmp_path / "d", model=model, matrix_weight=0.5)
    again.train()
    entry = next(entry for entry in again.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(entry["ce_loss"] + 0.5 * entry["mce_loss"], rel=1e-4)
