"""How a YAML file and a command line are read into dataclasses of settings, for every script of the package.

One flat namespace holds all groups of a script, so `--learning_rate 1e-5` on the command line overrides
`learning_rate: 2e-5` in the file, whichever group it belongs to. What the settings are is the scripts' matter.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from mce_llm.running.messages import ConfigurationError, nearest_hint, raise_all
from mce_llm.running.yaml_text import Word, load_settings, load_yaml, unquoted

__all__ = [
    "ConfigurationError",
    "mapping_of",
    "names_of",
    "parse_settings",
    "raise_all",
    "settings_of",
    "typed",
    "without_secrets",
]

# Given the settings as parsed and the names of those that were given: further words for the command line.
Adjustment = Callable[[Namespace, frozenset[str]], list[str]]


def _switch(text: str | bool) -> bool:
    """True or false in any of the words that people have for them."""
    return string_to_bool({"on": "true", "off": "false"}.get(str(text).lower(), text))


def _whole(text: str) -> int:
    """A whole number, which may be written as 1e6."""
    try:
        return int(text)
    except ValueError:
        if "e" not in text.lower() or not float(text).is_integer():
            raise
        return int(float(text))


_whole.__name__ = "int"  # what argparse calls it in its messages
_KINDS: dict[Any, Any] = {int: _whole, string_to_bool: _switch}


class _Parser(HfArgumentParser):
    """An argument parser whose errors are exceptions, without two hundred lines of usage."""

    def __init__(self, groups: Sequence[type], **named: Any) -> None:
        super().__init__(groups, **named)  # type: ignore[arg-type]
        hints = settings_of(groups)
        self._one_or_more = set()
        for action in self._actions:
            action.type = _KINDS.get(action.type, action.type)
            if action.nargs is None and any(
                get_origin(part) is list for part in get_args(hints.get(action.dest))
            ):
                action.nargs = "+"  # text or a list of texts, of which the base class takes the first alone
                self._one_or_more.add(action.dest)

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """The stock parsing; one value of a setting that takes one or more is that value."""
        parsed, left = super().parse_known_args(*arguments, **named)
        for name in self._one_or_more:
            if isinstance(value := getattr(parsed, name), list) and len(value) == 1:
                setattr(parsed, name, value[0])
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(f"{message} (--help lists every setting)")


def parse_settings(
    groups: Sequence[type],
    argv: Sequence[str],
    *,
    description: str | None = None,
    adjust: Adjustment | None = None,
    comma_lists: Sequence[str] = (),
    assignments: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read `--config FILE.yaml` and overrides such as `--learning_rate 1e-5`; overrides win.

    Args:
        groups: Dataclasses whose fields are the settings; no two may share a name.
        argv: The command line, without the program's name.
        description: What `--help` says of the script.
        adjust: Sees the parsed settings before the dataclasses are made, and may add words to the command line.
        comma_lists: Settings that a YAML list may give, though they are text separated by commas.
        assignments: Settings that a YAML mapping may give, though they are text such as a=1,b=2.
        refused: Names that people would try and that are no settings on purpose, with the reason.

    Returns:
        One instance of each group, and the settings that were given, file and command line merged, by name.

    Raises:
        ConfigurationError: A file that cannot be read, unknown settings (with the nearest known name), values of
            the wrong kind, or values that cannot be used.
    """
    parser = _Parser(groups, allow_abbrev=False, description=description)
    parser.add_argument("--config", help="YAML file with settings; the command line overrides it.")
    if "--help" in argv or "-h" in argv:
        parser.parse_args(["--help"])
    argv = _split_equals(argv)
    path, argv = _take_config(argv)
    written = _read_yaml(path) if path is not None else {}
    kinds = {
        action.dest: action.type
        for action in parser._actions
        if f"--{action.dest}" in action.option_strings  # not its --no_ complement
    }
    settings = {name: _meant(value, kinds.get(name)) for name, value in written.items()}
    for name in comma_lists:
        if isinstance(layers := settings.get(name), list):
            settings[name] = ",".join(map(str, layers))
    for name in assignments:
        if isinstance(pairs := settings.get(name), dict):
            settings[name] = ",".join(f"{key}={value}" for key, value in pairs.items())
    stray, overrides = _by_name(argv)
    nulls = [name for name, value in settings.items() if value is None]
    known = settings_of(groups)
    refused = refused or {}
    given_names = dict.fromkeys([*settings, *overrides])
    problems = [
        f"{name} is no setting here: {refused[name]}"
        if name in refused
        else f"unknown setting {name!r}{nearest_hint(name, known)}"
        for name in given_names
        if name not in known
    ]
    problems += [
        f"{name} cannot be null; leave it out to get its default"
        for name in nulls
        if name in known and type(None) not in get_args(known[name])
    ]
    problems += [
        f"{name} takes one value, got a list of {len(value)}"
        for name, value in settings.items()
        if isinstance(value, list) and len(value) != 1 and name in known and not _takes_list(parser, name)
    ]
    problems += [f"unexpected word {word!r} on the command line" for word in stray]
    raise_all(problems)
    parser.set_defaults(**dict.fromkeys(nulls))
    words = [
        word for name, value in settings.items() if value is not None for word in setting_words(name, value)
    ]
    overrides = {name: _as_json(name, values, known[name]) for name, values in overrides.items()}
    words += [word for name, values in overrides.items() for word in _flag(name, values)]
    parsed = parser.parse_args(words)
    if adjust is not None:
        words += adjust(parsed, frozenset(given_names))
    made = parser.parse_args_into_dataclasses(words)[: len(groups)]
    given = {**settings, **{name: _plain(getattr(parsed, name)) for name in overrides}}
    return made, given


