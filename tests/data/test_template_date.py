"""Chat templates that write today's date: the same tokens on every day, the day that was asked for, and a word about it."""

import datetime
from dataclasses import replace

import datasets
import pytest
from transformers.utils import chat_template_utils

from mce_llm.data.chat import render
from mce_llm.data.errors import DataError
from mce_llm.data.prompts import get_prompt
from mce_llm.data.template_date import CLOCK, FIXED_DATE, day_text
from mce_llm.data.tokenization import tokenize_examples
from mce_llm.finetuning.rows import digest_of

CHAT = get_prompt("chat")
MESSAGES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Llama 3.2's way, Mistral's, GPT-OSS's: a variable comes first, or there is none, or the clock is behind a macro.
CLOCKS = {
    "variable": "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today: {{ day }}\n",
    "alone": "{%- set today = strftime_now('%Y-%m-%d') %}Today: {{ today }}\n",
    "macro": "{% macro head() %}Today: {{ strftime_now('%Y-%m-%d') }}\n{% endmacro %}{{ head() }}",
}
PAIR = {"question": ["2+2?"] * 3, "response": ["4"] * 3}


@pytest.fixture
def on_day(monkeypatch):
    """Has transformers' clock show a day."""

    def set_day(day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime(2025, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


@pytest.fixture(params=CLOCKS)
def dated(request, chatml):
    """A tokenizer whose template writes the date."""
    chatml.chat_template = CLOCKS[request.param] + MESSAGES
    return chatml


@pytest.fixture
def chatml(byte_level):
    template = byte_level.chat_template
    yield byte_level
    byte_level.chat_template = template


def test_the_clock_itself_goes_on(dated, on_day):
    """Without the fixed day tokens are others tomorrow."""
    written = []
    for day in (1, 2):
        on_day(day)
        written.append(dated.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False))
    assert written[0] != written[1]


def test_tokens_are_the_same_on_every_day(dated, on_day):
    made = []
    for day in (1, 2):
        on_day(day)
        rows, report = tokenize_examples(datasets.Dataset.from_dict(PAIR), dated, CHAT, max_length=512)
        made.append((digest_of(rows), CHAT.encode_prompt(dated, "2+2?", evaluation=True)))
        assert report.day == FIXED_DATE
        assert day_text(FIXED_DATE) in str(report)
    assert made[0] == made[1]
    text = dated.decode(made[0][1])
    assert "Today: 2024-07-26" in text or "Today: 26 Jul 2024" in text


def test_another_day(dated):
    other = replace(CHAT, template_arguments={CLOCK: "2026-12-01"})
    other.check(dated)
    text = dated.decode(other.encode_prompt(dated, "2+2?"))
    assert "Today: 2026-12-01" in text or "Today: 01 Dec 2026" in text
    assert str(other.written_day(dated)) == "2026-12-01"


def test_the_forms_of_a_date_are_those_of_the_clock(chatml):
    forms = "%d %B %Y, %-d.%-m.%y, %A %a %b %j %H:%M %F %D %% %%Y %x %k%l %P"
    chatml.chat_template = "\n{{ strftime_now('" + forms + "') }}" + MESSAGES
    expected = datetime.datetime(2024, 7, 26).strftime(forms)
    assert chatml.decode(CHAT.encode_prompt(chatml, "2+2?")).startswith(f"\n{expected}<user>")


@pytest.mark.parametrize(
    "template",
    [
        "    {% if true %}D{{ clock }}{% endif %}",
        "  {# c #}\n{{ clock }}X",
        "\n\nA{{ clock }}",
        "  A{{ clock }}",
    ],
)
def test_blanks_at_the_beginning_are_as_they_were(chatml, template, on_day):
    """Blocks strip what stands before them on their line, and the first line is one of the template's own."""
    on_day(1)
    chatml.chat_template = template.replace("clock", "strftime_now('%Y')[:0]") + MESSAGES
    messages = [{"role": "user", "content": "2+2?"}]
    stock = chatml.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(chatml, messages, generate=True) == stock


def test_a_variable_of_the_template_has_the_say(chatml):
    chatml.chat_template = CLOCKS["variable"] + MESSAGES
    named = replace(CHAT, template_arguments={"day": "Monday"})
    assert "Today: Monday" in chatml.decode(named.encode_prompt(chatml, "2+2?"))
    assert named.written_day(chatml) is None


def test_a_template_without_a_clock_is_left_alone(chatml):
    chatml.chat_template = MESSAGES
    _, report = tokenize_examples(datasets.Dataset.from_dict(PAIR), chatml, CHAT, max_length=512)
    assert report.day is None
    assert "date" not in str(report)
    with pytest.raises(DataError, match="the chat template reads no 'strftime_now'"):
        replace(CHAT, template_arguments={CLOCK: "2026-12-01"}).check(chatml)


@pytest.mark.parametrize("value", ["today", "01.12.2026", 20261201, "2026-12-01 10:00", ""])
def test_what_is_no_day_is_refused(dated, value):
    with pytest.raises(DataError, match=r"strftime_now is the day .* as YYYY-MM-DD; got"):
        replace(CHAT, template_arguments={CLOCK: value}).check(dated)
