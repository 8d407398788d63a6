"""What a run wrote about itself, read for drawing: metrics.jsonl and spectra.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.errors import MceLlmError
from mce_llm.vision.running.folder import METRICS, SPECTRA


class MeasurementError(MceLlmError, ValueError):
    """A file of measurements that cannot be read; the message names the line."""


@dataclass(frozen=True)
class EpochSpectrum:
    """Singular values after an epoch.

    Attributes:
        epoch: How many epochs were done.
        encoder: Those of the centred features of evaluation images, descending.
        embedding: Those of their embeddings.
        encoder_rank: The features' effective rank, or None where it is not on record.
        embedding_rank: The embeddings'.
    """

    epoch: float
    encoder: list[float]
    embedding: list[float]
    encoder_rank: float | None = None
    embedding_rank: float | None = None


@dataclass(frozen=True)
class Journal:
    """Measurements by name, each with the epochs (or steps) they were made at.

    Attributes:
        unit: `epoch`, or `step` where no epochs are on record.
        series: (where, value) pairs by name, in order; values that are no finite numbers are left out.
    """

    unit: str
    series: dict[str, list[tuple[float, float]]]


def read_journal(run: Path) -> Journal:
    """Read a run's metrics.jsonl.

    Args:
        run: The run's folder.

    Returns:
        Its measurements; empty where there are none.

    Raises:
        MeasurementError: A line is no JSON mapping.
    """
    lines = list(_lines(run / METRICS))
    unit = "epoch" if lines and all("epoch" in line for line in lines) else "step"
    series: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and name not in ("step", "epoch"):
                series.setdefault(name, []).append((float(line[unit]), float(value)))
    return Journal(unit, series)


def read_spectra(run: Path) -> list[EpochSpectrum]:
    """Read a run's spectra.jsonl, with the effective ranks that metrics.jsonl has for the same steps.

    Args:
        run: The run's folder.

    Returns:
        The spectra in order; empty where there are none.

    Raises:
        MeasurementError: A line is no spectrum.
    """
    ranks = {line["step"]: line for line in _lines(run / METRICS)}
    found = []
    for number, line in enumerate(_lines(run / SPECTRA), 1):
        try:
            noted = ranks.get(line["step"], {})
            found.append(
                EpochSpectrum(
                    epoch=float(line["epoch"]),
                    encoder=[float(value) for value in line["encoder"]],
                    embedding=[float(value) for value in line["embedding"]],
                    encoder_rank=noted.get("monitor/effective_rank"),
                    embedding_rank=noted.get("monitor/embedding_effective_rank"),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"line {number} of {run / SPECTRA} is no spectrum: {error!r}") from error
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, if it is there; a last one that was torn by a kill is passed over."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            content["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return
            raise MeasurementError(f"line {number} of {path} is no measurement: {line[:60]!r}") from error
        yield content
