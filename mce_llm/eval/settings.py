"""The options of an evaluation, checked when they are made; each is a command-line option of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mce_llm.data import PromptTemplate
from mce_llm.eval.engines.decoding import Decoding, decoding_problems
from mce_llm.eval.engines.generation import BATCHINGS
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.loading import DTYPES
from mce_llm.eval.presets import CHAT_PRESETS, PRESETS, preset_template
from mce_llm.eval.shots import Shot
from mce_llm.eval.tasks import DEFAULT_SPLIT
from mce_llm.running.messages import nearest_hint, raise_all
from mce_llm.running.settings import mapping_of

BACKENDS = ("hf", "vllm")
_SPEED_ONLY = ("output", "overwrite", "batch_size", "batching", "tensor_parallel_size")
"""Options that do not change what the answers are."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The options that every task has."""

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
    limit: int | None = field(default=None, metadata={"help": "Only the first questions; all by default."})
    prompt: str = field(
        default="metamath",
        metadata={
            "help": "The prompt: " + "; ".join(f"{name}, {text}" for name, text in PRESETS.items()) + "."
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
        metadata={"help": "A file with the worked examples of cot-8shot; by default eight of our own."},
    )
    max_new_tokens: int = field(default=512, metadata={"help": "The most tokens of an answer."})
    temperature: float = field(
        default=0.0, metadata={"help": "0 for the most probable token each time (greedy); above it, sample."}
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Sample among the tokens that together have this probability."}
    )
    top_k: int = field(
        default=0, metadata={"help": "Sample among so many of the most probable tokens; 0: all."}
    )
    num_samples: int = field(
        default=1,
        metadata={"help": "Answers to each question, for majority votes and pass@k; needs a temperature."},
    )
    seed: int = field(
        default=0, metadata={"help": "The seed of sampling; greedy answers do not depend on it."}
    )
    dtype: str = field(
        default="auto", metadata={"help": f"Precision of the weights: {', '.join(DTYPES)}; auto is as saved."}
    )
    backend: str = field(
        default="hf", metadata={"help": "What generates: hf (transformers) or vllm, where it is installed."}
    )
    batch_size: int = field(default=16, metadata={"help": "Questions at a time on each process."})
    batching: str = field(
        default="auto",
        metadata={
            "help": "How the hf backend fills batches: continuous (a finished row makes room at once), bucketed "
            "(prompts of like length), static (the same with a static cache, compiled on CUDA), or auto: continuous "
            "for models that allow it."
        },
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one vllm engine spreads over."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the results in the output directory and answer all again."}
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {value}"
            for name in ("limit", "batch_size", "tensor_parallel_size")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        problems += [
            f"{name} must not be empty" for name in ("model", "output", "data") if not getattr(self, name)
        ]
        problems += decoding_problems(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            num_samples=self.num_samples,
        )
        for name, known in (
            ("dtype", DTYPES),
            ("prompt", PRESETS),
            ("backend", BACKENDS),
            ("batching", BATCHINGS),
        ):
            if (value := getattr(self, name)) not in known:
                problems.append(
                    f"{name} must be one of {', '.join(known)}, got {value!r}{nearest_hint(value, known)}"
                )
        mapping_of("chat_template_kwargs", self.chat_template_kwargs, problems)
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(self, name) is not None and self.prompt not in CHAT_PRESETS:
                problems.append(f"{name} has no effect without a chat prompt: {', '.join(CHAT_PRESETS)}")
        if self.shots is not None and self.prompt != "cot-8shot":
            problems.append("shots has no effect without prompt cot-8shot")
        if self.tensor_parallel_size > 1 and self.backend != "vllm":
            problems.append(
                "tensor_parallel_size has no effect without backend vllm; launch more processes instead"
            )
        if self.batching != "auto" and self.backend != "hf":
            problems.append("batching has no effect on the backend vllm, which fills batches by itself")
        raise_all(problems, EvaluationError)

    def decoding(self, stop: tuple[str, ...]) -> Decoding:
        """Return the settings of decoding with the prompt's stop strings."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            stop=stop,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            num_samples=self.num_samples,
            seed=self.seed if self.temperature else 0,
        )

    def recorded(self) -> dict[str, Any]:
        """Return the options that the answers depend on."""
        kept = {key: value for key, value in asdict(self).items() if key not in _SPEED_ONLY}
        unset = [key for key in ("system_prompt", "chat_template_kwargs", "revision") if kept[key] is None]
        for key in unset:  # results of before these options were there go on
            del kept[key]
        return kept | {"split": self.split_name}

    @property
    def split_name(self) -> str:
        """The split as results name it."""
        return self.split or DEFAULT_SPLIT

    def template(self, task: str, shots: Sequence[Shot] | None) -> PromptTemplate:
        """Return how questions are put to the model.

        Args:
            task: Whose worked examples `cot-8shot` shows.
            shots: Show these instead.
        """
        arguments = mapping_of("chat_template_kwargs", self.chat_template_kwargs, [])
        template = preset_template(self.prompt, task, shots)
        return replace(template, system=self.system_prompt, template_arguments=arguments)
