"""How questions are put: the exact texts, one BOS, and examples that are worth showing."""

import json
import re

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mce_llm.data import DataError
from mce_llm.eval.answers import extract_answer, is_correct
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig
from mce_llm.eval.presets import PRESETS, check_prompt, preset_template, prompt_identity
from mce_llm.eval.shots import SHOTS, load_shots

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def chat_tokenizer(tokenizer):
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )
    copy.add_special_tokens({"bos_token": "<s>"})
    copy.chat_template = CHAT
    return copy


def test_metamath_is_as_in_its_evaluation():
    template = preset_template("metamath", "gsm8k")
    assert template.evaluation_prompt("How many?") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHow many?\n\n### Response: Let's think step by step."
    )
    assert set(template.stop) == {
        word + colon
        for word in ("Question", "USER", "ASSISTANT", "Instruction", "Response")
        for colon in ("", ":")
    }


def test_zero_shot():
    template = preset_template("zero-shot-cot", "math")
    assert template.evaluation_prompt("How many?") == "Q: How many?\nA: Let's think step by step."
    assert template.stop == ("\nQ:", "\nQuestion:")


def test_solutions_behind_a_preset_follow_a_space():
    """As in the worked examples, of whose solutions the prompt's own is one more."""
    template = preset_template("cot-8shot", "gsm8k")
    assert "\nA: " in template.prompt
    for name in ("zero-shot-cot", "cot-8shot", "plain"):
        assert preset_template(name, "gsm8k").completion_prefix == " "


@pytest.mark.parametrize("task", sorted(SHOTS))
def test_eight_examples_then_the_question(task):
    prompt = preset_template("cot-8shot", task).evaluation_prompt("How many {braces} \\boxed{}?")
    assert prompt.endswith("\n\nQ: How many {braces} \\boxed{}?\nA:")
    assert len(re.findall(r"(?:^|\n)Q: ", prompt)) == 9
    for question, solution in SHOTS[task]:
        assert f"Q: {question}\nA: {solution}\n\n" in prompt


@pytest.mark.parametrize("task", sorted(SHOTS))
def test_the_examples_say_their_answer_and_are_right(task):
    """Every sum that an example writes out is worked out again, and its answer is found by a marker."""
    for question, solution in SHOTS[task]:
        answer = extract_answer(solution, style="math" if task == "math" else None)
        assert answer.found_by in ("answer_is", "boxed"), question
        for left, right in re.findall(r"((?:\d[\d.]* [-+*/] )+\d[\d.]*) = (\d[\d.]*)", solution):
            assert eval(left) == float(right.rstrip(".")), solution


def test_gsm8k_examples_end_at_the_last_result():
    for _, solution in SHOTS["gsm8k"]:
        last = re.findall(r"= (\d+)", solution)[-1]
        assert is_correct(solution, last) or "years old" in solution


def test_own_examples(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"question": "1+1?", "response": "It is 2. The answer is 2."}) + "\n")
    prompt = preset_template("cot-8shot", "gsm8k", load_shots(str(path))).evaluation_prompt("2+2?")
    assert prompt == "Q: 1+1?\nA: It is 2. The answer is 2.\n\nQ: 2+2?\nA:"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        + "\n"
    )
    with pytest.raises(DataError, match="worked examples need a question and a response"):
        load_shots(str(path))


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("adds_bos", [True, False])
def test_one_bos_never_two(name, adds_bos, chat_tokenizer):
    """Chat templates often write BOS themselves, and tokenizers add it again."""
    bos = chat_tokenizer.bos_token
    chat_tokenizer.chat_template = "{{ bos_token }}" + CHAT
    if adds_bos:
        chat_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, chat_tokenizer.bos_token_id)]
        )
    template = preset_template(name, "gsm8k")
    ids = template.encode_prompt(chat_tokenizer, "How many apples?", evaluation=True)
    expected = 1 if adds_bos or template.chat else 0
    assert ids.count(chat_tokenizer.bos_token_id) == expected
    assert ids[0] == chat_tokenizer.bos_token_id or not expected


def test_chat_asks_for_the_box(chat_tokenizer):
    template = preset_template("chat-cot", "math")
    text = chat_tokenizer.decode(template.encode_prompt(chat_tokenizer, "Why?", evaluation=True))
    assert (
        text == "<user>Why?\n\nReason step by step, and put the final answer in \\boxed{}.</user><assistant>"
    )
    assert prompt_identity(template, chat_tokenizer)["chat_template"] == CHAT
    assert prompt_identity(preset_template("plain", "math"), chat_tokenizer)["chat_template"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cot8shot", "gsm8k"), r"got 'cot8shot' \(did you mean 'cot-8shot'\?\)"),
        (("metamath", "gsm8k", (("q", "a"),)), "metamath shows no worked examples"),
        (("cot-8shot", "gsm8k", (("{question}", "a"),)), "holds the text {question}"),
    ],
)
def test_bad_presets(arguments, message):
    with pytest.raises(EvaluationError, match=message):
        preset_template(*arguments)


THINKING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% if not think %}<think></think>{% endif %}{% endif %}"


def test_a_system_prompt_and_arguments_of_the_template(chat_tokenizer):
    chat_tokenizer.chat_template = THINKING
    config = Gsm8kConfig(
        model="m", output="o", prompt="chat", system_prompt="Be brief.", chat_template_kwargs="{think: true}"
    )
    template = config.template("gsm8k")
    text = chat_tokenizer.decode(template.encode_prompt(chat_tokenizer, "Why?", evaluation=True))
    assert text == "<system>Be brief.</system><user>Why?</user><assistant>"
    identity = prompt_identity(template, chat_tokenizer)
    assert (identity["system"], identity["template_arguments"]) == ("Be brief.", {"think": True})
    plain = preset_template("chat", "gsm8k")
    assert chat_tokenizer.decode(plain.encode_prompt(chat_tokenizer, "Why?")).endswith(
        "<assistant><think></think>"
    )
    assert "template_arguments" not in prompt_identity(plain, chat_tokenizer)


@pytest.mark.parametrize("name", ["system_prompt", "chat_template_kwargs"])
def test_options_of_chat_templates_need_one(name):
    with pytest.raises(EvaluationError, match=f"{name} has no effect without a chat prompt: chat, chat-cot"):
        Gsm8kConfig(model="m", output="o", prompt="plain", **{name: "{x: 1}"})


def test_the_day_of_a_template_that_writes_the_date_is_part_of_the_prompt(chat_tokenizer, capsys):
    template = preset_template("chat", "gsm8k")
    assert "date" not in prompt_identity(template, chat_tokenizer)
    check_prompt(template, chat_tokenizer)
    assert capsys.readouterr().out == ""
    chat_tokenizer.chat_template = "{{ strftime_now('%Y') }}" + CHAT
    assert prompt_identity(template, chat_tokenizer)["date"] == "2024-07-26"
    check_prompt(template, chat_tokenizer)
    assert "2024-07-26 stands in its place" in " ".join(capsys.readouterr().out.split())
