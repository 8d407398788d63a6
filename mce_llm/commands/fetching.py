"""What a run would read: files and directories on this machine, hub repositories in the cache or to be downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache

from mce_llm.data import KNOWN_SOURCES, DataError
from mce_llm.data.files import files_of, looks_local
from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.rows import source_of
from mce_llm.running.hub import at_revision, hub_problem, is_cached
from mce_llm.running.messages import model_path_problem

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Fetch:
    """One thing that a run would read.

    Attributes:
        role: model, tokenizer, dataset or eval_dataset.
        name: Path, or hub id.
        state: local, cached, download (from the hub, at the start), missing, or "no weights" (a directory that holds the
            rest of a model).
        detail: What is there, or what is wrong.
    """

    role: str
    name: str
    state: Literal["local", "cached", "download", "missing", "no weights"]
    detail: str


def what_is_fetched(recipe: Recipe) -> list[Fetch]:
    """Everything that the run would read at its start; nothing is downloaded to find out."""
    model = recipe.model
    found = []
    if model.model_name_or_path is not None:
        found.append(_model("model", model.model_name_or_path, model.model_revision, weights=True))
    if model.tokenizer_name_or_path is not None:
        revision = model.revision_of_tokenizer()
        found.append(_model("tokenizer", model.tokenizer_name_or_path, revision, weights=False))
    for role, part in (("dataset", "train"), ("eval_dataset", "eval")):
        if getattr(recipe.data, role) is not None:
            source, request = source_of(recipe.data, part)
            found.append(_data(role, source, request.revision))
    return found


def _model(role: str, name: str, revision: str | None, *, weights: bool) -> Fetch:
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in _WEIGHTS if (path / file).is_file()]
        if weights and not files:
            return Fetch(
                role, name, "no weights", "no model.safetensors is there, so the run could not start"
            )
        return Fetch(role, name, "local", "directory")
    if problem := model_path_problem(name, revision):
        return Fetch(role, name, "missing", problem.removeprefix(name).lstrip(": "))
    wanted = _WEIGHTS if weights else ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in wanted):
        return Fetch(role, name, "cached", f"hub id{at_revision(revision)}, in the cache")
    return _download(role, name, revision)


def _data(role: str, name: str, revision: str | None) -> Fetch:
    path = Path(name).expanduser()
    if name not in KNOWN_SOURCES and path.exists():
        kind = "directory" if path.is_dir() else f"file, {path.stat().st_size / 2**20:,.1f} MiB"
        return Fetch(role, name, "local", kind)
    if name not in KNOWN_SOURCES and looks_local(name):
        try:
            count = sum(map(len, files_of(name).values()))
        except DataError as error:
            return Fetch(role, name, "missing", str(error).removeprefix(name).lstrip(": "))
        return Fetch(role, name, "local", f"{count} file{'s' * (count != 1)}")
    hub_id = KNOWN_SOURCES.get(name, (name, None))[0]
    if is_cached(hub_id, "dataset", revision):
        return Fetch(role, hub_id, "cached", f"hub data set{at_revision(revision)}, in the cache")
    if problem := hub_problem(hub_id, "dataset", revision):
        return Fetch(role, hub_id, "missing", problem.removeprefix(hub_id).lstrip(": "))
    return _download(role, hub_id, revision)


def _download(role: str, name: str, revision: str | None = None) -> Fetch:
    if constants.HF_HUB_OFFLINE:
        return Fetch(
            role,
            name,
            "missing",
            f"not in the hub's cache{at_revision(revision)}, and HF_HUB_OFFLINE forbids to download it",
        )
    return Fetch(role, name, "download", f"from the hub{at_revision(revision)}")
