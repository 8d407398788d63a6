"""How questions are put to a model at evaluation, by name: wording, worked examples, stop strings.

`metamath`, `plain` and `chat` are the wordings that models were fine-tuned with (`mce_llm.data.prompts`); the others are
for models as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.data import PROMPTS, PromptTemplate
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.shots import SHOTS, Shot
from mce_llm.running.messages import nearest_hint

_QUESTION = "Q: {question}\nA:"
_NEXT = ("\nQ:", "\nQuestion:")
_TRAINED = ("metamath", "plain", "chat")

PRESETS = {
    "metamath": "as models trained on MetaMathQA expect, and as MetaMath evaluates them",
    "zero-shot-cot": "the question, then 'Let's think step by step.' (Kojima et al., 2022)",
    "cot-8shot": "eight worked examples, then the question",
    "chat": "the question alone, in the tokenizer's chat template",
    "chat-cot": "the same with a request to reason and to box the answer",
    "plain": "Question: ... Answer:",
}
"""Name → what it is."""
CHAT_PRESETS = ("chat", "chat-cot")
"""Those that go through the tokenizer's chat template."""


def preset_template(name: str, task: str, shots: Sequence[Shot] | None = None) -> PromptTemplate:
    """Return the template of a preset.

    Args:
        name: A key of `PRESETS`.
        task: A key of `SHOTS`: whose examples `cot-8shot` shows.
        shots: Show these examples instead.

    Returns:
        The template, for `encode_prompt(..., evaluation=True)`.

    Raises:
        EvaluationError: There is no such preset, or it shows no examples and some were given.
    """
    if name not in PRESETS:
        raise EvaluationError(
            f"prompt must be one of {', '.join(PRESETS)}, got {name!r}{nearest_hint(name, PRESETS)}"
        )
    if shots is not None and name != "cot-8shot":
        raise EvaluationError(f"the prompt {name} shows no worked examples; use shots with cot-8shot")
    if name in _TRAINED:
        return PROMPTS[name]
    if name == "chat-cot":
        request = "{question}\n\nReason step by step, and put the final answer in \\boxed{}."
        return PromptTemplate(name, request, chat=True)
    if name == "zero-shot-cot":
        return PromptTemplate(name, _QUESTION, evaluation_suffix=" Let's think step by step.", stop=_NEXT)
    examples = [f"Q: {question}\nA: {solution}\n\n" for question, solution in (shots or SHOTS[task])]
    if any("{question}" in example for example in examples):
        raise EvaluationError(
            "a worked example holds the text {question}, which marks the place of the question"
        )
    return PromptTemplate(name, "".join(examples) + _QUESTION, stop=_NEXT)


def prompt_identity(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return all that decides how a question reaches the model, for `config.json` and its hash."""
    return {
        "name": template.name,
        "prompt": template.prompt,
        "evaluation_suffix": template.evaluation_suffix,
        "system": template.system,
        # Absent without any, so that results of before there were some go on.
        **({"template_arguments": dict(template.template_arguments)} if template.template_arguments else {}),
        "chat_template": tokenizer.chat_template if template.chat else None,
    }
