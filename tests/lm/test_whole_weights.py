"""Tensor parallelism: a head that is split over ranks is refused in words, one that is whole trains as without."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from helpers.engines import output_of
from helpers.models import make_model
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.whole_weights import ShardedWeightError, check_whole, whole

WORKER = Path(__file__).parents[1] / "helpers" / "tensor_parallel_worker.py"


class Distributed(SimpleNamespace):
    """As much of a DTensor as is looked at."""

    def __init__(self, shape, *placements):
        mesh = SimpleNamespace(shape=shape, size=lambda axis: shape[axis])
        super().__init__(device_mesh=mesh, placements=placements)

    def to_local(self):
        return "its local tensor"


@pytest.mark.parametrize(
    ("shape", "placements"),
    [
        ((4,), (Replicate(),)),
        ((1,), (Shard(0),)),
        ((2, 1), (Replicate(), Shard(1))),
    ],
)
def test_what_every_rank_has_is_whole(shape, placements):
    assert whole(Distributed(shape, *placements), "it") == "its local tensor"


@pytest.mark.parametrize(
    ("shape", "placements", "found"),
    [
        ((2,), (Shard(0),), r"a DTensor placed as Shard\(dim=0\) over a mesh of 2 ranks"),
        ((8,), (Partial(),), r"Partial\(.*\) over a mesh of 8 ranks"),
        ((2, 4), (Replicate(), Shard(1)), r"Replicate\(\), Shard\(dim=1\) over a mesh of 2 × 4 ranks"),
    ],
)
def test_a_part_is_refused(shape, placements, found):
    pattern = rf"^the head's weight is split by tensor parallelism \(.*{found}\).*leave the head \(lm_head"
    with pytest.raises(ShardedWeightError, match=pattern):
        check_whole(Distributed(shape, *placements), "the head's weight")


@pytest.mark.parametrize(
    ("plan", "size", "refused"),
    [
        ("colwise_gather_output", 2, True),
        ("rowwise", 8, True),
        ("colwise_gather_output", 1, False),
        ("replicated_with_grad_allreduce", 2, False),
        ("colwise_rep", None, True),
        ("replicate", None, False),
        (None, 2, False),
    ],
)
def test_plain_rows_of_a_marked_head_are_refused(plan, size, refused):
    model = make_model()
    model.lm_head._hf_tp_plan = plan
    if size is not None:
        model.lm_head._hf_device_mesh = SimpleNamespace(size=lambda: size)
    if refused:
        with pytest.raises(ShardedWeightError, match=rf"its plan is '{plan}'"):
            patch_model(model, MatrixLossConfig())
    else:
        patch_model(model, MatrixLossConfig())


def test_a_plain_tensor_is_itself():
    tensor = torch.ones(2)
    assert whole(tensor, "it") is tensor


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """By what is spread over two processes: the loss and its gradients, or what is said in their place."""
    folder = tmp_path_factory.mktemp("tensor-parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    stderr = output_of([*command, str(WORKER), str(folder)], environment, 540)
    assert stderr is None, stderr[-6000:]
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("when", ["patched first", "patched last"])
@pytest.mark.parametrize(
    ("spread", "what"),
    [("head in plan", r"weight .*Shard\(dim=0\)"), ("split before head", r"input .*Shard\(dim=1\)")],
)
def test_a_split_head_is_refused_on_every_rank(seen, spread, what, when):
    pattern = rf"^ShardedWeightError: the head's {what}.* over a mesh of 2 ranks\)"
    for of_rank in seen:
        said = of_rank[f"{spread}, {when}"]["error"]
        assert re.match(pattern, said), said


@pytest.mark.parametrize("when", ["patched first", "patched last"])
@pytest.mark.parametrize("spread", ["layers in plan", "replicated head"])
def test_a_whole_head_trains_as_in_one_piece(seen, spread, when):
    for of_rank in seen:
        expected, got = of_rank["whole, patched first"], of_rank[f"{spread}, {when}"]
        # Sums over two ranks round otherwise.
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(
                torch.tensor(got["gradients"][name]), torch.tensor(gradient), rtol=1e-4, atol=1e-6
            )
