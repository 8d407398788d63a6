"""Hub ids, offline: model, tokenizer and data set come from the caches that an earlier download filled."""

import json
import shutil

import datasets
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from helpers.recipes import RECIPES, logged, run_script, words

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder, tmp_path):
    """HF_HOME after `acme/tiny` and `openai/gsm8k` have been downloaded."""
    home = tmp_path / "home"
    model = home / "hub" / "models--acme--tiny"
    shutil.copytree(folder / "model", model / "snapshots" / REVISION)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    Parquet(
        cache_dir=str(home / "datasets"),
        dataset_name="gsm8k",
        config_name="main",
        hash=REVISION,
        data_files={split: str(tmp_path / "train.parquet") for split in ("train", "test")},
    ).download_and_prepare()
    # Where one from the hub lies; from files at hand it gets a folder that names them.
    (home / "datasets" / "gsm8k").rename(home / "datasets" / "openai___gsm8k")
    (prepared,) = (home / "datasets" / "openai___gsm8k").glob("main*")
    prepared.rename(prepared.with_name("main"))
    return {"HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1"}


def test_training_and_evaluation_from_the_caches(hub, settings, tmp_path):
    result = run_script(words(settings, model_name_or_path="acme/tiny", dataset="gsm8k"), **hub)
    assert result.returncode == 0, result.stderr
    assert "60 of 60" in result.stdout
    assert len(logged(settings["output_dir"], "loss")) == 2

    script = RECIPES.parent / "eval" / "gsm8k.py"
    options = {
        "model": "acme/tiny",
        "limit": 3,
        "prompt": "plain",
        "max_new_tokens": 4,
        "output": tmp_path / "e",
    }
    result = run_script(words(options), script=script, **hub)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["n"] == 3


@pytest.mark.slow
def test_what_is_in_no_cache(hub, settings):
    result = run_script(words(settings, model_name_or_path="acme/other", dataset="gsm8k"), **hub)
    assert result.returncode == 2
    assert "error: cannot load a tokenizer from 'acme/other'" in result.stderr
    result = run_script(words(settings, model_name_or_path="acme/tiny", dataset="metamathqa"), **hub)
    assert result.returncode == 2
    assert "error: the hub data set 'meta-math/MetaMathQA'" in result.stderr


UNREACHABLE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("missing", ["model", "dataset"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(missing, hub, settings):
    """No minute of retries: what is in the cache is used, and what is not is named."""
    named = {"model_name_or_path": "acme/tiny", "dataset": "gsm8k"}
    wrong = {"model": ("model_name_or_path", "acme/other"), "dataset": ("dataset", "acme/data")}[missing]
    result = run_script(words(settings, **{**named, wrong[0]: wrong[1]}), **{**hub, **UNREACHABLE})
    assert result.returncode == 2
    assert f"{wrong[1]} is not on this machine, and the hub cannot be reached (127.0.0.1: " in result.stderr
    assert "Retry" not in result.stderr
    assert "Traceback" not in result.stderr


def test_the_cache_does_without_a_hub_that_cannot_be_reached(hub, settings):
    result = run_script(
        words(settings, model_name_or_path="acme/tiny", dataset="gsm8k"), **{**hub, **UNREACHABLE}
    )
    assert result.returncode == 0, result.stderr
    assert "acme/tiny and others are taken from the cache" in result.stderr
    assert "Retry" not in result.stderr
