"""The date that chat templates write: a fixed one, in training and in evaluation.

transformers gives templates a clock, `strftime_now`; Llama 3's, Mistral's and GPT-OSS's put today's date into the system
message. Tokens would then be others tomorrow: a run could not go on after midnight, nor results of two days be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from mce_llm.data.errors import DataError

CLOCK = "strftime_now"
"""The name of the clock in templates; in `chat_template_kwargs` that of the date that stands there."""
FIXED_DATE = date(2024, 7, 26)
"""The day that Llama 3's template writes where it has no clock."""
_ANOTHER = date(1999, 12, 31)
_DIRECTIVES = [f"%-{letter}" for letter in "dmHIMSjy"]
_DIRECTIVES += [f"%{letter}" for letter in "aAwdbBmyYHIpPMSfzZjUWcxXGuVDFTRehnklC"]
_PERCENT = "\ue000"  # in the place of %%, which begins no directive; nobody's text has it


def with_fixed_day(template: str, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what `apply_chat_template` is given, with a clock that stands still where the template reads one.

    Args:
        template: The template's text.
        arguments: What it is given; `strftime_now` is a day, as YYYY-MM-DD or as a date.

    Returns:
        The arguments, and as `chat_template` the template behind a macro of the clock's name. (A function among the
        arguments would not do: newer versions of transformers hand templates plain data alone.)

    Raises:
        DataError: `strftime_now` is no day.
    """
    given = dict(arguments or {})
    if CLOCK not in template:
        return given
    day = day_of(given.pop(CLOCK, FIXED_DATE))
    midnight = datetime(day.year, day.month, day.day)
    pairs = [
        ("%%", _PERCENT),
        *((directive, midnight.strftime(directive)) for directive in _DIRECTIVES),
        (_PERCENT, "%"),
    ]
    written = "".join(f' | replace("{old}", "{new}")' for old, new in pairs).replace("\n", "\\n")
    # The line break goes with the block in front of it, and the template begins at the beginning of a line.
    return given | {
        "chat_template": f"{{% macro {CLOCK}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{template}"
    }


def written_day(
    template: str, arguments: Mapping[str, Any], rendered: Callable[[Mapping[str, Any]], str]
) -> date | None:
    """Return the day that a prompt has where the template would write today's date; None where it writes none.

    Args:
        template: The template's text.
        arguments: What it is given.
        rendered: The prompt under given arguments.

    Raises:
        DataError: `strftime_now` is no day.
    """
    if CLOCK not in template:
        return None
    another = {**arguments, CLOCK: _ANOTHER}
    return None if rendered(arguments) == rendered(another) else day_of(arguments.get(CLOCK, FIXED_DATE))


def day_text(day: date) -> str:
    """Return what to say of such a day."""
    return (
        f"the chat template writes today's date, with which every day's prompts would be others: {day} stands in its place "
        f"(chat_template_kwargs: {{{CLOCK}: YYYY-MM-DD}} for another day)"
    )


def day_of(value: Any) -> date:
    """Return the day that `strftime_now` was set to.

    Args:
        value: As YAML reads it: a date, or text.

    Raises:
        DataError: It is none.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise DataError(
            f"chat_template_kwargs: {CLOCK} is the day that stands where the chat template writes today's date, as YYYY-MM-DD; "
            f"got {value!r}"
        ) from None
