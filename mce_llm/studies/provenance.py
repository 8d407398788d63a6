"""What a result was made with: the source of this package, versions of others, and the content of local inputs."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

import mce_llm
from mce_llm.eval.fingerprints import files_fingerprint
from mce_llm.running.installation import installed_versions, shipped_folder
from mce_llm.studies.errors import StudyError

PACKAGES = ("mce-llm", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets")
"""What a trained model and its evaluations can depend on."""
_TRAINING_AND_EVALUATING = ("matrix", "lm", "data", "finetuning", "running", "eval")
_TELLING = {"comparing", "reporting"}  # what makes tables and pages of results
_LENGTH = 16  # hexadecimal digits
_MODEL = "config.json"
_ADAPTER = "adapter_config.json"
_TOKENIZER = ("tokenizer*.json", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "*.jinja")


@cache
def code_facts() -> dict[str, str]:
    """What this package is: a hash of the source that trains and evaluates, and the commit of its checkout.

    Returns:
        `source`, and `commit` where the package is used from a git checkout.
    """
    package = Path(mce_llm.__file__).parent
    scripts = [
        shipped_folder() / "recipes" / "finetune.py",
        *sorted((shipped_folder() / "eval").glob("*.py")),
    ]
    digest = hashlib.sha256()
    modules = [path for name in _TRAINING_AND_EVALUATING for path in sorted((package / name).rglob("*.py"))]
    for path in [*(path for path in modules if not _TELLING & set(path.parts)), *scripts]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    facts = {"source": digest.hexdigest()[:_LENGTH]}
    if (package.parent / ".git").exists():
        found = subprocess.run(
            ["git", "-C", str(package.parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            facts["commit"] = found.stdout.strip()
    return facts


@cache
def version_facts() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return installed_versions(PACKAGES)


@cache
def content_of(place: str) -> str | None:
    """Name the content of a local file or folder by its hash.

    Args:
        place: A path; a folder is a model, a tokenizer, or data.

    Returns:
        Its hash, such as `content 0123456789abcdef`; None where there is nothing at that path, as for a hub id.

    Raises:
        StudyError: It cannot be read.
    """
    path = Path(place).expanduser()
    try:
        if path.is_file():
            with path.open("rb") as stream:
                return f"content {hashlib.file_digest(stream, 'sha256').hexdigest()[:_LENGTH]}"
        if not path.is_dir():
            return None
        if (path / _MODEL).is_file() or (path / _ADAPTER).is_file():
            return f"content {files_fingerprint([path])}"
        names = {file for pattern in _TOKENIZER for file in path.glob(pattern)}
        digest = hashlib.sha256()
        for file in sorted(names or {item for item in path.rglob("*") if item.is_file()}):
            with file.open("rb") as stream:
                digest.update(str(file.relative_to(path)).encode() + b"\0")
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"content {digest.hexdigest()[:_LENGTH]}"
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror or error}") from error