def typed(groups: Sequence[type], settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Some settings with the types that their groups give them; nothing is made of them, and nothing else is checked.

    Args:
        groups: Dataclasses whose fields are the settings.
        settings: As a YAML file gives them.
        names: Those that are wanted; one that is not among `settings` has its default.

    Returns:
        Name → value.

    Raises:
        ConfigurationError: A value of the wrong kind.
    """
    parser = _Parser(groups, allow_abbrev=False)
    for action in parser._actions:
        action.required = False
    given = [name for name in names if settings.get(name) is not None]
    parsed = parser.parse_args([word for name in given for word in setting_words(name, settings[name])])
    return {name: getattr(parsed, name) for name in names}


def names_of(text: str | None) -> list[str]:
    """The names in a list that is separated by commas."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


def mapping_of(name: str, text: str | None, problems: list[str]) -> dict[str, Any]:
    """The mapping in a setting's text; what is wrong with it is added to the problems."""
    if text is None:
        return {}
    try:
        value = load_yaml(text, name)  # JSON is YAML
    except ConfigurationError as error:
        problems.append(str(error))
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} must be a mapping, got {text!r}")
        return {}
    return value


def without_secrets(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but for access tokens, which belong in no file and no message."""
    return {name: value for name, value in given.items() if not name.endswith("_token")}


def _takes_list(parser: _Parser, name: str) -> bool:
    return any(
        f"--{name}" in action.option_strings and action.nargs in ("+", "*") for action in parser._actions
    )


def settings_of(groups: Sequence[type]) -> dict[str, Any]:
    """Return every setting of some groups and its type, by name.

    Args:
        groups: Dataclasses whose fields are the settings.
    """
    types = [get_type_hints(group) for group in groups]
    return {
        item.name: hints[item.name]
        for group, hints in zip(groups, types, strict=True)
        for item in fields(group)
        if item.init
    }


def _split_equals(argv: Sequence[str]) -> list[str]:
    """`--name=value` as two words, so that there is one way to look at the command line."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and "=" in word:
            words += word.split("=", 1)
        else:
            words.append(word)
    return words


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    if "--config" not in argv:
        return None, argv
    at = argv.index("--config")
    if at + 1 >= len(argv):
        raise ConfigurationError("--config needs a file name")
    return argv[at + 1], argv[:at] + argv[at + 2 :]


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"no configuration file {path!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path!r}: {error}") from error
    return load_settings(text, path)


def _meant(value: Any, kind: Any) -> Any:
    """A value of a file as the type of its setting takes it: the text as it stands there, unless a number is wanted."""
    if isinstance(value, list):
        return [_meant(item, kind) for item in value]
    if not isinstance(value, Word) or kind not in (_whole, _switch, float):
        return value.text if isinstance(value, Word) else value
    if kind is float or (kind is _whole and isinstance(value.value, int)):
        return unquoted(value)
    try:
        return kind(value.text)
    except (ValueError, ArgumentTypeError):  # which the parser says
        return unquoted(value)


def setting_words(name: str, value: Any) -> list[str]:
    """A setting from YAML as it would stand on the command line, so that both are checked alike."""
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]


def _by_name(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words that stand before the first flag, and for each flag's name those that follow it."""
    stray: list[str] = []
    named: dict[str, list[str]] = {}
    current = stray
    for word in words:
        if word.startswith("--"):
            current = named[word[2:]] = []
        else:
            current.append(word)
    return stray, named


def _flag(name: str, values: list[str]) -> list[str]:
    """An override as words again; joined by `=`, a value may begin with a minus, as -1e-3 does."""
    return [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]


def _as_json(name: str, values: list[str], hint: Any) -> list[str]:
    """An override of a setting that takes a mapping, in JSON where it was given in YAML: transformers reads that alone."""
    if len(values) != 1 or not values[0].lstrip().startswith("{") or not _takes_mapping(hint):
        return values
    return [json.dumps(load_yaml(values[0], name))]


def _takes_mapping(hint: Any) -> bool:
    return dict in (hint, *(get_origin(part) or part for part in get_args(hint)))


def _plain(value: Any) -> Any:
    """A value from the command line as it would stand in YAML."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return load_yaml(value, "")
    except ConfigurationError:  # text that begins like a mapping
        return value
