"""A patch among other replacements of `forward`: what it found is called, and is there again after removal."""

import copy
import functools
import inspect
import pickle

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState
from peft.utils.other import ModulesToSaveWrapper
from torch.optim.swa_utils import AveragedModel

from helpers.models import make_batch, make_model
from mce_llm.lm import (
    BypassedLossError,
    MatrixLossConfig,
    PatchedModelError,
    UnsupportedModelError,
    patch_model,
)
from mce_llm.lm.heads import find_head

CONFIG = MatrixLossConfig(weight=0.7)


def expected_loss(batch=None, scale=20.0):
    model = make_model(scale=scale)
    patch_model(model, CONFIG)
    return model(**(batch or make_batch())).loss


def wrapped(model, factor=1.0, wraps=True):
    """Set a forward on the instance as other libraries do; it scales the logits. Returns it and its list of calls."""
    found, calls = model.forward, []

    def forward(*args, **kwargs):
        calls.append(kwargs)
        output = found(*args, **kwargs)
        if output.logits is not None:
            output.logits = output.logits * factor
        return output

    model.forward = functools.wraps(found)(forward) if wraps else forward
    return model.forward, calls


@pytest.mark.parametrize("wraps", [True, False])
def test_a_forward_on_the_instance_is_called_and_comes_back(wraps):
    model, batch = make_model(), make_batch()
    names = list(inspect.signature(model.forward).parameters)
    theirs, calls = wrapped(model, wraps=wraps)
    patch = patch_model(model, CONFIG)
    before = len(calls)
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    torch.testing.assert_close(model(batch["input_ids"], labels=batch["labels"]).loss, expected_loss())
    assert len(calls) == before + 2
    assert list(inspect.signature(model.forward).parameters) == names, "Trainer picks columns by these names"
    patch.remove()
    assert model.__dict__["forward"] is theirs
    assert "forward" not in model.lm_head.__dict__


def test_scaled_logits_are_part_of_the_loss():
    model, batch = make_model(), make_batch()
    wrapped(model, factor=0.5)
    assert find_head(model).logit_scale == 0.5
    patch = patch_model(model, MatrixLossConfig(weight=0.0))
    labels = batch["labels"][:, 1:].flatten()
    loss = model(**batch).loss
    patch.remove()
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels))


def test_a_forward_set_later_is_not_destroyed():
    model, batch = make_model(), make_batch()
    patch = patch_model(model, CONFIG)
    ours = model.__dict__["forward"]
    theirs, calls = wrapped(model)
    with pytest.raises(
        PatchedModelError,
        match=r"model's forward was replaced after the patch, by .*test_instance_forward\.py",
    ):
        patch.remove()
    assert model.__dict__["forward"] is theirs
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    assert len(calls) == 1, "a refused removal changes nothing"
    with pytest.raises(UnsupportedModelError, match="patched already"):
        patch_model(model, CONFIG)
    model.forward = ours
    patch.remove()
    assert "forward" not in model.__dict__
    patch.remove()  # a second time it has nothing to do
    again = patch_model(model, CONFIG)
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    patch.remove()
    assert model._matrix_loss_patch is again, "and takes nothing off that is not its own"


def test_a_forward_set_on_the_head_later_is_not_destroyed():
    model = make_model()
    patch = patch_model(model, CONFIG)
    ours = model.lm_head.forward
    model.lm_head.forward = lambda hidden: ours(hidden)
    with pytest.raises(
        PatchedModelError,
        match=r"head's forward was replaced after the patch, by .*test_instance_forward\.py",
    ):
        patch.remove()
    model(**make_batch())
    assert patch.last is not None, "the model is still patched"
    model.lm_head.forward = ours
    patch.remove()


def test_a_replaced_forward_of_the_head_is_refused():
    model = make_model()
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: own(hidden) * 2
    with pytest.raises(
        UnsupportedModelError, match=r"head's forward was replaced on the instance .*del head\.forward"
    ):
        patch_model(model, CONFIG)
    assert "_matrix_loss_patch" not in model.__dict__
    model.lm_head.forward = own  # the class's, bound
    patch = patch_model(model, CONFIG)
    torch.testing.assert_close(model(**make_batch()).loss, expected_loss())
    patch.remove()
    assert model.lm_head.__dict__["forward"] == own


