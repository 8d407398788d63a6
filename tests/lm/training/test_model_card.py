"""The model card: metadata that parses, every setting of the loss, only measured results, nobody's text overwritten."""

import json
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub import ModelCard

from helpers.models import make_batch, make_model
from mce_llm.lm import MatrixLossConfig, MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.config import Kind, Loss
from mce_llm.lm.training.card_facts import DataRecord, hub_id, shown
from mce_llm.lm.training.card_text import LOSS_TEXT, SETTING_MEANINGS, code
from mce_llm.lm.training.model_card import MARKER

NASTY = 'a|b: "c" `d` --- {e} # [f](g)\n---\n<!-- h'
DATA = (
    DataRecord("train", "acme/sums", "train[:50%]", 8, "plain", 72),
    DataRecord("eval", "acme/held-out", "test", 4, "plain", 36),
)


def rows(count):
    batch = make_batch(count, 10)
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(count)]


def make_trainer(folder, model=None, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_pin_memory": False,
        **changes,
    }
    trainer = MatrixTrainer(
        model=model or make_model(),
        args=MatrixTrainingArguments(**settings),
        train_dataset=rows(8),
        eval_dataset=rows(4),
    )
    trainer.data_records = DATA
    return trainer


def card_of(folder):
    return ModelCard.load(Path(folder) / "README.md")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny-sums"
    trainer = make_trainer(folder, matrix_weight=0.3, matrix_shrinkage=0.07, seed=11)
    trainer.train()
    trainer.measured = trainer.evaluate()
    trainer.save_model()
    return trainer


def test_metadata_is_what_the_hub_reads(trained):
    card = card_of(trained.args.output_dir)
    card.data.to_yaml()
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.datasets == ["acme/sums"]
    assert card.data.tags == ["generated_from_trainer", "matrix-cross-entropy"]
    assert (card.data.license, card.data.language, card.data.base_model) == (None, None, None)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"ce_loss", "mce_loss"}
    assert results["ce_loss"].metric_value == trained.measured["eval_ce_loss"]
    assert (results["ce_loss"].dataset_type, results["ce_loss"].dataset_split) == ("acme/held-out", "test")


def test_loss_settings_training_data_and_versions(trained):
    text = card_of(trained.args.output_dir).text
    assert "L = CE + λ · MCE(P, Q), MCE(P, Q) = tr(−P log Q + Q)" in text
    for name, value in trained.args.matrix_loss.to_dict().items():
        assert f"| `{name}` | `{json.dumps(value)}` |" in text
    for fact in (
        "`4 rows = 1 processes × 2 rows × 2 accumulation steps`",
        "| seed | `11` |",
        "`2 of 2`",
        "| `acme/sums`",
        "`train[:50%]`",
        "| 8 | 72 |",
    ):
        assert fact in text, fact
    assert f"`eval_mce_loss` | {trained.measured['eval_mce_loss']:.4g}" in text
    assert "Evaluation on `acme/held-out (test)` after step 2" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "| torch | " in text
    assert "arXiv:2305.17326" in text
    assert str(Path(trained.args.output_dir).parent) not in text


def test_every_kind_and_every_setting_has_a_text():
    assert set(SETTING_MEANINGS) == set(MatrixLossConfig().to_dict())
    assert set(LOSS_TEXT) == {*get_args(Kind), *get_args(Loss)} - {"mce"}


def test_what_was_not_measured_is_not_in_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    card = card_of(tmp_path)
    assert card.data.eval_results is None
    assert "The saved weights were not evaluated in this run." in card.text
    trainer.evaluate()
    trainer.state.global_step += 1  # trained on after the evaluation
    trainer.save_model()
    assert "not evaluated in this run" in card_of(tmp_path).text


