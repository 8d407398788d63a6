"""How many bytes of tensors are alive, operation by operation: what a device's allocator would see, on any device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes while it is active.

    Attributes:
        live: Bytes alive now of storages made inside.
        peak: The most there were since `reset_peak`.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()
        self._sizes = {}

    def reset_peak(self):
        self.peak = self.live

    def exclude(self, *tensors):
        """Do not count these, which were there before."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs or {}))
            if isinstance(leaf, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), given)
        return result

    def _note(self, storage, given):
        key = storage._cdata
        if key in given or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key):
        self.live -= self._sizes.pop(key)


def checkpoint_activations(model):
    """Turn gradient checkpointing on, under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