class _Counting(ModelHook):
    """Counts the forwards that it stands around."""

    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("on", ["model", "head"])
@pytest.mark.parametrize("order", ["hook first", "patch first"])
@pytest.mark.parametrize("off", ["hook first", "patch first"])
def test_hooks_of_accelerate_run_and_come_off_in_any_order(on, order, off):
    model, batch, hook = make_model(), make_batch(), _Counting()
    module = model if on == "model" else model.lm_head
    if order == "patch first":
        patch = patch_model(model, CONFIG)
    add_hook_to_module(module, hook)
    if order == "hook first":
        patch = patch_model(model, CONFIG)
    before = hook.calls
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    assert hook.calls == before + 1
    if off == "hook first":
        remove_hook_from_module(module)
        torch.testing.assert_close(model(**batch).loss, expected_loss())
        patch.remove()
    else:
        patch.remove()
        model(**batch)
        assert hook.calls == before + 2
        remove_hook_from_module(module)
    calls = hook.calls
    stock = make_model()(**batch)
    output = model(**batch)
    assert torch.equal(output.logits, stock.logits)
    assert torch.equal(output.loss, stock.loss)
    assert hook.calls == calls
    assert not any("_matrix_loss" in name for name in {*model.__dict__, *model.lm_head.__dict__})


@pytest.fixture
def fresh_accelerate():
    """A process has one AcceleratorState; the one that other tests have left may be of another precision."""
    AcceleratorState._reset_state(reset_partial_state=False)
    yield
    AcceleratorState._reset_state(reset_partial_state=False)


@pytest.mark.usefixtures("fresh_accelerate")
def test_mixed_precision_of_accelerate_is_unwrapped_to_the_patch():
    model, batch = make_model(), make_batch()
    patch = patch_model(model, CONFIG)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(model)
    prepared(**batch)
    assert patch.last is not None
    with pytest.raises(PatchedModelError, match=r"after the patch, by .*accelerate.*unwrap_model"):
        patch.remove()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    patch.last = None
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    assert patch.last is not None
    patch.remove()
    assert torch.equal(model(**batch).loss, make_model()(**batch).loss)


# Dynamo looks at .grad of every tensor that it guards, and torch 2.6 warns about Python 3.13.0.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_forward_gives_the_loss_of_every_batch():
    model = make_model()
    compiled = model.forward = torch.compile(model.forward, backend="aot_eager")
    patch = patch_model(model, CONFIG)
    for batch in (make_batch(), make_batch(seed=5), make_batch(rows=2, length=9)):
        torch.testing.assert_close(model(**batch).loss, expected_loss(batch))
    patch.remove()
    assert model.forward is compiled


def test_a_copy_of_a_patched_model_computes_its_own_loss():
    model, batch = make_model(), make_batch()
    patch = patch_model(model, CONFIG)
    seen = []
    patch.observer = seen.append
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(0.5)
    torch.testing.assert_close(twin(**batch).loss, expected_loss(scale=10.0))
    assert patch.last is None
    assert not seen
    with pytest.raises(BypassedLossError):
        twin.model(input_ids=batch["input_ids"])
    twin._matrix_loss_patch.remove()
    twin.model(input_ids=batch["input_ids"])
    assert "forward" not in twin.__dict__
    torch.testing.assert_close(model(**batch).loss, expected_loss())
    assert len(seen) == 1
    torch.testing.assert_close(AveragedModel(model)(**batch).loss, expected_loss())


def test_a_copy_of_the_head_is_a_head():
    model, batch = make_model(), make_batch()
    patch_model(model, CONFIG)
    copied = copy.deepcopy(model.lm_head)
    hidden = torch.ones(1, 16)
    assert torch.equal(copied(hidden), model.lm_head(hidden))
    # peft trains such a copy in the head's place when adapters are added after the patch.
    model.lm_head = ModulesToSaveWrapper(model.lm_head, "default")
    with pytest.raises(
        UnsupportedModelError, match="the output head was replaced after the model was patched"
    ):
        model(**batch)


def test_pickling_a_patched_model_is_refused():
    model = make_model()
    patch = patch_model(model, CONFIG)
    with pytest.raises(PatchedModelError, match=r"cannot be pickled; call remove\(\)"):
        pickle.dumps(model)
    patch.remove()
    pickle.loads(pickle.dumps(model))
