"""Which line of our code asks for what, told from the stack."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where in our code something was asked for; `calls` has the functions around it, innermost first."""

    file: str
    line: int
    calls: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.calls[0].partition('.')[2]}" if self.calls else self.file


NOWHERE = Place("outside of our code", 0, ())


class Stack:
    """Finds the place in our code that is being executed.

    Args:
        root: The folder of our code.
    """

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._names: dict[CodeType, str | None] = {}
        self._places: dict[tuple[Any, ...], Place] = {}

    def place(self) -> Place:
        """The innermost function of ours, with all the functions of ours that called it."""
        codes: list[CodeType] = []
        frame: FrameType | None = sys._getframe(1)
        file, line = "", 0
        while frame is not None:
            code = frame.f_code
            name = self._name(code)
            if name is not None:
                if not codes:
                    file, line = Path(code.co_filename).name, frame.f_lineno
                codes.append(code)
            frame = frame.f_back
        if not codes:
            return NOWHERE
        key = (line, *codes)
        if key not in self._places:
            self._places[key] = Place(file, line, tuple(str(self._name(code)) for code in codes))
        return self._places[key]

    def _name(self, code: CodeType) -> str | None:
        """`module.function` of code of ours."""
        if code not in self._names:
            ours = code.co_filename.startswith(self._root)
            self._names[code] = f"{Path(code.co_filename).stem}.{code.co_qualname}" if ours else None
        return self._names[code]
