"""How questions are put to a model at evaluation, by name: wording, worked examples, stop strings.

`metamath`, `plain` and `chat` are the wordings that models were fine-tuned with (`mce_llm.data.prompts`); the others are
for models as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.data import PROMPTS, PromptTemplate
from mce_llm.data.template_date import day_text
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.shots import SHOTS, Shot
from mce_llm.running.messages import nearest_hint
from mce_llm.running.processes import say

_QUESTION = "Q: {question}\nA:"
_PREFIX = " "  # of a solution behind it, as in the worked examples
_NEXT = ("\nQ:", "\nQuestion:")

PRESETS = {
    "metamath": "as models trained on MetaMathQA expect, and as MetaMath evaluates them",
    "zero-shot-cot": "the question, then 'Let's think step by step.' (Kojima et al., 2022)",
    "cot-8shot": "eight worked examples, then the question",
    "chat": "the question alone, in the tokenizer's chat template",
    "chat-cot": "the same with a request to reason and to box the answer (both with worked examples where num_shots "
    "or shots asks for some)",
    "plain": "Question: ... Answer:",
}
"""Name → what it is."""
CHAT_PRESETS = ("chat", "chat-cot")
"""Those that go through the tokenizer's chat template."""
SHOT_PRESETS = ("cot-8shot", *CHAT_PRESETS)
"""Those that can show worked examples."""
AUTO = "auto"
"""The prompt that a model was trained with, where that is on record."""
UNRECORDED = "metamath"
"""What it is where nothing is on record."""


def preset_template(name: str, task: str, shots: Sequence[Shot] | None = None) -> PromptTemplate:
    """Return the template of a preset.

    Args:
        name: A key of `PRESETS`.
        task: A key of `SHOTS`: whose examples `cot-8shot` shows.
        shots: Show these examples instead; for a chat preset, which has none of its own, as turns before the question.

    Returns:
        The template, for `encode_prompt(..., evaluation=True)`.

    Raises:
        EvaluationError: There is no such preset, or it shows no examples and some were given.
    """
    if name not in PRESETS:
        raise EvaluationError(
            f"prompt must be one of {', '.join(PRESETS)}, got {name!r}{nearest_hint(name, PRESETS)}"
        )
    if shots is not None and name not in SHOT_PRESETS:
        raise EvaluationError(
            f"the prompt {name} shows no worked examples; use shots with {', '.join(SHOT_PRESETS)}"
        )
    if name in CHAT_PRESETS:
        request = (
            "\n\nReason step by step, and put the final answer in \\boxed{}." if name == "chat-cot" else ""
        )
        return PromptTemplate(name, "{question}" + request, chat=True, shots=tuple(shots or ()))
    if name in PROMPTS:
        return PROMPTS[name]
    if name == "zero-shot-cot":
        return PromptTemplate(
            name,
            _QUESTION,
            evaluation_suffix=" Let's think step by step.",
            completion_prefix=_PREFIX,
            stop=_NEXT,
        )
    examples = [f"Q: {question}\nA: {solution}\n\n" for question, solution in (shots or SHOTS[task])]
    if any("{question}" in example for example in examples):
        raise EvaluationError(
            "a worked example holds the text {question}, which marks the place of the question"
        )
    return PromptTemplate(name, "".join(examples) + _QUESTION, completion_prefix=_PREFIX, stop=_NEXT)


def check_prompt(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer has a place for all that a prompt says, and say what day it has in the place of today's.

    Args:
        template: The prompt.
        tokenizer: The model's.

    Raises:
        DataError: Its chat template leaves something out, or reads no argument of that name.
    """
    template.check(tokenizer)
    if day := template.written_day(tokenizer):
        say(day_text(day))


def prompt_identity(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return all that decides how a question reaches the model, for `config.json` and its hash."""
    return {
        "name": template.name,
        "prompt": template.prompt,
        "evaluation_suffix": template.evaluation_suffix,
        "system": template.system,
        # Both absent without any, so that results of before there were some go on.
        **({"template_arguments": dict(template.template_arguments)} if template.template_arguments else {}),
        **({"shots": [list(shot) for shot in template.shots]} if template.shots else {}),
        "chat_template": tokenizer.chat_template if template.chat else None,
        **({"date": str(day)} if (day := template.written_day(tokenizer)) else {}),
    }
