"""Prompt templates: one wording, used by training and by evaluation alike.

A template says how a question is put to the model, what is added at evaluation only, how the completion
begins, and where a run-on generation is cut. Reading data and judging answers are done elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from mce_llm.data.chat import Turns, check_arguments, end_of_turn, render, split_turns
from mce_llm.data.conversations import Conversation, conversation_of
from mce_llm.data.dialects import template_of
from mce_llm.data.encoding import bare_ids, continuation_ids, opening_ids, placed_continuation
from mce_llm.data.errors import DataError
from mce_llm.data.template_date import written_day
from mce_llm.running.messages import nearest_hint

IGNORE_INDEX = -100
"""The label of a token that is not trained."""

_PLACEHOLDER = "{question}"


class Encoded(NamedTuple):
    """An example as ids and labels, and the text that they stand for."""

    input_ids: list[int]
    labels: list[int]
    text: str


class EncodedPair(NamedTuple):
    """A question and its response as ids, and where the tokens of the response stand in its text."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """What training puts labels on: the response and the token that ends it."""
    completion: str
    """The text of the completion: the response with what the prompt or the chat template puts around it."""
    places: list[tuple[int, int]]
    """The characters of `completion` that each of its tokens stands for; a last token that is missing is an added EOS."""


@dataclass(frozen=True)
class PromptTemplate:
    """How a question becomes a prompt.

    Attributes:
        name: The name in the registry; it is recorded beside results.
        prompt: The training prompt, with ``{question}`` exactly once; other braces are plain text.
            For a chat template, the text of the user's turn.
        evaluation_suffix: Added after the prompt at evaluation only (for chat: after the header of the
            assistant's turn).
        completion_prefix: What the completion begins with, so that its first word is the token that
            naturally follows the prompt: ``" "`` where the prompt ends in a colon and the answer is a new
            word, ``""`` where the text follows at once. Not used for chat.
        stop: Strings at which a generation is cut: each would begin another question.
        chat: Render through ``tokenizer.apply_chat_template``.
        system: The system message of a chat prompt, or ``None`` for none; conversations that have one of
            their own keep it.
        template_arguments: What a chat template is given besides, such as ``{"enable_thinking": False}``.
        shots: Questions with their answers that a chat prompt shows first, each as a user's and an assistant's turn; the
            questions are worded as the one that is asked. Other prompts hold theirs in their text.
    """

    name: str
    prompt: str
    evaluation_suffix: str = ""
    completion_prefix: str = ""
    stop: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shots: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        found = self.prompt.count(_PLACEHOLDER)
        if found != 1:
            raise DataError(
                f"prompt {self.name!r} must contain {_PLACEHOLDER} exactly once, found {found} times in "
                f"{self.prompt!r}"
            )
        if isinstance(self.stop, str):
            raise DataError(f"prompt {self.name!r}: stop must be a tuple of strings, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        if any(not text for text in self.stop):
            raise DataError(f"prompt {self.name!r}: an empty stop string would cut every generation at once")
        if self.system is not None and not self.chat:
            raise DataError(
                f"a system message needs a chat template, and the prompt {self.name!r} has no place for one; use the prompt "
                "'chat'"
            )
        if self.template_arguments and not self.chat:
            raise DataError(
                f"chat_template_kwargs are for a chat template, and the prompt {self.name!r} uses none; use the prompt 'chat'"
            )
        if self.shots and not self.chat:
            raise DataError(
                f"shots are turns of a chat, and the prompt {self.name!r} is none; use the prompt 'chat'"
            )

    def training_prompt(self, question: str) -> str:
        """Return the prompt that training puts before the completion (for chat: the user's turn)."""
        return self.prompt.replace(_PLACEHOLDER, question)

    def evaluation_prompt(self, question: str) -> str:
        """Return the training prompt and the evaluation suffix (for chat: the user's turn alone)."""
        return self.training_prompt(question) + ("" if self.chat else self.evaluation_suffix)

    def encode_prompt(
        self, tokenizer: PreTrainedTokenizerBase, question: str, *, evaluation: bool = False
    ) -> list[int]:
        """Return the prompt's token ids, with BOS where the tokenizer adds one, never two.

        The ids for evaluation always begin with the ids for training. Chat raises `DataError` where the
        tokenizer has no chat template or its template refuses the messages.

        Args:
            tokenizer: Any Hugging Face tokenizer; for chat it must have a chat template.
            question: The question.
            evaluation: Add the evaluation suffix.

        Returns:
            The token ids, ready to be continued by `encode_completion` or by generation.
        """
        if self.chat:
            ids = bare_ids(tokenizer, self._opened(tokenizer, question))
        else:
            ids = opening_ids(tokenizer, self.training_prompt(question))
        if evaluation and self.evaluation_suffix:
            ids = ids + continuation_ids(tokenizer, self.evaluation_suffix)
        return ids

    def encode_completion(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Return the completion's token ids, ended once: by EOS, or for chat by the end-of-turn token.

        Outside chat the spelling of a special token inside ``text`` is read as ordinary characters, so
        that data cannot teach the model to stop in the middle. `DataError` is raised for a tokenizer that
        has no EOS, or whose chat template cannot be used.

        Args:
            tokenizer: Any Hugging Face tokenizer.
            text: The response.

        Returns:
            The token ids, to be put directly after those of `encode_prompt`.
        """
        if not self.chat:
            eos = _eos_id(tokenizer)
            return [*continuation_ids(tokenizer, self._completion(tokenizer, text), literal=True), eos]
        messages = [*self._messages("?"), {"role": "assistant", "content": text}]
        input_ids, labels = self.encode_conversation(tokenizer, messages)
        return [token for token, label in zip(input_ids, labels, strict=True) if label != IGNORE_INDEX]

    def encode_pair(
        self, tokenizer: PreTrainedTokenizerBase, question: str, response: str, *, evaluation: bool = False
    ) -> EncodedPair:
        """Return the ids that training would have, with the place of each trained token in the text.

        Args:
            tokenizer: A fast tokenizer of Hugging Face.
            question: The question.
            response: The response.
            evaluation: Add the evaluation suffix to the prompt, but for chat.

        Raises:
            DataError: As for `encode_completion`, or the tokenizer does not say where a token stands.
        """
        if self.chat:
            masked, answer = split_turns(tokenizer, self.pair(question, response), self.template_arguments)
            prompt_ids, text, needs_eos = bare_ids(tokenizer, masked.text), answer.text, answer.needs_eos
        else:
            prompt_ids = self.encode_prompt(tokenizer, question, evaluation=evaluation)
            text, needs_eos = self._completion(tokenizer, response), True
        placed = placed_continuation(tokenizer, text, literal=not self.chat)
        ids = [*placed.ids, _eos_id(tokenizer)] if needs_eos else placed.ids
        return EncodedPair(prompt_ids, ids, text, placed.places)

    def encode_conversation(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], list[int]]:
        """Return ids and labels of a conversation: every assistant turn trained, all else masked.

        Args:
            tokenizer: A tokenizer that has a chat template.
            messages: ``{"role": ..., "content": ...}`` in order, and what else the template reads; at least one
                assistant turn. A turn with ``"trained": False`` is masked.

        Returns:
            ``(input_ids, labels)`` of equal length; labels are ``-100`` where nothing is trained.

        Raises:
            DataError: The prompt is not a chat prompt, there is no assistant turn, or the chat template
                cannot be used.
        """
        encoded = self.encode_turns(tokenizer, conversation_of({"messages": messages}))[0]
        return encoded.input_ids, encoded.labels

    def encode_turns(
        self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turns: Turns = "all"
    ) -> list[Encoded]:
        """Return the examples that a conversation makes.

        Args:
            tokenizer: A tokenizer that has a chat template.
            conversation: With at least one assistant turn.
            turns: ``"all"`` trained turns in one example, the ``"last"`` alone, or ``"each"`` in an example of its own.

        Returns:
            One example; for ``"each"`` as many as there are trained turns, and one where there is none.

        Raises:
            DataError: The prompt is not a chat prompt, there is no assistant turn, or the chat template
                cannot be used.
        """
        if not self.chat:
            raise DataError(
                f"the records are conversations (messages, or pairs with a system prompt or a history), and the prompt "
                f"{self.name!r} is for a question and a response; use the prompt 'chat'"
            )
        conversation = self.with_system(conversation)
        places = [place for place, trained in enumerate(conversation.trained) if trained]
        if turns == "all" or not places:
            return [self._encoded(tokenizer, conversation)]
        chosen = places if turns == "each" else places[-1:]
        return [self._encoded(tokenizer, conversation.ending_at(place)) for place in chosen]

    def _completion(self, tokenizer: PreTrainedTokenizerBase, response: str) -> str:
        """What stands between a prompt that is no chat and the EOS."""
        return self.completion_prefix + response.removesuffix(str(tokenizer.eos_token))

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        input_ids: list[int] = []
        labels: list[int] = []
        segments = split_turns(tokenizer, conversation, self.template_arguments)
        for segment in segments:
            if input_ids:
                ids = continuation_ids(tokenizer, segment.text)
            else:
                ids = bare_ids(tokenizer, segment.text)
            if segment.needs_eos:
                ids = [*ids, _eos_id(tokenizer)]
            input_ids += ids
            labels += ids if segment.trained else [IGNORE_INDEX] * len(ids)
        return Encoded(input_ids, labels, "".join(segment.text for segment in segments))

    def end_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the ids at which generation stops: EOS and, for chat, the end-of-turn token.

        Args:
            tokenizer: Any Hugging Face tokenizer.

        Returns:
            One or two ids, without repetition, the one that training teaches first.
        """
        if self.chat:
            taught = end_of_turn(tokenizer, self._messages("?"), self.template_arguments)
            ends = [_eos_id(tokenizer) if taught is None else bare_ids(tokenizer, taught)[-1]]
        else:
            ends = [_eos_id(tokenizer)]
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
            ends.append(tokenizer.eos_token_id)
        return ends

    def with_system(self, conversation: Conversation) -> Conversation:
        """Return the conversation with the system message of this prompt, unless it has one of its own."""
        if self.system is None or conversation.messages[0]["role"] in ("system", "developer"):
            return conversation
        return replace(
            conversation,
            messages=[{"role": "system", "content": self.system}, *conversation.messages],
            trained=[False, *conversation.trained],
        )

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a chat template has a place for the system message, the arguments and the worked examples.

        Args:
            tokenizer: With the template.

        Raises:
            DataError: It leaves the system message or an example out, or reads no argument of that name.
        """
        if self.template_arguments:
            check_arguments(tokenizer, self.template_arguments)
        if self.system and self.system.strip() not in self._opened(tokenizer, "?"):
            raise DataError(
                "system_prompt: the chat template leaves a system message out, so it would have no effect; set another "
                "chat_template, or put the text into the questions"
            )
        if self.shots:
            self._check_shots(tokenizer)

    def written_day(self, tokenizer: PreTrainedTokenizerBase) -> date | None:
        """Return the day that stands where the chat template would write today's date; None where it writes none."""
        if not self.chat:
            return None
        text, arguments = template_of(tokenizer), self.template_arguments
        return written_day(text, arguments, lambda given: self._opened(tokenizer, "?", given))

    def pair(self, question: str, response: str) -> Conversation:
        """Return a pair as a conversation, for a chat prompt; the worked examples in front of it are not trained."""
        messages = [*self._messages(question), {"role": "assistant", "content": response}]
        return Conversation(messages, [False] * (len(messages) - 1) + [True])

    def _check_shots(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Templates may show the last turn alone, or rewrite earlier answers, as those that cut reasoning out do."""
        written, place = self._opened(tokenizer, "?"), 0
        for number, shot in enumerate(self.shots, start=1):
            for role, text in zip(
                ("question", "answer"), (self.training_prompt(shot[0]), shot[1]), strict=True
            ):
                found = written.find(text.strip(), place)
                if found < 0:
                    raise DataError(
                        f"the chat template does not write the {role} of worked example {number} as it stands, so the model "
                        f"would see another one: {text.strip()[:60]!r}; leave the examples out, or set another chat_template"
                    )
                place = found + len(text.strip())

    def _messages(self, question: str) -> list[dict[str, Any]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answer in (*self.shots, (question, None)):
            messages.append({"role": "user", "content": self.training_prompt(asked)})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return messages

    def _opened(
        self, tokenizer: PreTrainedTokenizerBase, question: str, arguments: Mapping[str, Any] | None = None
    ) -> str:
        given = self.template_arguments if arguments is None else arguments
        return render(tokenizer, self._messages(question), generate=True, arguments=given)


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no EOS token, so a "
            "model could not learn to stop; save a tokenizer with one (in Python, set tokenizer.eos_token) and name it as "
            "tokenizer_name_or_path"
        )
    return int(tokenizer.eos_token_id)


PROMPTS: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(
            # MetaMath (Yu et al., 2023) trains on the response directly after the colon, with no space; the words at
            # which its evaluation cuts are those of its eval_gsm8k.py (each also covers its form with a colon).
            name="metamath",
            prompt=(
                "Below is an instruction that describes a task. Write a response that appropriately "
                "completes the request.\n\n### Instruction:\n{question}\n\n### Response:"
            ),
            evaluation_suffix=" Let's think step by step.",
            stop=tuple(
                word + colon
                for word in ("Question", "USER", "ASSISTANT", "Instruction", "Response")
                for colon in (":", "")
            ),
        ),
        PromptTemplate(
            name="plain",
            prompt="Question: {question}\nAnswer:",
            completion_prefix=" ",
            stop=("\nQuestion:",),
        ),
        PromptTemplate(name="chat", prompt="{question}", chat=True),
    )
}
"""The templates that can be chosen by name."""


def get_prompt(name: str) -> PromptTemplate:
    """Return the template called ``name``.

    Args:
        name: A key of `PROMPTS`.

    Returns:
        The template.

    Raises:
        DataError: There is none of that name; the message gives the nearest.
    """
    if name not in PROMPTS:
        raise DataError(
            f"unknown prompt {name!r}{nearest_hint(name, PROMPTS)}; choose one of {', '.join(PROMPTS)}"
        )
    return PROMPTS[name]
