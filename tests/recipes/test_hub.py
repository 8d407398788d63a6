"""Models and data sets by their hub ids, from a cache that an earlier download would have left; nothing is online."""

import shutil

import datasets
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from helpers.recipes import logged, run_script, words

COMMIT = "0" * 40


@pytest.fixture
def home(folder, tmp_path):
    """A HF_HOME with the model someone/tiny-llama and the data set openai/gsm8k in it."""
    home = tmp_path / "home"
    model = home / "hub" / "models--someone--tiny-llama"
    shutil.copytree(folder / "model", model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    download = tmp_path / "main" / "train.parquet"
    datasets.Dataset.from_json(str(folder / "data.jsonl"), cache_dir=str(tmp_path)).to_parquet(download)
    # What load_dataset does with the files once it has them.
    builder = Parquet(
        cache_dir=str(home / "datasets"),
        repo_id="openai/gsm8k",
        dataset_name="gsm8k",
        config_name="main",
        hash=COMMIT,
        data_files={"train": [str(download)]},
    )
    builder.download_and_prepare()
    prepared = home / "datasets" / "openai___gsm8k"
    print([p.relative_to(home) for p in prepared.rglob("*")])
    return home


def test_hub_ids(home, settings):
    settings |= {"model_name_or_path": "someone/tiny-llama", "dataset": "gsm8k"}
    result = run_script(words(settings), HF_HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert "examples                   60 of 60" in result.stdout
    assert len(logged(settings["output_dir"], "mce_loss")) == 2

    result = run_script(
        words(settings, overwrite="true", model_name_or_path="someone/else"), HF_HOME=str(home)
    )
    assert result.returncode == 2
    assert "error: cannot load a tokenizer from 'someone/else'" in result.stderr
