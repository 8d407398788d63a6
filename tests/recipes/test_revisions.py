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


# Each a script of the package with its command line, in one process: what it costs is to start them.
CHAIN = """
import json, sys
sys.path.insert(0, sys.argv[1])
from helpers.scripts import load_script
from typer.testing import CliRunner
from mce_llm.cli import app

for script, arguments in json.loads(sys.argv[2]):
    if script == "merge":
        result = CliRunner().invoke(app, ["merge", *arguments])
        assert result.exit_code == 0, result.output
    else:
        loaded = load_script(script)
        assert getattr(loaded, "run", getattr(loaded, "main", None))(arguments) == 0, script
"""


def test_a_branch_from_training_to_evaluation(hub, folder, settings, tmp_path):
    branch = {"model_name_or_path": "acme/tiny", "model_revision": "v2"}
    adapters = {"lora_r": 2, "merge_adapters": "true", "learning_rate": 1e-9}
    out = settings["output_dir"]
    evaluation = {"limit": 2, "prompt": "plain", "max_new_tokens": 2, "data": folder / "held_out.jsonl"}
    chain = [
        ("recipes/finetune.py", words(settings, **branch, **adapters)),
        ("merge", [str(out), str(tmp_path / "later")]),
        ("eval/gsm8k.py", words(evaluation, model=out, output=tmp_path / "adapter")),
        ("eval/gsm8k.py", words(evaluation, model="acme/tiny", revision="v2", output=tmp_path / "v2")),
    ]
    script = tmp_path / "chain.py"
    script.write_text(CHAIN)
    result = run_script([str(RECIPES.parent / "tests"), json.dumps(chain)], script=script, **hub)
    assert result.returncode == 0, result.stderr

    assert json.loads((out / "adapter_config.json").read_text())["revision"] == COMMITS["v2"]
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0].content }}"
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert f"at commit `{COMMITS['v2']}`" in card
    assert f'from_pretrained("acme/tiny", revision="{COMMITS["v2"]}")' in card
    name = "model.layers.0.mlp.up_proj.weight"
    expected = 2 * load_file(folder / "model" / "model.safetensors")[name]
    for merged in (out / "merged", tmp_path / "later"):
        torch.testing.assert_close(load_file(merged / "model.safetensors")[name], expected)
    recorded = {
        which: json.loads((tmp_path / which / "config.json").read_text())["settings"]
        for which in ("adapter", "v2")
    }
    assert recorded["v2"]["revision"] == "v2"
    assert "revision" not in recorded["adapter"]


def test_a_branch_that_is_not_there(hub, settings):
    branch = {"model_name_or_path": "acme/tiny", "model_revision": "v3"}
    result = run_script(words(settings, **branch), **hub)
    assert result.returncode == 2
    assert "error: cannot load a tokenizer from 'acme/tiny' at revision v3: " in result.stderr
