"""One process of `test_processes.py`: losses of unequal shares of one batch over gloo, written to disk.

`python ranks_worker.py RANK WORLD FOLDER`; the test imports the functions for what one process gives.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mce_llm.errors import MceLlmError
from mce_llm.vision.losses import LOSSES, build_loss, gathering

SHARES = (7, 4)  # rows of each rank
DIM = 6
CASES = {
    **{name: {"name": name} for name in LOSSES},
    "matrix_ssl, dim": {"name": "matrix_ssl", "form": "dim"},
    "matrix_ssl, exact": {"name": "matrix_ssl", "log": "exact"},
    "matrix_ssl, official": {"name": "matrix_ssl", "variant": "official"},
    "not gathered": {"name": "matrix_ssl", "variant": "official", "gather": False},
}


class Student(nn.Module):
    """Both views through one layer and batch statistics of none, so that only the loss mixes images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, DIM).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    def forward(self, images1, images2):
        return self.layer(images1).tanh(), self.layer(images2).tanh()


def batch():
    """Images of both views and the teacher's rows, all different."""
    generator = torch.Generator().manual_seed(2)
    widths = (5, 5, DIM, DIM)
    return [torch.randn(sum(SHARES), width, generator=generator, dtype=torch.float64) for width in widths]


def step(loss, model, rows, wrap=lambda model: model):
    """Value and gradients of one step; `wrap` makes the model data parallel."""
    images1, images2, p1, p2 = rows
    parallel = wrap(model)  # kept until the backward pass is over, or nothing is averaged
    value = loss(*parallel(images1, images2), p1, p2)
    value.backward()
    return value.item(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def plain_all_gather(tensors, problem=None, group=None):
    """What is often done: gather without gradient, and put the own rows back in."""
    first = sum(SHARES[: dist.get_rank()])
    gathered = gathering._GatherRows.apply(
        list(SHARES), dist.get_rank(), group, *(t.detach() for t in tensors)
    )
    for whole, own in zip(gathered, tensors, strict=True):
        whole[first : first + len(own)] = own
    return list(gathered)


def error_of(call):
    try:
        call()
    except MceLlmError as error:
        return type(error).__name__, str(error)
    return None


def second_derivative(rows):
    """What a gradient penalty on rows of one rank gets; on one process the loss can be differentiated twice."""
    z1, z2 = (row[:, : DIM - 1].clone().requires_grad_() for row in rows[:2])
    (gradient,) = torch.autograd.grad(build_loss("barlow_twins")(z1, z2), z1, create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return z1.grad


def refusals(rank):
    """What every rank says when rank 1 brings something else."""
    good = torch.randn(3, 4, generator=torch.Generator().manual_seed(rank))
    loss = build_loss("barlow_twins")

    def second(bad):
        return error_of(lambda: loss(bad, bad) if rank == 1 else loss(good, good))

    return {
        "dim": second(torch.randn(3, 5)),
        "dtype": second(good.bfloat16()),
        "shape": second(torch.randn(3, 4, 1)),
        "type": second(None),
        "nan": second(torch.full((2, 4), float("nan"))),
        "rows": error_of(lambda: loss(good[: 1 - rank], good[: 1 - rank])),
        "losses": error_of(
            lambda: build_loss("sim_siam")(good, good, good, good) if rank else loss(good, good)
        ),
        "none": second(good[:0]),
    }


def main():
    rank, world, folder = int(sys.argv[-3]), int(sys.argv[-2]), Path(sys.argv[-1])
    modules = [name for name in sys.modules if name.startswith("mce_llm.")]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    first = sum(SHARES[:rank])
    rows = [tensor[first : first + SHARES[rank]] for tensor in batch()]
    found = {}
    for case, options in CASES.items():
        found[case] = step(build_loss(**options), Student(), rows, DistributedDataParallel)
    import mce_llm.vision.losses.rows as rows_module

    own = rows_module.gather_rows
    rows_module.gather_rows = plain_all_gather
    found["plain all_gather"] = step(build_loss("matrix_ssl"), Student(), rows, DistributedDataParallel)
    rows_module.gather_rows = own
    found["twice"] = second_derivative(rows)
    group = dist.new_group([1])  # of one process: it has the loss of its own rows
    if rank == 1:
        found["own group"] = step(build_loss("matrix_ssl", process_group=group), Student(), rows)
    torch.save((found, refusals(rank), modules), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
