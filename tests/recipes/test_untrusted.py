"""Inputs from strangers: none of them gets to run code, to read outside its folder, or to end in a traceback.

Every input carries code, or a path, that would leave a file behind; what it gets is exit code 2 and a message.
"""

import json
import os
import pickle
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.data import write_jsonl

finetune = load_script("recipes/finetune.py")
run = finetune.run

CODE = """
import pathlib
pathlib.Path({canary!r}).write_text("ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, canary):
        self._canary = str(canary)

    def __reduce__(self):
        return (os.mkdir, (self._canary,))


def with_config(folder, **changed):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def pickled_weights(model, canary):
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(canary)}, model / "pytorch_model.bin")
    return {}


def code_of_the_model(model, canary):
    (model / "modeling.py").write_text(CODE.format(canary=str(canary)))
    names = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    with_config(model, auto_map=names, model_type="of_its_own")
    return {}


def code_of_the_tokenizer(model, canary):
    (model / "tokenization.py").write_text(CODE.format(canary=str(canary)))
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "OfItsOwn"}
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization.Tokenizer"]}
    path.write_text(json.dumps(settings))
    return {}


def shard_elsewhere(model, canary):
    weights = load_file(model / "model.safetensors")
    shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "../outside.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return {}


def index_that_is_none(model, canary):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    return {}


def code_in_the_recipe(model, canary):
    recipe = model.parent / "recipe.yaml"
    recipe.write_text(f'dataset: !!python/object/apply:os.mkdir ["{canary}"]\n')
    return {"config": recipe}


def pickled_data(model, canary):
    path = model.parent / "data.pkl"
    path.write_bytes(pickle.dumps([Payload(canary)]))
    return {"dataset": path}


def folder_of_pickles(model, canary):
    place = model.parent / "data"
    place.mkdir()
    (place / "train.pkl").write_bytes(pickle.dumps([Payload(canary)]))
    return {"dataset": place}


def loading_script(model, canary):
    place = model.parent / "scripted"
    place.mkdir()
    (place / "scripted.py").write_text(CODE.format(canary=str(canary)))
    return {"dataset": place}


def code_in_the_chat_template(model, canary):
    path = model / "tokenizer_config.json"
    attack = "{{ messages.__class__.__base__.__subclasses__() }}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": attack}))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    data = model.parent / "chat.jsonl"
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    write_jsonl([{"messages": turns}] * 4, data)
    return {"dataset": data, "prompt": "chat"}


def path_that_climbs(model, canary):
    (model.parent / "etc").mkdir()
    return {"model_name_or_path": "../../etc"}


def hub_id_that_climbs(model, canary):
    return {"model_name_or_path": "../../nowhere"}


TABLE = {
    pickled_weights: "its pickled weights hold more than tensors",
    code_of_the_model: "it comes with Python code of its own, which is not run; read that code first",
    code_of_the_tokenizer: "cannot load a tokenizer",
    shard_elsewhere: "names '../outside.safetensors', which is not a file in its own folder",
    index_that_is_none: "is no index of weight shards",
    code_in_the_recipe: "line 1 has a value of the kind tag:yaml.org,2002:python/object/apply:os.mkdir, which no setting takes",
    pickled_data: "cannot read .pkl; use ",
    folder_of_pickles: "data",
    loading_script: "scripted",
    code_in_the_chat_template: "chat template",
    path_that_climbs: "../../etc is not a model: it has no config.json",
    hub_id_that_climbs: "../../nowhere: there is no such directory",
}


@pytest.mark.parametrize("prepare", TABLE, ids=lambda function: function.__name__)
def test_nothing_runs_and_nothing_is_trained(folder, settings, tmp_path, monkeypatch, capsys, prepare):
    canary = tmp_path / "canary"
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    changed = prepare(model, canary)
    inside = tmp_path / "two" / "down"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert run(words({**settings, "model_name_or_path": model, **changed})) == 2
    message = capsys.readouterr().err
    assert TABLE[prepare] in message[message.index("error: ") :]
    assert not canary.exists()
    assert not (settings["output_dir"] / "model.safetensors").exists()


def test_the_canaries_would_sing(tmp_path):
    """What is refused above does what it is feared for, where it is let in."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "pickle")))
    yaml.unsafe_load(f'!!python/object/apply:os.mkdir ["{tmp_path / "yaml"}"]')
    exec(CODE.format(canary=str(tmp_path / "code")), {})
    assert {path.name for path in tmp_path.iterdir()} == {"pickle", "yaml", "code"}
