"""A console for text of others: whatever is printed by it, and however, is `visible_text.visible`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mce_llm.running.visible_text import visible


class DataConsole(Console):
    """A console that writes out what `visible` does in everything that is printed, however it came there.

    Colours and links are rich's own and stay; strings are markup only where `markup=True` is asked for.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the text of every segment written out."""
        return _visible_segments(super().render(renderable, options))


def _visible_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        yield segment if segment.control else Segment(visible(segment.text), segment.style)
