"""One launched program of a study: started with a log of its own, asked to stop, ended, and how long it took."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BufferedWriter
from math import inf
from pathlib import Path
from typing import Any

import psutil

from mce_llm.running.bound import bound_command
from mce_llm.running.installation import installed_versions
from mce_llm.studies.planning import shown_command
from mce_llm.studies.provenance import PACKAGES, code_facts

_TAIL = 64 * 1024  # bytes of a log in which its last lines are looked for


class Child:
    """A launched program, in a session of its own, that ends with this process.

    Args:
        command: Its words.
        script: Where it is a launcher, the script that it starts, by which its processes are known; else None.
        log: The file that its output is added to.
        environment: Variables beside those of this process.
    """

    def __init__(
        self, command: Sequence[str], script: Path | None, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.command, self.log, self._script = list(command), log, None if script is None else str(script)
        self.started = time.time()
        self.asked = False
        """Whether it was asked to stop."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file: BufferedWriter = log.open("ab")
        self._file.write(f"$ {shown_command(self.command, environment)}\n".encode())
        self._file.flush()
        self.begins = self._file.tell()
        """Where the output of this start begins in the log."""
        self._process = subprocess.Popen(
            bound_command(self.command),
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        )

    def poll(self) -> int | None:
        """The exit code as a shell gives it; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._file.close()
        return code if code >= 0 else 128 - code

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.time() - self.started

    def ask_to_stop(self) -> None:
        """Have it save and leave: SIGTERM, past a launcher, which would not wait for its script to save."""
        self.asked = True
        with suppress(psutil.NoSuchProcess):
            workers = [
                process
                for process in psutil.Process(self._process.pid).children()
                if self._script in _words_of(process)
            ]
            for process in workers:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
            if not workers:  # the launcher is only starting
                self._process.terminate()

    def kill(self) -> None:
        """End it at once, with all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def last_lines(log: Path, count: int, begins: int = 0) -> list[str]:
    """The last lines of a log, without those that a progress bar has written over.

    Args:
        log: The file.
        count: How many.
        begins: Where to look from at the earliest.
    """
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(begins, size - _TAIL))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


class Launches:
    """The journal of a run's launches: a line of JSON when one starts, and one when it ends.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, stage: str, started: float, signs: Sequence[Path] = ()) -> None:
        """Note a start; an earlier one whose end was not seen ended with its last sign, which is noted before.

        Later the signs are those of this start, and the time of the earlier one would be lost.

        Args:
            stage: What is started.
            started: When, in seconds since the epoch.
            signs: What the stage writes to while it runs, as it is before this start.
        """
        _, opened = self._ended_and_opened(stage)
        if opened is not None:
            self.end(stage, _until_last_sign(opened, signs, started), None)
        # Looked up anew each time: packages may be changed while a study goes on.
        versions = installed_versions(PACKAGES)
        self._add({"stage": stage, "started": round(started, 1), "code": code_facts(), "versions": versions})

    def end(self, stage: str, seconds: float, exit_code: int | None) -> None:
        """Note an end.

        Args:
            stage: What has ended.
            seconds: How long it ran.
            exit_code: How; None where nobody saw it.
        """
        self._add({"stage": stage, "seconds": round(seconds, 1), "exit_code": exit_code})

    def seconds(self, stage: str, signs: Sequence[Path]) -> float:
        """How long all launches of a stage took together; one whose end was not seen lasts to its last sign.

        Args:
            stage: Which.
            signs: What it writes to while it runs.
        """
        total, opened = self._ended_and_opened(stage)
        return total if opened is None else total + _until_last_sign(opened, signs)

    def _ended_and_opened(self, stage: str) -> tuple[float, float | None]:
        """The seconds of a stage's launches that have ended, and when one began whose end was not noted."""
        total, opened = 0.0, None
        for line in self._lines():
            if line.get("stage") != stage:
                continue
            if "started" in line:
                opened = float(line["started"])
            else:
                total, opened = total + float(line["seconds"]), None
        return total, opened

    def codes(self, stage: str) -> list[dict[str, str]]:
        """The different versions of this package that a stage was run with."""
        found = []
        for line in self._lines():
            if line.get("stage") == stage and "code" in line and line["code"] not in found:
                found.append(line["code"])
        return found

    def versions(self, stage: str) -> dict[str, str]:
        """The versions of packages that a stage was run with, several of one as `1.0 and 1.1`; empty where none were noted."""
        found: dict[str, list[str]] = {}
        for line in self._lines():
            if line.get("stage") == stage:
                for name, version in line.get("versions", {}).items():
                    if version not in (known := found.setdefault(name, [])):
                        known.append(version)
        return {name: " and ".join(known) for name, known in found.items()}

    def _add(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line) + "\n"
        # A line that a kill has torn must not swallow this one.
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            text = "\n" + text
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def _until_last_sign(opened: float, signs: Sequence[Path], latest: float = inf) -> float:
    """Seconds from a start to the last change of what it wrote to, which was not later than a known time."""
    changed = max((path.stat().st_mtime for path in signs if path.exists()), default=opened)
    return max(0.0, min(changed, latest) - opened)
