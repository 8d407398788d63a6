"""What each process of a test of tensor parallelism does: a model in one piece, and the same one spread over a mesh."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from helpers.models import make_batch, make_model
from mce_llm import MceLlmError
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.running.processes import join_processes, leave_processes

OUT = Path(sys.argv[1])
CONFIG = MatrixLossConfig(weight=0.7)
# A plan that leaves the head alone.
LAYERS = {
    "model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.layers.*.mlp.down_proj": RowwiseParallel(),
}
HEAD = {"lm_head": ColwiseParallel(output_layouts=Replicate())}


def replicated_head(model, mesh):
    head = model.lm_head
    weight = distribute_tensor(head.weight.detach(), mesh, [Replicate()])
    head.weight = torch.nn.Parameter(weight)


def head_in_plan(model, mesh):
    parallelize_module(model, mesh, {**LAYERS, **HEAD})


def layers_in_plan(model, mesh):
    parallelize_module(model, mesh, LAYERS)


def split_before_head(model, mesh):
    parallelize_module(model, mesh, {"model.norm": SequenceParallel()})


SPREAD = {
    "whole": lambda model, mesh: None,
    "head in plan": head_in_plan,
    "layers in plan": layers_in_plan,
    "replicated head": replicated_head,
    "split before head": split_before_head,
}


def full(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def seen(name, mesh, *, patched_first):
    """The loss and its gradients, or what is said in their place."""
    model = make_model(initializer_range=0.2, scale=1.0)
    try:
        if patched_first:
            patch_model(model, CONFIG)
        SPREAD[name](model, mesh)
        if not patched_first:
            patch_model(model, CONFIG)
        loss = model(**make_batch()).loss
        loss.backward()
    except MceLlmError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    gradients = {n: full(p.grad).tolist() for n, p in model.named_parameters()}
    return {"loss": loss.item(), "gradients": gradients}


def main():
    """Write seen-RANK.json: by what is spread, and whether the patch came first."""
    join_processes()
    mesh = init_device_mesh("cpu", (2,))
    found = {
        f"{name}, {when}": seen(name, mesh, patched_first=when == "patched first")
        for name in SPREAD
        for when in ("patched first", "patched last")
    }
    OUT.joinpath(f"seen-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    leave_processes()


main()
