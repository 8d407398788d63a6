"""The options of an evaluation of answers, checked when they are made; each is a command-line option of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mce_llm.eval.asking import QuestionsConfig
from mce_llm.eval.engines.decoding import Decoding, decoding_problems
from mce_llm.eval.engines.generation import BATCHINGS
from mce_llm.eval.judging.reasoning import ThinkingTagsError, check_tags, tags_of

_BATCH_SIZES = {"hf": 16, "vllm": 256}  # vLLM's own; it takes fewer where its memory does not hold so many
BACKENDS = tuple(_BATCH_SIZES)


@dataclass(frozen=True)
class EvaluationConfig(QuestionsConfig):
    """The options that every task with answers has, beside those of `QuestionsConfig`."""

    _UNRECORDED: ClassVar[tuple[str, ...]] = (
        *QuestionsConfig._UNRECORDED,
        *("batch_size", "batching", "tensor_parallel_size"),
    )

    thinking_tags: str | None = field(
        default=None,
        metadata={
            "help": "Further tags around what a model only thinks, with commas between: names ('ponder' for <ponder>...</ponder>) "
            "or pairs ('[[T]] [[/T]]'). <think>, <reasoning>, [THINK] and their like are known."
        },
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
    backend: str = field(
        default="hf", metadata={"help": "What generates: hf (transformers) or vllm, where it is installed."}
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Questions at a time on each process; by default "
            + ", ".join(f"{size} with {name}" for name, size in _BATCH_SIZES.items())
            + "."
        },
    )
    batching: str = field(
        default="auto",
        metadata={
            "help": "How the hf backend fills batches: continuous (a finished row makes room at once), bucketed "
            "(prompts of like length), static (the same with a static cache, compiled on CUDA), or auto: continuous "
            "for models that allow it."
        },
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one vllm engine spreads over."})

    def _problems(self) -> list[str]:
        problems = self._below_one("batch_size", "tensor_parallel_size")
        problems += decoding_problems(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            num_samples=self.num_samples,
        )
        problems += self._unknown("backend", BACKENDS)
        problems += self._unknown("batching", BATCHINGS)
        try:
            check_tags(self.thinking)
        except ThinkingTagsError as error:
            problems.append(f"thinking_tags: {error}")
        if self.tensor_parallel_size > 1 and self.backend != "vllm":
            problems.append(
                "tensor_parallel_size has no effect without backend vllm; launch more processes instead"
            )
        if self.batching != "auto" and self.backend != "hf":
            problems.append("batching has no effect on the backend vllm, which fills batches by itself")
        return problems + super()._problems()

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

    @property
    def questions_at_a_time(self) -> int:
        """The batch size, with the backend's default."""
        return self.batch_size or _BATCH_SIZES[self.backend]

    @property
    def thinking(self) -> tuple[str, ...]:
        """The tags of `thinking_tags`."""
        return tags_of(self.thinking_tags)
