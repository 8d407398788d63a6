"""The API reference, and what its build checks beyond Sphinx: a Sphinx extension, used by `conf.py` beside it.

The directive `public` documents what a module offers. Docstrings here put names into single backquotes, as Markdown
does: those that the page documents become links, the others plain code. Three things are warnings, which `make docs`
turns into errors: a public name without a docstring, a name `mce_llm.….x` that cannot be imported, and a path of this
repository that is not there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_ROOT = Path(__file__).resolve().parents[1]
_OLD_NAMES = {"CHANGELOG"}  # pages that name what is no longer there
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")
_OUR_NAME = re.compile(r"(mce_llm(?:\.\w+)+)(?:\(.*\))?", re.DOTALL)
_OUR_PATH = re.compile(
    r"(?<![\w./*-])(?:mce_llm|recipes|eval|vision|benchmarks|tests|docs)/[\w./-]*\.(?:py|sh|slurm|ya?ml|md|jsonl|png)\b"
)
_METHODS = (staticmethod, classmethod, property, functools.cached_property)
_LONGEST_VALUE = 80
_log = logging.getLogger(__name__)


class _Public(SphinxDirective):
    """`.. public:: MODULE [NAME …]`: its docstring and all that it offers, or some of its names alone.

    What a module offers is its `__all__`, less what it only passes on from another package; without one, its public
    classes and functions, and the constants that have a docstring.
    """

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        if module.__file__:
            self.env.note_dependency(module.__file__)
        names = self.arguments[1].split() if len(self.arguments) > 1 else None
        lines = [] if names else [f".. automodule:: {module.__name__}", ""]
        for name in names or _offered(module):
            lines += _description(module, name)
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(StringList(lines, source=module.__name__), self.content_offset, container)
        return container.children


def _offered(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if _belongs(getattr(module, name), module)]
    own = [
        name
        for name, found in vars(module).items()
        if not name.startswith("_") and callable(found) and found.__module__ == module.__name__
    ]
    return [*(name for name in _constant_docs(module) if not name.startswith("_")), *own]


def _belongs(found: Any, module: ModuleType) -> bool:
    home = found.__module__ if inspect.isclass(found) or inspect.isroutine(found) else module.__name__
    return f"{home}.".startswith(f"{module.__name__}.")


def _description(module: ModuleType, name: str) -> list[str]:
    found = getattr(module, name)
    full = f"{module.__name__}.{name}"
    if inspect.isclass(found):
        for member in _undocumented(found):
            _complain(f"{full}.{member}")
        kind = "autoexception" if issubclass(found, BaseException) else "autoclass"
        bases = [] if found.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. {kind}:: {full}", "   :members:", *bases, ""]
    if inspect.isroutine(found):
        if not inspect.getdoc(found):
            _complain(full)
        return [f".. autofunction:: {full}", ""]
    docstring = next(
        (docs[name] for docs in map(_constant_docs, _home_modules(module)) if name in docs), None
    )
    if docstring is None:
        _complain(full)
    value = repr(found)
    short = [f"   :value: {value}"] if len(value) <= _LONGEST_VALUE and " object at " not in value else []
    head = [f".. py:data:: {name}", f"   :module: {module.__name__}", *short, ""]
    return [*head, *(f"   {line}" for line in docstring or []), ""]


def _undocumented(cls: type) -> Iterator[str]:
    if not cls.__doc__:
        yield "__doc__"
    for name, found in vars(cls).items():
        if name.startswith("_") or not (inspect.isfunction(found) or isinstance(found, _METHODS)):
            continue
        if not inspect.getdoc(getattr(cls, name)):
            yield name


def _complain(name: str) -> None:
    _log.warning("%s is public and has no docstring", name, type="reference", subtype="docstring")


def _home_modules(module: ModuleType) -> list[ModuleType]:
    """Where a name of the module may be defined: there, or in a module of the package that it is exported by."""
    return [
        found for name, found in sorted(sys.modules.items()) if f"{name}.".startswith(f"{module.__name__}.")
    ]


@functools.cache
def _constant_docs(module: ModuleType) -> dict[str, list[str]]:
    """The docstrings below the constants of a module."""
    try:
        analyzer = ModuleAnalyzer.for_module(module.__name__)
        analyzer.analyze()
    except PycodeError:
        return {}
    return {name: list(lines) for (owner, name), lines in analyzer.attr_docs.items() if not owner}


class _NameRole(XRefRole):
    """The default role: a link where the text names something that is documented, and code where it does not."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        _, source, text, *rest = arguments
        if not _IDENTIFIER.fullmatch(text):
            return [nodes.literal(source, text, classes=["code"])], []
        return super().__call__("py:obj", source, text, *rest, **options)

    def process_link(
        self, env: BuildEnvironment, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        refnode["perhaps"] = True
        return title, target.removesuffix("()")


def _leave_as_code(_app: Sphinx, _env: BuildEnvironment, node: Any, text: Any) -> Any:
    return text if node.get("perhaps") else None


def _keep_colons(_app: Sphinx, what: str, _name: str, _found: Any, _options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon for a type; types stand in annotations here, and prose has colons."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")
    for place in reversed(range(len(lines) - 1)):
        if lines[place].strip() in ("Returns:", "Yields:"):
            following = lines[place + 1]
            lines.insert(place + 1, following[: len(following) - len(following.lstrip())] + "\\ ")


def _check_names(app: Sphinx, doctree: nodes.document) -> None:
    if app.env.docname in _OLD_NAMES:
        return
    for node in doctree.findall(lambda node: isinstance(node, nodes.literal | nodes.literal_block)):
        text = node.astext()
        if (match := _OUR_NAME.fullmatch(text)) and not _exists(match[1]):
            _log.warning("there is no %s", match[1], location=node, type="reference", subtype="name")
        for path in _OUR_PATH.findall(text):
            if not (_ROOT / path).exists():
                _log.warning("there is no file %s", path, location=node, type="reference", subtype="path")


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the directive, the role and the checks."""
    app.add_directive("public", _Public)
    app.add_role("name", _NameRole(innernodeclass=nodes.literal))
    app.connect("missing-reference", _leave_as_code)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
    app.connect("doctree-read", _check_names)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
