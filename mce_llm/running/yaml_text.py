"""YAML as people write settings in it: numbers as in YAML 1.2 and JSON, words as words, no name twice.

PyYAML follows YAML 1.1, for which `1e-7` is a word, `no` is false, `010` is eight and `1:30` is ninety. What the settings
are, and which of them are text, is in `settings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from mce_llm.running.messages import ConfigurationError

_DIGITS = "[0-9]+(?:_[0-9]+)*"
_INT = rf"[-+]?(?:{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|0b[01]+(?:_[01]+)*)"
_FLOAT = (
    rf"[-+]?(?:(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|Infinity)"
    r"|\.(?:nan|NaN|NAN)|NaN"
)
# Ahead of the others stands what is tried first.
_RESOLVERS = (
    ("null", "(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", "(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789IN")),
    ("merge", "<<", ["<"]),
)
_PREFIX = "tag:yaml.org,2002:"
_TAGS = frozenset(_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers and words of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts quotes around what either version of YAML would take for another thing."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        key: list(found) for key, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    base = {"0o": 8, "0x": 16, "0b": 2}.get(digits[:2])
    return sign * (int(digits) if base is None else int(digits, base))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_PREFIX + _name, re.compile(rf"^(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_PREFIX + _name, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_PREFIX + "int", _number)
_Loader.add_constructor(_PREFIX + "float", _float)


@dataclass(frozen=True)
class Word:
    """A value that stands without quotes in a file, so that a setting of text can have it as it was written.

    Attributes:
        text: As it stands there, such as 010 or 1e-7.
        value: What YAML takes it for: a number, true, false, or the text.
    """

    text: str
    value: Any


def load_yaml(text: str, what: str) -> Any:
    """What a text in YAML or JSON holds.

    Args:
        text: The text.
        what: What it is, for messages: a file, a setting.

    Raises:
        ConfigurationError: It is not YAML, has a name twice, or a word such as `no` that may mean false or itself.
    """
    loader, node = _composed(text, what)
    if node is not None:
        _refuse_switches(node, what, ())
    return None if node is None else _constructed(loader, node, what)


def load_settings(text: str, what: str) -> dict[str, Any]:
    """The settings that a text in YAML holds, name: value; unquoted values, also in lists, are `Word`s.

    Args:
        text: The text.
        what: What it is, for messages.

    Raises:
        ConfigurationError: As `load_yaml`, or it holds no mapping from names.
    """
    loader, node = _composed(text, what)
    whole = None if node is None else _constructed(loader, node, what)
    if not isinstance(whole, dict) or not all(isinstance(name, str) for name in whole):
        raise ConfigurationError(f"{what} must hold a mapping of settings, name: value")
    assert isinstance(node, yaml.MappingNode)
    nodes = {
        key.value: value for key, value in node.value
    }  # merged ones come first, and their own go before them
    for name, value in nodes.items():
        if isinstance(value, yaml.MappingNode):
            _refuse_switches(value, what, (name,))
    return {name: _word(nodes[name], value) for name, value in whole.items()}


def load_record(text: str, what: str) -> dict[str, Any]:
    """Settings as a run recorded them, name: value, whatever is quoted.

    Args:
        text: The text.
        what: What it is, for messages.

    Raises:
        ConfigurationError: As `load_settings`.
    """
    return {name: unquoted(value) for name, value in load_settings(text, what).items()}


def unquoted(value: Any) -> Any:
    """A value of `load_settings` as YAML takes it."""
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return value.value if isinstance(value, Word) else value


def dump_yaml(value: Any) -> str:
    """A value as YAML that `load_yaml` and readers of YAML 1.1 take for the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _composed(text: str, what: str) -> tuple[_Loader, yaml.Node | None]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except RecursionError as error:
        raise ConfigurationError(
            f"{what} is not YAML that can be read: its brackets are nested too deep"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(_syntax_problem(error, what)) from error
    if node is not None:
        _check(node, what, ())
    return loader, node


def _constructed(loader: _Loader, node: yaml.Node, what: str) -> Any:
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError) as error:  # a mapping for a name, a tag that does not fit
        raise ConfigurationError(_syntax_problem(error, what)) from error


def _syntax_problem(error: Exception, what: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None and "'\\t'" in str(getattr(error, "problem", "")):
        return f"{what} is not YAML: a tab in line {mark.line + 1}, where YAML wants spaces"
    return f"{what} is not YAML: {error}"


def _check(node: yaml.Node, what: str, above: tuple[yaml.Node, ...]) -> None:
    """Refuse names that are given twice, values that hold themselves, and tags for what no setting can be."""
    line = node.start_mark.line + 1
    if any(node is outer for outer in above):
        raise ConfigurationError(f"{what}: the value in line {line} holds itself")
    if node.tag not in _TAGS:
        raise ConfigurationError(
            f"{what}: line {line} has a value of the kind {node.tag}, which no setting takes"
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, what, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _PREFIX + "merge":
            here = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigurationError(
                    f"{what}: {key.value} is given twice, in lines {lines[key.value]} and {here}; take one of them out"
                )
            lines[key.value] = here
        _check(value, what, (*above, node))


def _refuse_switches(node: yaml.Node, what: str, path: tuple[str, ...]) -> None:
    """Refuse `no`, `on` and their like where nothing says whether a word or a switch is wanted."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _refuse_switches(value, what, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_switches(item, what, path)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.value.lower() in _SWITCHES:
        name = ".".join(path) or what
        switch = _SWITCHES[node.value.lower()]
        raise ConfigurationError(
            f"{name}: {node.value} may mean {switch} or the word; write {switch}, or '{node.value}' in quotes"
        )


def _word(node: yaml.Node, value: Any) -> Any:
    if isinstance(node, yaml.SequenceNode) and isinstance(value, list):
        return [_word(item, part) for item, part in zip(node.value, value, strict=True)]
    if isinstance(node, yaml.ScalarNode) and node.style is None and value is not None:
        return Word(node.value, value)
    return value
