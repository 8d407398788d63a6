"""Numbers for code that runs on tensors without any: what it read from a small problem that is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from code_places import Place, Stack
from torch.overrides import TorchFunctionMode

_READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")


@dataclass
class Answers:
    """What the host reads: by place, in the order of asking, the last one again and again.

    Attributes:
        at: (file, line, function) → results.
        by_function: `module.function` → a result, where nothing is recorded: of code that a CPU does not reach.
    """

    at: dict[tuple[str, int, str], list[Any]] = field(default_factory=dict)
    by_function: Mapping[str, Any] = field(default_factory=dict)
    _asked: dict[tuple[str, int, str], int] = field(default_factory=dict)

    @staticmethod
    def _key(place: Place) -> tuple[str, int, str]:
        return place.file, place.line, place.calls[0] if place.calls else ""

    def record(self, place: Place, result: Any) -> None:
        """Keep a result."""
        self.at.setdefault(self._key(place), []).append(result)

    def answer(self, place: Place, otherwise: Any) -> Any:
        """The next result for a place, or else that of its function, or else `otherwise`."""
        key = self._key(place)
        number = self._asked[key] = self._asked.get(key, -1) + 1
        if known := self.at.get(key):
            return known[min(number, len(known) - 1)]
        return self.by_function.get(key[2], otherwise)


class _Rehearsal(TorchFunctionMode):
    """Keeps what the host reads from real tensors."""

    def __init__(self, stack: Stack, answers: Answers) -> None:
        super().__init__()
        self._stack, self._answers = stack, answers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _READS:
            self._answers.record(self._stack.place(), result)
        return result


def rehearse(call: Callable[[], object], root: Path, by_function: Mapping[str, Any] | None = None) -> Answers:
    """Run code on real tensors and keep what it read from them.

    Args:
        call: The code, on a small problem.
        root: The folder of our code.
        by_function: Answers of code that is not reached here, by `module.function`.
    """
    answers = Answers(by_function=by_function or {})
    with _Rehearsal(Stack(root), answers):
        call()
    return answers
