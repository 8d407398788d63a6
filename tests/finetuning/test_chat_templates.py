"""A recipe's own chat template: from a file, as text, or by name; and what is none."""

import pytest
from transformers import AutoTokenizer

from helpers.recipes import CHATML
from mce_llm.finetuning.chat_templates import set_chat_template
from mce_llm.finetuning.models import tokenizer_of
from mce_llm.finetuning.settings import ModelArguments
from mce_llm.running.settings import ConfigurationError


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def test_a_file(folder, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    settings = ModelArguments(
        model_name_or_path=str(folder / "model"), chat_template=str(tmp_path / "chat.jinja")
    )
    tokenizer = tokenizer_of(settings)
    assert tokenizer.chat_template == CHATML
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == CHATML


@pytest.mark.parametrize("text", [CHATML, "{% generation %}{{ messages[0].content }}{% endgeneration %}"])
def test_the_text_itself(tokenizer, text):
    set_chat_template(tokenizer, text)
    assert tokenizer.chat_template == text


def test_one_of_several(tokenizer):
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    set_chat_template(tokenizer, "tool_use")
    assert tokenizer.chat_template == "{{ tools }}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{folder}/chta.jinja", "there is no file {folder}/chta.jinja (did you mean 'chat.jinja'?)"),
        ("nowhere/x.jinja", "there is no file nowhere/x.jinja"),
        ("{% for m in messages %}\n{{ m }", "the text, line 2 does not compile: TemplateSyntaxError"),
        ("{folder}/broken.jinja", "{folder}/broken.jinja, line 1 does not compile"),
        ("{folder}/latin.jinja", "{folder}/latin.jinja cannot be read"),
        ("tool_us", "no name: the tokenizer has default, tool_use (did you mean 'tool_use'?)"),
        ("chatml", "chat_template 'chatml' is no file, no text of a template"),
        ("x" * 5000, "is no file, no text of a template"),
    ],
)
def test_what_is_none(tokenizer, tmp_path, given, message):
    (tmp_path / "chat.jinja").write_text(CHATML)
    (tmp_path / "broken.jinja").write_text("{% endfor %}")
    (tmp_path / "latin.jinja").write_bytes("plät".encode("latin-1"))
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    with pytest.raises(ConfigurationError) as caught:
        set_chat_template(tokenizer, given.replace("{folder}", str(tmp_path)))
    assert message.replace("{folder}", str(tmp_path)) in str(caught.value)
