"""Monitoring as a recipe asks for it, and access tokens, which end up in no file and no message."""

import pytest
import yaml

from helpers.recipes import run_script, words
from mce_llm.finetuning.configuration import parse_recipe

CANARY = "hf_canaryCANARYcanary0123456789"


def test_lists_from_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: m\ndataset: d\nuse_cpu: true\nreport_to: [tensorboard]\n"
        "sample_steps: 5\nsample_prompts:\n  - Two and two\n  - Three --and\n"
    )
    training = parse_recipe(["--config", str(path), "--output_dir", str(tmp_path)]).training
    assert training.report_to == ["tensorboard"]
    assert training.sample_prompts == ["Two and two", "Three --and"]
    overridden = parse_recipe(["--config", str(path), "--sample_prompts", "One", "--report_to", "none"])
    assert (overridden.training.sample_prompts, overridden.training.report_to) == (["One"], [])


@pytest.mark.slow
def test_a_run_with_samples_shows_no_token_in_any_file_or_message(settings, tmp_path):
    """Interrupted and resumed with another token, since a resumed run says which settings are others."""
    changes = {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    changes |= {"sample_steps": 1, "sample_max_new_tokens": 4, "hub_token": CANARY}
    first = run_script(words(settings, **changes))
    assert first.returncode == 0, first.stderr
    output = tmp_path / "out"
    record = yaml.safe_load((output / "recipe.yaml").read_text())
    assert "hub_token" not in record
    assert record["sample_steps"] == 1
    samples = (output / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 2 * 4
    for name in ("train_results.json", "model.safetensors"):
        (output / name).unlink()
    again = run_script(words(settings, **{**changes, "max_steps": 3, "hub_token": CANARY + "other"}))
    assert again.returncode == 0, again.stderr
    assert "max_steps" in again.stdout
    for text in (first.stdout, first.stderr, again.stdout, again.stderr):
        assert CANARY not in text
    for path in output.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
