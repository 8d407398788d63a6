"""The chat template that a recipe puts in place of its tokenizer's: a file, a text, or one of several by name."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from mce_llm.running.messages import ConfigurationError, cause, nearest_hint

_SUFFIXES = (".jinja", ".jinja2", ".j2")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, given: str) -> None:
    """Give a tokenizer a chat template, which is saved with it.

    Args:
        tokenizer: It is changed in place.
        given: A .jinja file, the text itself, or the name of one of the templates that the tokenizer has.

    Raises:
        ConfigurationError: There is no such file or name, or the text is no template.
    """
    text, source = _text_of(given, _named(tokenizer))
    try:
        _compile_jinja_template(text)
    except TemplateError as error:
        number = getattr(error, "lineno", None)
        line = f", line {number}" if number else ""
        raise ConfigurationError(f"chat_template: {source}{line} does not compile: {cause(error)}") from error
    tokenizer.chat_template = text


def _named(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The templates that a tokenizer has, by name; one without a name is none of them."""
    templates = tokenizer.chat_template
    return dict(templates) if isinstance(templates, dict) else {}


def _text_of(given: str, named: dict[str, str]) -> tuple[str, str]:
    """The template's text, and what to call it in messages."""
    if given in named:
        return named[given], f"the tokenizer's {given!r}"
    if "{{" in given or "{%" in given:
        return given, "the text"
    path = Path(given).expanduser()
    if _is_file(path):
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"chat_template: {path} cannot be read: {cause(error)}") from error
    if path.suffix in _SUFFIXES or given.startswith((".", "/", "~")):
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigurationError(f"chat_template: there is no file {given}{nearest_hint(path.name, beside)}")
    names = f"the tokenizer has {', '.join(named)}" if named else "the tokenizer has no templates by name"
    raise ConfigurationError(
        f"chat_template {given!r} is no file, no text of a template (which has {{{{ … }}}}), and no name: "
        f"{names}{nearest_hint(given, named)}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name may be
        return False
