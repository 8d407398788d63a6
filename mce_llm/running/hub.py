"""Can the Hugging Face hub be reached? Asked once and answered in seconds, where its libraries would retry for a minute.

What is in the hub's cache is used without asking the hub when it cannot be reached.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mce_llm.running.visible_text import print_visible

_SECONDS = 5.0
# The name for which this process was set to work offline, where it was.
_taken_offline: list[str] = []
_MODEL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


def hub_problem(name: str, kind: str = "model", revision: str | None = None) -> str | None:
    """Say why a hub id cannot be loaded, where it is not on this machine and the hub cannot be reached.

    Where it is in the cache and the hub cannot be reached, the libraries of this process are set to work offline.

    Args:
        name: A hub id; whatever exists as a path is none.
        kind: model or dataset.
        revision: A branch, tag or commit of it; None for the main branch.

    Returns:
        The problem, or None where loading may be tried.
    """
    from huggingface_hub import constants  # here: not every caller has a hub id

    asked_for_offline = constants.HF_HUB_OFFLINE and not _taken_offline
    if Path(name).expanduser().exists() or asked_for_offline:
        return None
    reason = unreachable()
    if reason is None:
        return None
    if is_cached(name, kind, revision):
        _go_offline(name, reason)
        return None
    return (
        f"{name}{at_revision(revision)} is not on this machine, and the hub cannot be reached ({reason}); check the network, its proxy "
        f"(HTTPS_PROXY) and HF_ENDPOINT, or download it elsewhere (hf download) and give the directory"
    )


@cache
def unreachable() -> str | None:
    """Say why no connection to the hub can be made, or None where one can, or where a proxy would have to be asked."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    address = urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return None


def is_cached(name: str, kind: str = "model", revision: str | None = None) -> bool:
    """Whether a hub id was downloaded to this machine before.

    Args:
        name: The hub id.
        kind: model or dataset.
        revision: A branch, tag or commit of a model; None for the main branch.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if kind == "model":
        return any(
            isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _MODEL_FILES
        )
    import datasets

    # As downloaded, or as prepared by `datasets`, whose folder names vary with its version.
    owner, _, last = name.rpartition("/")
    prepared = Path(datasets.config.HF_DATASETS_CACHE).glob(f"{owner}___*" if owner else f"{last}*")
    return (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}").is_dir() or any(prepared)


def revision_option(revision: str | None) -> dict[str, Any]:
    """The argument of `from_pretrained` that asks for a branch, tag or commit; none for the main branch."""
    return {} if revision is None else {"revision": revision}


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a model in the hub's cache that a branch or tag stands for; None where it is not there.

    Args:
        name: The hub id.
        revision: A branch, tag or commit; None for the main branch.
    """
    from huggingface_hub import try_to_load_from_cache

    for file in _MODEL_FILES:
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str) and "snapshots" in (parts := Path(found).parts):
            return parts[parts.index("snapshots") + 1]
    return None


def at_revision(revision: str | None) -> str:
    """The revision as messages name it, after the hub id; nothing for the main branch."""
    return "" if revision is None else f" at revision {revision}"


def _go_offline(name: str, reason: str) -> None:
    """Take everything from the cache from now on; workers that are started later do so too."""
    import datasets
    from huggingface_hub import constants

    if _taken_offline:
        return
    _taken_offline.append(name)
    print_visible(
        f"the hub cannot be reached ({reason}): {name} and others are taken from the cache", sys.stderr
    )
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
