"""A YAML file and a command line become settings, or one message that names everything wrong."""

import json

import pytest
import yaml

from mce_llm.finetuning.configuration import parse_recipe
from mce_llm.lm import MatrixLossConfigError
from mce_llm.running.settings import ConfigurationError

LEAST = {"model_name_or_path": "some/model", "dataset": "data.jsonl", "use_cpu": True}


@pytest.fixture
def file(tmp_path):
    def write(**settings):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**LEAST, "output_dir": str(tmp_path / "out"), **settings}))
        return str(path)

    return write


def test_the_command_line_wins_over_the_file(file):
    path = file(learning_rate=2e-5, max_length=256, matrix_weight=0.5)
    recipe = parse_recipe(["--config", path, "--learning_rate", "1e-3", "--max_length=64"])
    assert recipe.training.learning_rate == 1e-3
    assert recipe.data.max_length == 64
    assert recipe.training.matrix_loss.weight == 0.5
    assert recipe.given["learning_rate"] == 1e-3
    assert recipe.given["max_length"] == 64
    assert recipe.given["matrix_weight"] == 0.5


def test_values_keep_their_kinds(file):
    recipe = parse_recipe(
        [
            "--config",
            file(
                columns={"question": "q", "response": "r"},
                packing=True,
                matrix_support=None,
                eval_dataset=None,
                lr_scheduler_kwargs={"num_cycles": 2},
                matrix_center=False,
                warmup_steps=0.03,
            ),
            "--resume",
            "false",
        ]
    )
    assert recipe.data.column_mapping == {"question": "q", "response": "r"}
    assert recipe.data.packing is True
    assert recipe.data.resume is False
    assert recipe.data.eval_dataset is None
    assert recipe.training.matrix_loss.support is None
    assert recipe.training.matrix_loss.center is False
    assert recipe.training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert recipe.training.warmup_steps == 0.03


def test_a_list_of_layers(file):
    recipe = parse_recipe(["--config", file(lora_target_modules=["q_proj", "v_proj"], lora_r=4)])
    assert recipe.model.lora_target_modules == "q_proj,v_proj"


def test_a_mapping_on_the_command_line(file):
    shape = {"model_type": "llama", "hidden_size": 16}
    recipe = parse_recipe(
        [
            "--config",
            file(model_name_or_path=None),
            f"--model_config={json.dumps(shape)}",
            "--tokenizer_name_or_path=here",
        ]
    )
    assert recipe.model.config_settings == shape


def test_what_was_given_can_be_given_again(file, tmp_path):
    path = file(model_name_or_path=None, model_config={"model_type": "llama"}, tokenizer_name_or_path="x")
    recipe = parse_recipe(["--config", path, "--matrix_support", "0", "--bf16", "false", "--run_name", "a b"])
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.given))
    again = parse_recipe(["--config", str(tmp_path / "again.yaml")])
    assert again.given == recipe.given
    assert again.model == recipe.model
    assert again.data == recipe.data
    assert again.training.matrix_loss == recipe.training.matrix_loss
    assert again.training.run_name == "a b"


UNUSED = "the launch asks for mixed_precision {} (--mixed_precision, or accelerate config), which is not used: the recipe has {}"


@pytest.mark.parametrize(
    ("launched", "settings", "used", "note"),
    [
        (None, {}, "no", None),
        ("no", {"bf16": True}, "bf16", None),
        ("bf16", {}, "bf16", "mixed precision: bf16, as the launch asks"),
        ("bf16", {"bf16": True}, "bf16", None),
        ("bf16", {"bf16": False}, "no", UNUSED.format("bf16", "bf16: false")),
        ("fp8", {"bf16": True}, "bf16", UNUSED.format("fp8", "bf16: true")),
        ("fp16", {"bf16": True}, "bf16", UNUSED.format("fp16", "bf16: true")),
        ("fp16", {}, "fp16", "mixed precision: fp16, as the launch asks"),
        ("fp16", {"bf16": False}, "fp16", "mixed precision: fp16, as the launch asks"),
    ],
)
def test_the_precision_of_the_launch(file, monkeypatch, launched, settings, used, note):
    """What the settings say is what is trained in, and nothing is left out unsaid."""
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    recipe = parse_recipe(["--config", file(**settings)])
    training = recipe.training
    assert ("bf16" if training.bf16 else "fp16" if training.fp16 else "no") == used
    assert training.mixed_precision == used
    assert recipe.precision_note == note


def test_total_batch_size(file, monkeypatch):
    path = file(total_batch_size=64, per_device_train_batch_size=4)
    assert parse_recipe(["--config", path]).training.gradient_accumulation_steps == 16
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ConfigurationError, match=r"multiple of 12 \(3 processes × per_device_train_batch_size 4\)"
    ):
        parse_recipe(["--config", path])


