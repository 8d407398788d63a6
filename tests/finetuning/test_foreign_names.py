"""Names of settings in other tools get an answer that names one of ours."""

import re

import pytest

from mce_llm.finetuning.configuration import known_settings, parse_recipe
from mce_llm.finetuning.foreign_names import FOREIGN
from mce_llm.running.settings import ConfigurationError


@pytest.mark.parametrize("name", FOREIGN)
def test_every_name(name):
    assert name not in known_settings() or "set " not in FOREIGN[name]
    for ours in re.findall(r"\bset (\w+)", FOREIGN[name]):
        assert ours in known_settings()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cutoff_len", "cutoff_len is no setting here: set max_length"),
        ("base_model", "base_model is no setting here: set model_name_or_path"),
        ("revision", "revision is no setting here: set model_revision for the model, dataset_revision"),
        ("load_in_4bit", "load_in_4bit is no setting here: set quantization: 4bit"),
        (
            "label_smoothing",
            "label_smoothing is no setting here: set loss: label_smoothing, and smoothing to",
        ),
        ("val_set_size", "dataset_split: train[:95%]"),
        ("model_revison", "unknown setting 'model_revison' (did you mean 'model_revision'?)"),
    ],
)
def test_messages(name, message):
    with pytest.raises(ConfigurationError) as caught:
        parse_recipe(["--dataset=d", "--model_name_or_path=m", "--use_cpu", f"--{name}=1"])
    assert message in str(caught.value)