def test_the_best_model_is_shown_with_its_own_evaluation(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        learning_rate=3.0,  # the later, the worse
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 4
    trainer.save_model()
    text = card_of(tmp_path).text
    assert f"after step {best}:" in text
    measured = next(e for e in trainer.state.log_history if e["step"] == best and "eval_loss" in e)
    assert f"`eval_loss` | {measured['eval_loss']:.4g} |" in text
    assert trainer.evaluate()["eval_loss"] == pytest.approx(measured["eval_loss"])


def test_cross_entropy_alone_is_called_that(tmp_path):
    trainer = make_trainer(tmp_path, matrix_weight=0.0)
    trainer.save_model()
    card = card_of(tmp_path)
    assert "matrix-cross-entropy" not in card.data.tags
    assert "cross-entropy alone (λ = 0)" in card.text


@pytest.mark.parametrize(
    ("settings", "tag", "said"),
    [
        ({"loss": "ce"}, None, ["trained with cross-entropy alone", "Cross-entropy alone."]),
        (
            {"loss": "label_smoothing", "smoothing": 0.2},
            "label-smoothing",
            [
                "label-smoothed cross-entropy",
                "L = (1−s) · CE + s · S",
                "| `smoothing` | `0.2` |",
                "smoothing_loss",
            ],
        ),
        (
            {"loss": "emo"},
            "emo",
            ["earth mover's distance (EMO)", "| `emo_weight` | `0.5` |", "ren2024emo", "`eval_emo_distance`"],
        ),
    ],
)
def test_another_loss_is_called_by_its_name(tmp_path, settings, tag, said):
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    card = card_of(tmp_path)
    assert card.data.tags == ["generated_from_trainer", *([tag] if tag else [])]
    for text in [*said, "`eval_mce_loss`", "evaluated as matrix cross-entropy"]:
        assert text in card.text, text
    assert "this loss is the formulation of mce-llm" not in card.text
    assert ("ren2024emo" in card.text) == (tag == "emo")


def test_strings_with_markdown_and_yaml_in_them(tmp_path):
    trainer = make_trainer(tmp_path, optim_args=None)
    trainer.data_records = (DataRecord("train", NASTY, NASTY, 3, NASTY), DataRecord("eval", NASTY, NASTY))
    trainer.evaluate()
    trainer.create_model_card(model_name=NASTY, tags=[NASTY, "no"], license="other: [x", dataset=NASTY)
    card = card_of(tmp_path)
    assert card.data.tags[-2:] == [NASTY, "no"]
    assert card.data.license == "other: [x"
    assert card.data.datasets is None  # it is no hub id
    assert card.text.count("\n# ") == 1
    assert "\n---\n" not in card.text
    lines = [line for line in card.text.splitlines() if line.startswith("| train |")]
    assert len(lines) == 1
    assert lines[0].replace("\\|", "").count("|") == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "`plain`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a\nb", "`a b`"),
        ("a|b", "`a\\|b`"),
        ("", "`  `"),
    ],
)
def test_code_spans(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    "user_text", ["# Mine\n\nAbout it.\n", "---\nlicense: mit\n---\n\n# Mine\n", "\xff not utf-8"]
)
def test_somebody_elses_card_stays(tmp_path, user_text):
    peft = pytest.importorskip("peft")
    adapters = peft.get_peft_model(
        make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for name, model in (("plain", None), ("adapters", adapters)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "README.md").write_text(user_text, encoding="latin-1")
        trainer = make_trainer(folder, model)
        trainer.save_model()
        trainer.create_model_card()
        assert (folder / "README.md").read_text(encoding="latin-1") == user_text


def test_somebody_elses_card_comes_back_after_a_save_that_was_killed(tmp_path):
    (tmp_path / "_README.md.kept").write_text("# Mine\n")
    (tmp_path / "README.md").write_text("[More Information Needed]\n" * 40)  # of peft, from that save
    make_trainer(tmp_path).save_model()
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert not (tmp_path / "_README.md.kept").exists()


def test_our_own_card_is_renewed(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.save_model()
    assert MARKER in card_of(tmp_path).text
    assert "`0 of " in card_of(tmp_path).text
    trainer.train()
    trainer.save_model()
    assert "`2 of 2`" in card_of(tmp_path).text


@pytest.mark.filterwarnings("ignore:Could not find a config file in acme/tiny")
@pytest.mark.filterwarnings("ignore:Unable to fetch remote file")  # peft asks the hub for the base's config
def test_adapters_say_what_they_go_on(tmp_path):
    peft = pytest.importorskip("peft")
    make_model().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    for source, base, root in (
        (str(tmp_path / "base"), None, '"path/to/base"'),
        ("acme/tiny", "acme/tiny", '"acme/tiny"'),
    ):
        model = make_model()
        model.config._name_or_path = model.name_or_path = source
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        trainer = make_trainer(tmp_path / "out", peft.get_peft_model(model, config))
        trainer.save_model()
        card = card_of(tmp_path / "out")
        assert card.data.library_name == "peft"
        assert card.data.base_model == base
        assert card.data.get("base_model_relation") == (base and "adapter")
        assert card.data.license == (None if base else "apache-2.0")
        assert f"base = AutoModelForCausalLM.from_pretrained({root})" in card.text
        assert "`LORA, rank 2`" in card.text
        assert str(tmp_path) not in card.text


@pytest.mark.parametrize(
    ("name", "found", "text"),
    [
        ("gpt2", "gpt2", "gpt2"),
        ("meta-math/MetaMathQA", "meta-math/MetaMathQA", "meta-math/MetaMathQA"),
        ("/data/private/set.jsonl", None, "set.jsonl"),
        ("~/models/base/", None, "base"),
        ("../up", None, "up"),
        ("a/b/c", None, "c"),
    ],
)
def test_hub_ids_and_paths(name, found, text):
    assert hub_id(name) == found
    assert shown(name) == text
