"""Batch norms over processes that have unequal parts of the batch, on the CPU."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mce_llm.vision.models import BackboneError, ProcessBatchNorm, synchronise_norms

WORKER = Path(__file__).with_name("sync_norm_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("norms")
    torch.manual_seed(0)
    job = {}
    for name, norm, shape in [
        ("rows", nn.BatchNorm1d(4), (13, 4)),
        ("images", nn.BatchNorm2d(4), (13, 4, 3, 2)),
        ("plain", nn.BatchNorm1d(4, affine=False, momentum=None), (13, 4)),
    ]:
        norm = norm.double()
        # The two parts of the batch have other means, so that statistics of a part alone are plainly wrong.
        rows = torch.randn(shape, dtype=torch.float64) + torch.arange(13.0).view(-1, *[1] * (len(shape) - 1))
        job[name] = (norm, rows, torch.randn(shape, dtype=torch.float64))
    job["rows-alone"] = copy.deepcopy(job["rows"])
    torch.save(job, folder / "job.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [torch.load(folder / f"result-{rank}.pt") for rank in (0, 1)]
    expected = {}
    for name, (norm, rows, weights) in job.items():
        whole = copy.deepcopy(norm)
        x = rows.clone().requires_grad_()
        out = whole(x)
        (first,) = torch.autograd.grad((out * weights).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), x, retain_graph=True)
        (out * weights).sum().backward()
        expected[name] = (out.detach(), x.grad, dict(whole.named_parameters()), whole.state_dict(), second)
    return parts, expected


@pytest.mark.parametrize("name", ["rows", "images", "plain"])
def test_two_processes_are_one(results, name):
    parts, expected = results
    out, gradient, parameters, state, second = expected[name]
    torch.testing.assert_close(torch.cat([p[name][0] for p in parts]), out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([p[name][1] for p in parts]), gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([p[name][4] for p in parts]), second, rtol=1e-10, atol=1e-12)
    for part in parts:
        for key, value in parameters.items():
            torch.testing.assert_close(part[name][2][key], value.grad, rtol=1e-12, atol=1e-12)
        for key, value in state.items():
            torch.testing.assert_close(part[name][3][key], value, rtol=1e-12, atol=1e-12)


def test_without_it_two_processes_are_not_one(results):
    parts, expected = results
    out = torch.cat([p["rows-alone"][0] for p in parts])
    assert (out - expected["rows-alone"][0]).norm() > 0.1 * out.norm()


def test_names_and_weights_stay():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.Flatten(), nn.BatchNorm1d(4)
    )
    state = module.state_dict()
    parameters = list(module.parameters())
    converted = synchronise_norms(module, torch.device("cpu"))
    assert converted.state_dict().keys() == state.keys()
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert sum(isinstance(m, ProcessBatchNorm) for m in converted.modules()) == 2


def test_alone_it_is_an_ordinary_batch_norm():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    ours = synchronise_norms(copy.deepcopy(norm), torch.device("cpu"))
    x = torch.randn(5, 4, 2, 2)
    assert torch.equal(ours(x), norm(x))
    assert torch.equal(ours.running_var, norm.running_var)
    assert torch.equal(ours.eval()(x), norm.eval()(x))


def test_a_librarys_own_norm_is_refused():
    from timm.layers import BatchNormAct2d

    with pytest.raises(BackboneError, match="BatchNormAct2d cannot be synchronised"):
        synchronise_norms(nn.Sequential(BatchNormAct2d(4)), torch.device("cpu"))
