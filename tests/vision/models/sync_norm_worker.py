"""One of two processes that normalise unequal parts of a batch together; started by test_sync_norm.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mce_llm.vision.models import synchronise_norms

dist.init_process_group("gloo")
rank, folder = dist.get_rank(), Path(sys.argv[1])
job = torch.load(folder / "job.pt", weights_only=False)
results = {}
for name, (module, rows, weights) in job.items():
    part = slice(0, 5) if rank == 0 else slice(5, None)
    # The control is each process by its own statistics.
    norm = module if name.endswith("-alone") else synchronise_norms(module, torch.device("cpu"))
    x = rows[part].clone().requires_grad_()
    out = norm(x)
    (first,) = torch.autograd.grad((out * weights[part]).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), x, retain_graph=True)
    (out * weights[part]).sum().backward()
    gradients = {n: p.grad.clone() for n, p in norm.named_parameters()}
    for value in gradients.values():
        dist.all_reduce(value)
    results[name] = (out.detach(), x.grad, gradients, norm.state_dict(), second)
torch.save(results, folder / f"result-{rank}.pt")
dist.barrier()
dist.destroy_process_group()
