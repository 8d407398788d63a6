"""Worked examples: which are shown, and as turns of a chat exactly as the tokenizer's template writes them."""

import pytest

from mce_llm.data import DataError, write_jsonl
from mce_llm.data.boxed import boxes
from mce_llm.eval.answers import is_correct
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig
from mce_llm.eval.presets import prompt_identity
from mce_llm.eval.shots import SHOTS, chosen_shots

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2 and Mistral write it: BOS, no system role of its own, users and assistants in turns.
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
LAST_ALONE = "{{ '<u>' + messages[-1].content }}{% if add_generation_prompt %}<a>{% endif %}"
WITHOUT_THOUGHTS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")


def template(prompt="chat", task="gsm8k", **options):
    return Gsm8kConfig(model="m", output="o", prompt=prompt, **options).template(task)


@pytest.fixture
def chat(tokenizer, request):
    copy = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token=tokenizer.eos_token
    )
    copy.chat_template = CHATML
    return copy


@pytest.mark.parametrize("written", [CHATML, ALTERNATING], ids=["chatml", "alternating"])
@pytest.mark.parametrize("prompt", ["chat", "chat-cot"])
@pytest.mark.parametrize("task", ["gsm8k", "math"])
def test_token_ids_are_those_of_the_whole_conversation(task, prompt, written, chat):
    chat.chat_template = written
    system = None if written == ALTERNATING else "Be brief."
    made = template(prompt, task, num_shots=3, system_prompt=system)
    made.check(chat)
    request = (
        "\n\nReason step by step, and put the final answer in \\boxed{}." if prompt == "chat-cot" else ""
    )
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, told in made.shots:
        messages += [{"role": "user", "content": asked + request}, {"role": "assistant", "content": told}]
    messages.append({"role": "user", "content": "How many?" + request})
    expected = chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert made.encode_prompt(chat, "How many?", evaluation=True) == expected
    assert len(made.shots) == 3
    assert [asked for asked, _ in made.shots] == [asked for asked, _ in SHOTS[task][:3]]


def test_examples_do_what_the_prompt_asks():
    """chat-cot asks for a box, so our own examples give one; chat leaves them as they are."""
    for task in SHOTS:
        for (asked, told), (_, plain) in zip(
            template("chat-cot", task, shots="default").shots, SHOTS[task], strict=True
        ):
            (box,) = boxes(told)
            assert is_correct(plain, box[0], style=task if task == "math" else None), asked
        assert template("chat", task, shots="default").shots == SHOTS[task]


def test_which_examples(tmp_path):
    path = write_jsonl(
        [{"question": f"q{n}", "response": f"r{n}"} for n in range(4)], tmp_path / "shots.jsonl"
    )
    four = tuple((f"q{n}", f"r{n}") for n in range(4))
    assert chosen_shots("gsm8k") is None
    assert chosen_shots("gsm8k", str(path)) == four
    assert chosen_shots("gsm8k", str(path), 2, boxed=True) == four[:2]  # a file is shown as it is
    assert chosen_shots("gsm8k", None, 8) == chosen_shots("gsm8k", "default") == SHOTS["gsm8k"]
    with pytest.raises(
        EvaluationError, match=r"num_shots is 5, and there are 4 worked examples in .*shots.jsonl"
    ):
        chosen_shots("gsm8k", str(path), 5)
    assert template("chat").shots == ()
    assert template("chat", shots=str(path)).shots == four
    assert template("cot-8shot", num_shots=2).prompt.count("Q: ") == 3
    assert template("cot-8shot").prompt.count("Q: ") == 9
    assert template("cot-8shot", shots=str(path), num_shots=1).prompt == "Q: q0\nA: r0\n\nQ: {question}\nA:"


def test_they_are_part_of_the_identity(chat):
    plain, shown = (prompt_identity(template(num_shots=n), chat) for n in (None, 1))
    assert "shots" not in plain
    assert shown["shots"] == [list(SHOTS["gsm8k"][0])]


@pytest.mark.parametrize(
    ("written", "options", "message"),
    [
        (LAST_ALONE, {}, "does not write the question of worked example 1 as it stands"),
        (
            WITHOUT_THOUGHTS,
            {"shots": "thoughts"},
            "does not write the answer of worked example 1 as it stands",
        ),
        (
            ALTERNATING,
            {"system_prompt": "Be brief."},
            r"refuses a conversation with the roles \(system, user",
        ),
    ],
)
def test_templates_that_would_show_something_else(written, options, message, chat, tmp_path):
    path = write_jsonl([{"question": "q", "response": "<think>hm</think>5"}], tmp_path / "shots.jsonl")
    chat.chat_template = written
    given = {**options, "shots": str(path)} if options.get("shots") else {**options, "num_shots": 1}
    with pytest.raises(DataError, match=message):
        template(**given).check(chat)


@pytest.mark.parametrize("prompt", ["metamath", "plain", "zero-shot-cot"])
@pytest.mark.parametrize("option", [{"num_shots": 2}, {"shots": "default"}])
def test_other_prompts_show_none(prompt, option):
    with pytest.raises(
        EvaluationError, match=f"{next(iter(option))} has no effect .* the prompt is {prompt}"
    ):
        template(prompt, **option)
