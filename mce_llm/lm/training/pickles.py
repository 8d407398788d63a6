"""Load checkpoints without running code: the globals that their pickles reference are checked before loading.

`torch.save` and PyTorch's distributed checkpoints write pickles, and a pickle can call any function. transformers
loads them with `weights_only=True`, which can not; DeepSpeed does not, nor does the reader of a distributed
checkpoint's index. Here all loads of a training run are held to it, and the few classes that DeepSpeed's files do need
are let through by name.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import torch

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import cause

_SUFFIXES = (".pt", ".pth", ".bin")
_INDEX = ".metadata"  # of a distributed checkpoint: a pickle by itself, loaded by pickle
_NEVER_LOADED = ("training_args.bin",)
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load at every call

_NUMPY_CORE = "numpy._core" if numpy.lib.NumpyVersion(numpy.__version__) >= "2.0.0" else "numpy.core"
_NUMPY = {  # the state of numpy's random numbers, in rng_state*.pth
    f"{_NUMPY_CORE}.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
}
_DEEPSPEED = {  # settings that stand beside the optimizer's tensors
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
_INDEX_NAMES = {  # which tensor lies where in the files of a distributed checkpoint
    *(f"torch.{name}" for name in ("Size", "device")),
    *(f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePosixPath")),  # Python 3.13's
    "collections.OrderedDict",
    "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


class UnsafeCheckpointError(MceLlmError, RuntimeError):
    """A file of a checkpoint would run code when it is loaded; nothing of it has been loaded."""


def unsafe_file(checkpoint: Path) -> str | None:
    """Check the globals that every pickle of a checkpoint references, without loading any.

    Args:
        checkpoint: Its folder.

    Returns:
        The first file that references other globals than the allowed ones, with their names; or None.
    """
    with torch.serialization.safe_globals(_classes(_NUMPY | _DEEPSPEED)):
        for path in sorted(checkpoint.rglob("*")):
            if not path.is_file() or path.name in _NEVER_LOADED:
                continue
            if path.name == _INDEX:
                names = _names_in_index(path)
            elif path.suffix in _SUFFIXES:
                names = _names_in_archive(path)
            else:
                continue
            if names:
                return f"{path} holds {', '.join(sorted(names)[:4])}"
    return None


@contextmanager
def data_only() -> Iterator[None]:
    """Have every `torch.load` build tensors and plain values alone, whatever its caller asked for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_classes(_NUMPY | _DEEPSPEED)):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _names_in_archive(path: Path) -> set[str]:
    """The globals that a file of `torch.save` references beyond the allowed ones."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:  # a pickle by itself, TorchScript, opcodes that torch.save never writes
        return {f"something that torch.save does not write ({cause(error)})"}


class _IndexReader(pickle.Unpickler):
    """Reads the index of a distributed checkpoint; refuses every global that such an index does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _INDEX_NAMES:
            raise UnsafeCheckpointError(f"{module}.{name}")
        return super().find_class(module, name)


def _names_in_index(path: Path) -> set[str]:
    """The first global in an index that is not allowed; reading stops there."""
    try:
        with path.open("rb") as stream:
            _IndexReader(stream).load()
    except UnsafeCheckpointError as error:
        return {str(error)}
    except Exception as error:  # a damaged pickle may fail in any way
        return {f"something that is no index ({cause(error)})"}
    return set()


def _classes(names: set[str]) -> list[Any]:
    """The classes of these names whose packages are imported."""
    found = []
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        if module.startswith("deepspeed") and "deepspeed" not in sys.modules:
            continue
        value = getattr(import_module(module), attribute, None)  # not every version has every one
        if value is not None:
            found.append(value)
    return found
