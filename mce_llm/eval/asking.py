"""Which model is asked which questions, and with what wording: the options that all evaluations share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from mce_llm.data import PromptTemplate
from mce_llm.data.questions import CANDIDATES
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.loading import DTYPES
from mce_llm.eval.presets import AUTO, CHAT_PRESETS, PRESETS, SHOT_PRESETS, UNRECORDED, preset_template
from mce_llm.eval.shots import chosen_shots
from mce_llm.eval.tasks import DEFAULT_SPLIT, UNREADABLE
from mce_llm.running.messages import nearest_hint, raise_all
from mce_llm.running.settings import mapping_of

_RECORDED_WHERE_SET = (
    *(
        "system_prompt",
        "chat_template_kwargs",
        "revision",
        "data_name",
        "columns",
        "num_shots",
        "thinking_tags",
    ),
)


@dataclass(frozen=True)
class QuestionsConfig:
    """The options of every evaluation; each is a command-line option of the same name, checked when they are made."""

    _UNRECORDED: ClassVar[tuple[str, ...]] = (
        *("output", "overwrite"),
        "unreadable_references",  # what was skipped is recorded
    )
    """Options that do not change what is found."""

    model: str = field(metadata={"help": "A model or PEFT adapter: a directory or a hub id."})
    output: str = field(metadata={"help": "The directory for items.jsonl, summary.json and config.json."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model from the hub; default: main."}
    )
    data: str = field(
        default="gsm8k",
        metadata={
            "help": "The questions: gsm8k, math, a hub id, a directory or a .jsonl, .json, .csv or .parquet file."
        },
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "The split of the data, or a slice of it: test[:100]; by default test, or all where there is one split."
        },
    )
    data_name: str | None = field(
        default=None, metadata={"help": "The configuration of a data set of the hub, where it has several."}
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "Which column of the data holds what, where that is not found by itself: "
            "'{question: prompt_text, answer: target}'; roles: " + ", ".join(CANDIDATES) + "."
        },
    )
    unreadable_references: str = field(
        default="refuse",
        metadata={
            "help": "What becomes of data with references that cannot be judged by: refuse, or skip (leave those questions "
            "out, and say how many)."
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "Only the first questions of the data; all by default."}
    )
    prompt: str = field(
        default=AUTO,
        metadata={
            "help": f"The prompt: {AUTO}, the one that the model was trained with where that is on record, else {UNRECORDED}; "
            + "; ".join(f"{name}, {text}" for name, text in PRESETS.items())
            + "."
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "A system message in front of the question, for the chat prompts."}
    )
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={
            "help": "What the chat template is given besides, as a mapping: '{enable_thinking: false}'."
        },
    )
    shots: str | None = field(
        default=None,
        metadata={
            "help": "A file with worked examples for cot-8shot or, as turns of the conversation, for the chat prompts; default: "
            "eight of our own."
        },
    )
    num_shots: int | None = field(
        default=None,
        metadata={
            "help": "Show so many worked examples; all of shots by default, and none in a chat without shots."
        },
    )
    dtype: str = field(
        default="auto", metadata={"help": f"Precision of the weights: {', '.join(DTYPES)}; auto is as saved."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the results in the output directory and begin anew."}
    )

    def __post_init__(self) -> None:
        raise_all(self._problems(), EvaluationError)

    def _problems(self) -> list[str]:
        """What is wrong with the options, in words."""
        problems = self._below_one("limit", "num_shots")
        problems += [
            f"{name} must not be empty" for name in ("model", "output", "data") if not getattr(self, name)
        ]
        problems += self._unknown("dtype", DTYPES)
        problems += self._unknown("prompt", (AUTO, *PRESETS))
        problems += self._unknown("unreadable_references", UNREADABLE)
        mapping_of("chat_template_kwargs", self.chat_template_kwargs, problems)
        mapping_of("columns", self.columns, problems)
        if self.prompt != AUTO:  # it is replaced, and then checked
            problems += self._without_effect()
        return problems

    def _below_one(self, *names: str) -> list[str]:
        """Numbers that must be at least 1 where they are set, and are not."""
        return [
            f"{name} must be at least 1, got {value}"
            for name in names
            if (value := getattr(self, name)) is not None and value < 1
        ]

    def _unknown(self, name: str, known: tuple[str, ...]) -> list[str]:
        """A choice that is none of those that there are."""
        if (value := getattr(self, name)) in known:
            return []
        return [f"{name} must be one of {', '.join(known)}, got {value!r}{nearest_hint(value, known)}"]

    def _without_effect(self) -> list[str]:
        """Options that the prompt has no place for."""
        problems = []
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(self, name) is not None and self.prompt not in CHAT_PRESETS:
                problems.append(
                    f"{name} has no effect without a chat prompt: {', '.join(CHAT_PRESETS)}; the prompt is {self.prompt}"
                )
        for name in ("shots", "num_shots"):
            if getattr(self, name) is not None and self.prompt not in SHOT_PRESETS:
                problems.append(
                    f"{name} has no effect without one of the prompts {', '.join(SHOT_PRESETS)}; the prompt is {self.prompt}"
                )
        return problems

    def recorded(self) -> dict[str, Any]:
        """Return the options that the results depend on."""
        kept = {key: value for key, value in asdict(self).items() if key not in self._UNRECORDED}
        unset = [key for key in _RECORDED_WHERE_SET if kept.get(key, "") is None]
        for key in unset:  # results of before these options were there go on
            del kept[key]
        return kept | {"split": self.split_name}

    @property
    def split_name(self) -> str:
        """The split as results name it."""
        return self.split or DEFAULT_SPLIT

    @property
    def column_mapping(self) -> dict[str, str | None] | None:
        """Role → column, as `columns` says."""
        return mapping_of("columns", self.columns, []) or None

    def template(self, task: str) -> PromptTemplate:
        """Return how questions are put to the model; `prompt` must not be `auto` any more (see `trained_prompt`).

        Args:
            task: Whose worked examples are shown where no file is given.

        Raises:
            DataError: If the worked examples cannot be read.
            EvaluationError: If there are fewer than `num_shots`.
        """
        shots = chosen_shots(task, self.shots, self.num_shots, boxed=self.prompt == "chat-cot")
        arguments = mapping_of("chat_template_kwargs", self.chat_template_kwargs, [])
        template = preset_template(self.prompt, task, shots)
        return replace(template, system=self.system_prompt, template_arguments=arguments)
