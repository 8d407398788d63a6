"""How file and command line come together: what wins, what counts as given, and what cannot be said."""

from dataclasses import fields

import pytest
import torch
import transformers
import yaml

from mce_llm.finetuning.configuration import parse_recipe
from mce_llm.lm import MatrixLossConfigError
from mce_llm.running.settings import ConfigurationError


@pytest.fixture
def parse(tmp_path):
    """parse_recipe on a file with some settings and a command line."""

    def call(*argv, **settings):
        least = {"model_name_or_path": "m", "dataset": "d", "use_cpu": True, "output_dir": str(tmp_path)}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**least, **settings}))
        return parse_recipe([f"--config={path}", *argv])

    return call


def test_given_is_what_was_meant(parse):
    """Names that YAML would take for numbers, numbers that it would take for names, switches, and mappings."""
    recipe = parse(
        *("--run_name", "010", "--dataset_name=1_0", "--learning_rate", "1e-5", "--packing", "--seed=3"),
        *("--columns", '{"question": "q"}'),
        learning_rate=0.1,
        logging_steps=7,
    )
    given = {"run_name": "010", "dataset_name": "1_0", "learning_rate": 1e-5, "packing": True, "seed": 3}
    given |= {"columns": {"question": "q"}, "logging_steps": 7}
    assert {name: recipe.given[name] for name in given} == given
    assert recipe.training.run_name == "010"
    again = parse(**recipe.given)
    assert again.given == recipe.given
    assert again.training.run_name == "010"
    assert again.data == recipe.data


def test_every_default_survives_a_file(parse):
    """What is a number, a word, a switch or a list stays one when it is written as YAML and read again."""
    usual = parse()
    known = {}
    for group in (usual.model, usual.data, usual.training):
        known |= {item.name: getattr(group, item.name) for item in fields(group) if item.init}
    # The parser makes these from what is given; transformers does not take their defaults back either.
    made = {"parallelism_config", "accelerator_config", "liger_kernel_config", "use_cpu", "output_dir"}
    words = {
        name: getattr(value, "value", value)
        for name, value in known.items()
        if value is not None and value != [] and name not in made
    }
    again = parse(**words)
    for group in (again.model, again.data, again.training):
        for item in fields(group):
            if item.name in words and item.name != "report_to":  # of which transformers makes a list
                assert getattr(group, item.name) == known[item.name], item.name


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("lr_scheduler_kwargs", "{min_lr: 1e-7, num_cycles: .5}", {"min_lr": 1e-7, "num_cycles": 0.5}),
        ("activation_checkpointing_kwargs", "{use_reentrant: false}", {"use_reentrant": False}),
        ("eval_strategy", "no", "no"),
        ("save_strategy", "no", "no"),
        ("run_name", "010", "010"),
        ("report_to", "[none]", []),
        ("optim_args", "{momentum: 1e-1, nesterov: true}", "momentum=0.1,nesterov=True"),
    ],
)
def test_values_in_a_file(tmp_path, name, written, meant):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model_name_or_path: m\ndataset: d\nuse_cpu: yes\noutput_dir: {tmp_path}\n{name}: {written}\n"
    )
    recipe = parse_recipe([f"--config={path}"])
    assert getattr(recipe.training, name) == meant
    assert recipe.training.use_cpu


def test_numbers_in_the_shape_of_a_model(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model_config: {{model_type: llama, rope_theta: 1e6}}\ntokenizer_name_or_path: t\ndataset: d\noutput_dir: {tmp_path}\n"
    )
    recipe = parse_recipe([f"--config={path}", "--use_cpu"])
    assert recipe.model.config_settings == {"model_type": "llama", "rope_theta": 1e6}


def test_the_last_of_a_repeated_flag_wins(parse):
    recipe = parse("--seed", "3", "--seed", "4")
    assert recipe.training.seed == recipe.given["seed"] == 4


