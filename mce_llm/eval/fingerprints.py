"""Short hashes of what answers depend on: prompt, data, decoding and the model's weights.

Two runs with the same hash of something used the same; nothing is promised against people who want to deceive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LENGTH = 16  # hexadecimal digits
_PIECE = 2**26  # bytes that are brought to the CPU at a time
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json", "*.index.json")


def fingerprint(content: Any) -> str:
    """Hash anything that JSON can hold; the order of keys does not count."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def model_fingerprint(model: Any) -> str:
    """Hash names, shapes, dtypes and every byte of a model's weights and buffers, an adapter's included.

    Args:
        model: A torch module on any device.

    Returns:
        The hash.
    """
    import torch  # here, so that comparing runs does not load it

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # what a module keeps beside its weights
            digest.update(f"{name} {tensor!r}\n".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().contiguous().flatten()
        step = max(1, _PIECE // max(1, flat.element_size()))
        for start in range(0, flat.numel(), step):
            digest.update(flat[start : start + step].view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:_LENGTH]


def files_fingerprint(folders: Iterable[Path]) -> str:
    """Hash the weight and configuration files of models on disk.

    Args:
        folders: The model's folder; for an adapter also that of its base model.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)}):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:_LENGTH]
