"""Rows that are added to embeddings are the same in every process and under every engine."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.recipes import RECIPES, run_script, words

pytestmark = pytest.mark.slow

# What each of two processes loads where FSDP would have the second load no weights.
LOADING = """
import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import set_seed
from transformers.integrations.fsdp import is_fsdp_enabled
from mce_llm.finetuning.models import load_model, tokenizer_of
from mce_llm.finetuning.settings import ModelArguments

torch.distributed.init_process_group("gloo")
assert is_fsdp_enabled()
rank = torch.distributed.get_rank()
settings = ModelArguments(**json.loads(sys.argv[1]))
set_seed(7)
model = load_model(settings, tokenizer_of(settings))
assert is_fsdp_enabled()  # what follows finds it as it was
save_file(dict(model.named_parameters()), f"{sys.argv[2]}/rank-{rank}.safetensors")
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def longer(folder, settings, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    tokenizer.save_pretrained(tmp_path / "longer")
    return {**settings, "tokenizer_name_or_path": tmp_path / "longer", "resize_embeddings": "true"}


@pytest.mark.parametrize("adapters", [{}, {"lora_r": 2, "lora_modules_to_save": "embed_tokens,lm_head"}])
def test_two_processes_of_zero3_end_where_one_ends(longer, adapters, tmp_path):
    pytest.importorskip("deepspeed")
    file = RECIPES / "accelerate" / "zero3.yaml"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2")
    found = {}
    for name, words_before, rows in (("one", (), 4), ("two", (*launcher, "--main_process_port", "0"), 2)):
        batch = {"total_batch_size": 4, "per_device_train_batch_size": rows, "output_dir": tmp_path / name}
        result = run_script(words({**longer, **adapters, **batch}), words_before, DS_ACCELERATOR="cpu")
        assert result.returncode == 0, result.stderr[-4000:]
        assert result.stdout.count("resize_embeddings: 3 rows added") == 1
        weights = "adapter_model" if adapters else "model"
        found[name] = load_file(tmp_path / name / f"{weights}.safetensors")
    assert found["one"].keys() == found["two"].keys()
    for name, weight in found["one"].items():
        torch.testing.assert_close(found["two"][name], weight, rtol=1e-3, atol=2e-6, msg=name)


def test_every_process_of_fsdp_loads_the_whole_model(longer, folder, tmp_path):
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    settings = {
        "model_name_or_path": str(folder / "model"),
        "tokenizer_name_or_path": str(longer["tokenizer_name_or_path"]),
        "resize_embeddings": True,
    }
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    result = run_script([json.dumps(settings), str(tmp_path)], launcher, script=script, **environment)
    assert result.returncode == 0, result.stderr[-4000:]
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert first["model.embed_tokens.weight"].shape[0] == 303
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
