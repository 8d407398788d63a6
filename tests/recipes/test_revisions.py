"""A branch of a hub repository as the model: what is trained, recorded, merged and evaluated is that branch."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.recipes import RECIPES, run_script, words

COMMITS = {"main": "0" * 40, "v2": "2" * 40}


@pytest.fixture
def hub(folder, tmp_path):
    """HF_HOME with `acme/tiny` at main and at v2, whose weights are twice as large and whose tokenizer has a template."""
    home = tmp_path / "home"
    model = home / "hub" / "models--acme--tiny"
    (model / "refs").mkdir(parents=True)
    for branch, commit in COMMITS.items():
        shutil.copytree(folder / "model", model / "snapshots" / commit)
        (model / "refs" / branch).write_text(commit)
    second = model / "snapshots" / COMMITS["v2"]
    weights = load_file(second / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, second / "model.safetensors", {"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(second)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(second)
    (second / "README.md").write_text("---\nlicense: mit\n---\n")
    return {"HF_HOME": str(home)}


def test_a_branch_from_training_to_evaluation(hub, folder, settings, tmp_path):
    branch = {"model_name_or_path": "acme/tiny", "model_revision": "v2"}
    adapters = {"lora_r": 2, "merge_adapters": "true", "learning_rate": 1e-9}
    result = run_script(words(settings, **branch, **adapters), **hub)
    assert result.returncode == 0, result.stderr
    out = settings["output_dir"]
    assert json.loads((out / "adapter_config.json").read_text())["revision"] == COMMITS["v2"]
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0].content }}"
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert f"at commit `{COMMITS['v2']}`" in card
    assert f'from_pretrained("acme/tiny", revision="{COMMITS["v2"]}")' in card
    name = "model.layers.0.mlp.up_proj.weight"
    expected = 2 * load_file(folder / "model" / "model.safetensors")[name]
    torch.testing.assert_close(load_file(out / "merged" / "model.safetensors")[name], expected)

    script = tmp_path / "merge.py"
    script.write_text("import sys\nfrom mce_llm.cli import app\nsys.argv[1:1] = ['merge']\napp()\n")
    result = run_script([str(out), str(tmp_path / "later")], script=script, **hub)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(load_file(tmp_path / "later" / "model.safetensors")[name], expected)

    evaluation = {"limit": 2, "prompt": "plain", "max_new_tokens": 2, "data": folder / "held_out.jsonl"}
    hashes = {}
    for which, options in {"adapter": {"model": out}, "v2": {"model": "acme/tiny", "revision": "v2"}}.items():
        target = tmp_path / which
        result = run_script(
            words({**evaluation, **options, "output": target}),
            script=RECIPES.parent / "eval" / "gsm8k.py",
            **hub,
        )
        assert result.returncode == 0, result.stderr
        hashes[which] = json.loads((target / "config.json").read_text())
    assert hashes["v2"]["settings"]["revision"] == "v2"
    assert "revision" not in hashes["adapter"]["settings"]


def test_a_branch_that_is_not_there(hub, settings):
    branch = {"model_name_or_path": "acme/tiny", "model_revision": "v3"}
    result = run_script(words(settings, **branch), **hub)
    assert result.returncode == 2
    assert "error: cannot load a tokenizer from 'acme/tiny' at revision v3: " in result.stderr
    result = run_script(
        words(settings, **branch), HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", **hub
    )
    assert result.returncode == 2
    assert "acme/tiny at revision v3 is not on this machine, and the hub cannot be reached" in result.stderr


def test_going_on_with_another_branch_is_refused(hub, settings):
    usual = {"model_name_or_path": "acme/tiny", "save_strategy": "steps", "save_steps": 1}
    assert run_script(words(settings, **usual, max_steps=1), **hub).returncode == 0
    again = words(settings, **usual, model_revision="v2", max_steps=2)
    shutil.rmtree(settings["output_dir"] / "runs", ignore_errors=True)
    (settings["output_dir"] / "train_results.json").unlink()
    (settings["output_dir"] / "model.safetensors").unlink()
    result = run_script(again, **hub)
    assert result.returncode == 2
    assert "model_revision null → v2" in result.stderr