@pytest.mark.parametrize("words", [["--matrix_weight", "-1e-3"], ["--matrix_weight=-1e-3"]])
def test_a_value_may_begin_with_a_minus(parse, words):
    with pytest.raises(MatrixLossConfigError, match=r"got -0\.001"):
        parse(*words)


def test_null_means_none_where_there_is_such_a_thing(parse):
    recipe = parse(matrix_support=None, limit=None, run_name=None)
    assert recipe.data.limit is None
    assert recipe.training.matrix_loss.support is None
    assert recipe.given["matrix_support"] is None


@pytest.mark.parametrize(
    "name", ["max_length", "prompt", "learning_rate", "lora_r", "matrix_shrinkage", "dataset"]
)
def test_null_where_a_value_is_needed(parse, name):
    with pytest.raises(ConfigurationError, match=f"{name} cannot be null; leave it out"):
        parse(**{name: None})


def test_the_accumulation_of_four_processes(parse, monkeypatch):
    # Asked for their device, the arguments would wait for the three others.
    monkeypatch.setattr(transformers.TrainingArguments, "device", torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    recipe = parse("--total_batch_size=32", per_device_train_batch_size=2)
    assert recipe.training.gradient_accumulation_steps == 4
    assert recipe.given["total_batch_size"] == 32
    assert "gradient_accumulation_steps" not in recipe.given
    with pytest.raises(ConfigurationError, match=r"multiple of 8 \(4 processes × .* 2\), got 12"):
        parse(total_batch_size=12, per_device_train_batch_size=2)


@pytest.mark.parametrize("steps", [1, 4])
def test_one_batch_size_at_a_time(parse, steps):
    """One accumulation step is the default, and still a contradiction when it is asked for."""
    with pytest.raises(ConfigurationError, match="one of total_batch_size and gradient_accumulation_steps"):
        parse(f"--gradient_accumulation_steps={steps}", total_batch_size=32)
    with pytest.raises(ConfigurationError, match="one of total_batch_size and gradient_accumulation_steps"):
        parse("--total_batch_size=32", gradient_accumulation_steps=steps)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        (
            {"per_device_train_batch_size": 0, "total_batch_size": 8, "gradient_accumulation_steps": -1},
            r"(?s)- per_device_train_batch_size must .*- gradient_accumulation_steps must .*got -1",
        ),
        ({"per_device_eval_batch_size": -2}, "per_device_eval_batch_size must be at least 1, got -2"),
        ({"max_steps": 1.5}, r"invalid int value: '1\.5'"),
        ({"use_cpu": "maybe"}, "use_cpu.*maybe"),
        ({"dataset": ["a", "b"]}, "dataset takes one value, got a list of 2"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16"),
    ],
)
def test_values_that_cannot_be_used(parse, settings, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        parse(**settings)


def test_bf16_on_a_machine_without(parse, monkeypatch):
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"bf16.*use_cpu"):
        parse(use_cpu=False, bf16=True)
    assert parse(use_cpu=True, bf16=True).training.bf16


def test_everything_unknown_is_named_at_once(parse):
    with pytest.raises(ConfigurationError) as caught:
        parse("--learning-rate", "1", "--zzzzz=2", matrix_wieght=0.5, seed=None)
    message = str(caught.value)
    assert message.count("\n- ") == 4
    for part in ("'matrix_wieght' (did you mean 'matrix_weight'?)", "(did you mean 'learning_rate'?)"):
        assert part in message
    assert message.splitlines()[3].endswith("'zzzzz'")
    assert "seed cannot be null" in message


def test_one_file_with_a_name(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot read the configuration ''"):
        parse_recipe(["--config="])
    (tmp_path / "a.yaml").write_text("dataset: d")
    with pytest.raises(ConfigurationError, match="unknown setting 'config'"):
        parse_recipe(["--config", str(tmp_path / "a.yaml"), "--config", "b.yaml"])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_ends_well(word, capsys):
    with pytest.raises(SystemExit) as left:
        parse_recipe([word, "--no_such_setting"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for name in ("--config", "--matrix_weight", "--lora_r", "--learning_rate", "--total_batch_size"):
        assert name in printed