@pytest.mark.parametrize(
    ("settings", "patterns"),
    [
        ({"lerning_rate": 1}, [r"unknown setting 'lerning_rate' \(did you mean 'learning_rate'"]),
        ({"matrix_wieght": 1, "datset": "x"}, ["did you mean 'matrix_weight'", "did you mean 'dataset'"]),
        ({"learning_rate": "fast"}, ["invalid float value: 'fast'"]),
        ({"packing": "perhaps"}, ["packing.*perhaps"]),
        ({"model_config": {"model_type": "llama"}}, ["exactly one of model_name_or_path"]),
        ({"model_name_or_path": None}, ["exactly one of model_name_or_path"]),
        (
            {"model_name_or_path": None, "model_config": {"model_type": "llama"}},
            ["needs tokenizer_name_or_path"],
        ),
        (
            {"model_name_or_path": None, "model_config": {"hidden_size": 4}, "tokenizer_name_or_path": "x"},
            ["must name its model_type"],
        ),
        (
            {"model_name_or_path": None, "model_config": "llama", "tokenizer_name_or_path": "x"},
            ["model_config must be a mapping, got 'llama'"],
        ),
        ({"dtype": "int8"}, ["dtype must be auto, float32"]),
        ({"lora_r": -1}, ["lora_r must be 0"]),
        ({"lora_dropout": 1}, [r"lora_dropout must be in \[0, 1\)"]),
        (
            {"model_name_or_path": ".", "model_revision": "v2"},
            [r"model_revision 'v2': \. is on this machine, where there are no revisions"],
        ),
        (
            {"tokenizer_name_or_path": ".", "tokenizer_revision": "v2"},
            ["tokenizer_revision 'v2': .* or leave tokenizer_revision out"],
        ),
        ({"tokenizer_revision": "v2"}, ["tokenizer_revision without tokenizer_name_or_path"]),
        (
            {
                "model_name_or_path": None,
                "model_config": {"model_type": "llama"},
                "tokenizer_name_or_path": "x",
                "model_revision": "v2",
                "resize_embeddings": True,
            },
            ["model_revision without model_name_or_path", "resize_embeddings with model_config"],
        ),
        ({"prompt": "metamaht"}, [r"unknown prompt 'metamaht' \(did you mean 'metamath'"]),
        (
            {"max_length": 0, "limit": -1, "overlong": "cut"},
            ["max_length must", "limit must", "overlong must"],
        ),
        ({"columns": "question"}, ["columns must be a mapping"]),
        (
            {"total_batch_size": 10},
            [r"multiple of 8 \(1 processes × per_device_train_batch_size 8\), got 10"],
        ),
        ({"total_batch_size": 0}, ["multiple of 8 .*got 0"]),
        (
            {"total_batch_size": 8, "gradient_accumulation_steps": 2},
            ["one of total_batch_size and gradient_acc"],
        ),
        ({"eval_strategy": "sometimes"}, ["eval_strategy"]),
        ({"learning_rate": [1e-3, 1e-4]}, ["learning_rate takes one value, got a list of 2"]),
        ({"dataset": None}, ["dataset"]),
    ],
)
def test_settings_that_cannot_be_used(file, settings, patterns):
    for pattern in patterns:
        with pytest.raises(ConfigurationError, match=pattern):
            parse_recipe(["--config", file(**settings)])


def test_all_the_matrix_settings_that_are_wrong(file):
    with pytest.raises(MatrixLossConfigError, match=r"(?s)shrinkage must.*got 1\.2.*weight must.*got -1"):
        parse_recipe(["--config", file(matrix_weight=-1, matrix_shrinkage=1.2)])


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["--config"], "needs a file name"),
        (["--config", "{tmp}/none.yaml"], "no configuration file"),
        (["--config", "{tmp}"], "cannot read the configuration"),
        (["--config", "{tmp}/list.yaml"], "must hold a mapping"),
        (["--config", "{tmp}/broken.yaml"], "is not YAML"),
        (["--config", "{tmp}/latin.yaml"], "cannot read the configuration"),
        (["stray", "--max_length", "5"], "unexpected word 'stray'"),
        (["--model_name_or_path", "a", "--dataset", "b", "c", "--use_cpu", "true"], "c"),
        ([], "required: --dataset"),
    ],
)
def test_command_lines_that_cannot_be_used(tmp_path, argv, pattern):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [1,\nb")
    (tmp_path / "latin.yaml").write_bytes("prompt: plät".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=pattern):
        parse_recipe([word.replace("{tmp}", str(tmp_path)) for word in argv])
