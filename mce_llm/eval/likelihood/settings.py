"""The options of a likelihood evaluation; each is a command-line option of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mce_llm.eval.asking import QuestionsConfig

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


@dataclass(frozen=True)
class LikelihoodConfig(QuestionsConfig):
    """The options that say which model is asked what, and how much of it at a time."""

    _UNRECORDED: ClassVar[tuple[str, ...]] = (*QuestionsConfig._UNRECORDED, "batch_tokens")

    unreadable_references: str = field(
        default="refuse",
        metadata={
            "help": "What becomes of data with references without a final answer, or longer with their prompt than the model has "
            "positions: refuse, or skip (leave those questions out, and say how many)."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "The most tokens of a batch on each process, padding included; a longer solution is a batch by itself. By "
            "default " + ", ".join(f"{size} on {kind}" for kind, size in _BATCH_TOKENS.items()) + "."
        },
    )

    def _problems(self) -> list[str]:
        return super()._problems() + self._below_one("batch_tokens")

    def tokens_at_a_time(self, device_type: str) -> int:
        """The tokens of a batch, with the default of a type of device; accelerators other than CUDA count as CUDA."""
        return self.batch_tokens or _BATCH_TOKENS.get(device_type, _BATCH_TOKENS["cuda"])
