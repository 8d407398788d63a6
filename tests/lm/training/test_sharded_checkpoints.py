"""FSDP2: a run that goes on from a checkpoint ends with the weights of one that nothing interrupted, to the last bit."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.engines import run_engine
from mce_llm.lm.training.checkpoints import CheckpointError, newest_whole
from mce_llm.lm.training.manifest import problem_of


def run(folder, state_dict_type, **more):
    arguments = {
        "output_dir": str(folder),
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "monitor_steps": 0,
    }
    return {"arguments": arguments, "state_dict_type": state_dict_type, **more}


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("state_dict_type", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_goes_on_as_if_nothing_had_happened(tmp_path, state_dict_type):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    runs = {
        "whole": run(whole, state_dict_type),
        "resumed": run(resumed, state_dict_type, resume=str(whole / "checkpoint-2")),
    }
    got = run_engine(tmp_path / "work", "fsdp2", 2, runs)
    assert problem_of(whole / "checkpoint-2") is None
    assert newest_whole(whole, engine="fsdp")[0] == whole / "checkpoint-4"
    with pytest.raises(CheckpointError, match="was saved by 'fsdp', and this launch is 'plain'"):
        newest_whole(whole, engine="plain")
    assert (
        got["resumed"][0][0]["loss"] == got["whole"][0][0]["loss"]
    )  # those of the first two steps are restored
    assert got["resumed"][0][0]["sharded"] > 0
    for name, value in got["whole"][1].items():
        assert torch.equal(got["resumed"][1][name], value), name
    if state_dict_type == "FULL_STATE_DICT":
        saved = load_file(whole / "checkpoint-4" / "model.safetensors")
        assert all(torch.equal(value, got["whole"][1][name]) for name, value in saved.items())
