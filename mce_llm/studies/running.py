"""The runs of a study, one after the other or several at once: started, watched, their results kept, stopped in order."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from mce_llm.errors import MceLlmError
from mce_llm.running.files import remove
from mce_llm.running.folder import OutputError, hold_folder, release_folder
from mce_llm.studies.checking import Checked, mark_prepared, pending_preparations
from mce_llm.studies.child import Child, last_lines
from mce_llm.studies.collecting import launches_of, line_of, log_of, signs_of
from mce_llm.studies.definition import Study
from mce_llm.studies.errors import RunFailedError
from mce_llm.studies.planning import Run, Stage, shown_command, weight_files
from mce_llm.studies.results import Results
from mce_llm.studies.slots import Slot

_POLL = 0.2  # seconds
_TAIL = 12  # lines of a failed run's log that are shown
_SAME_REQUEST = 2.0  # seconds within which two signals are one request


class Stopped(Exception):
    """The study was asked to stop, and its runs have saved and left."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@dataclass
class Active:
    """A run that is under way.

    Attributes:
        run: Which.
        slot: On which share of the machine.
        left: The stages that are still to be run, the one under way first.
        child: The program under way; None while it waits for an earlier one to let go of its folder.
    """

    run: Run
    slot: Slot
    left: deque[Stage]
    child: Child | None = None

    @property
    def stage(self) -> Stage:
        """The stage under way."""
        return self.left[0]


class Watcher(Protocol):
    """Shows how far a study is."""

    def began(self, active: Active) -> None:
        """A stage has begun."""

    def ended(self, active: Active, seconds: float, code: int) -> None:
        """A stage has ended."""

    def finished(self, run: Run) -> None:
        """The results of a run are in the file."""

    def said(self, text: str) -> None:
        """Something to tell."""

    def look(self, active: Sequence[Active]) -> None:
        """Time has passed."""


def run_study(found: Checked, runs: Sequence[Run], slots: Sequence[Slot], watcher: Watcher) -> None:
    """Run what is not finished, in the order given.

    A program that fails lets those beside it come to the end of what they are doing, and nothing more is started.
    SIGINT and SIGTERM are passed on, so that trainings save a checkpoint; a second one ends everything at once.

    Args:
        found: The study.
        runs: Its runs, in the order in which they are to be run.
        slots: As many as may run at once.
        watcher: Is told of everything.

    Raises:
        RunFailedError: A training or an evaluation failed, or what it left could not be kept.
        Stopped: A signal came, and all runs have left.
    """
    runner = _Runner(found, watcher)
    for run in runs:
        if run.finished:
            runner.drop_weights(run)
    waiting = deque(run for run in runs if not run.finished)
    active: list[Active] = []
    free = list(slots)
    with _signals(runner.wish):
        while waiting or active:
            while waiting and free and not runner.ends:
                active.append(runner.start(waiting.popleft(), free.pop(0)))
            for item in list(active):
                if runner.is_done_with(item):
                    active.remove(item)
                    free.append(item.slot)
            if runner.ends and not active:
                break
            runner.wish.pass_on([item.child for item in active if item.child is not None])
            watcher.look(active)
            time.sleep(_POLL)
    if runner.failure is not None:
        raise runner.failure
    if runner.wish.signal is not None:
        raise Stopped(runner.wish.signal)


def prepare(study: Study, watcher: Watcher) -> None:
    """Run the commands that make files before the first run, those that were not run to their end.

    Args:
        study: The study.
        watcher: Is told of each.

    Raises:
        RunFailedError: A command failed, or left no file.
        Stopped: A signal came, and the command has left.
    """
    for step in pending_preparations(study):
        words = [sys.executable if word == "python" else word for word in step.command]
        log = study.output / "logs" / "prepare.log"
        watcher.said(f"prepare {step.makes}: {shown_command(words)} ({log})")
        with _signals(wish := _Wish()):
            child = Child(words, None, log, {})
            while (code := child.poll()) is None:
                wish.pass_on([child])
                time.sleep(_POLL)
        if wish.signal is not None:
            raise Stopped(wish.signal)
        if code != 0 or not step.makes.exists():
            how = f"ended with exit code {code}" if code else f"left no {step.makes}"
            raise RunFailedError(f"{shown_command(words)} {how}{_tail_of(log, child.begins)}", code or 2)
        mark_prepared(study, step)


class _Wish:
    """What this process was asked by signals, and what of it the programs have been told."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False

    def pass_on(self, children: Sequence[Child]) -> None:
        """Ask programs to stop where this process was asked to, or end them."""
        for child in children:
            if self.at_once:
                child.kill()
            elif self.signal is not None and not child.asked:
                child.ask_to_stop()


class _Runner:
    """What is done with single runs."""

    def __init__(self, found: Checked, watcher: Watcher) -> None:
        self._found, self._study, self._watcher = found, found.study, watcher
        self._results = Results(self._study.output, self._study.name)
        self._told_to_wait: set[Path] = set()
        self.failure: RunFailedError | None = None
        self.wish = _Wish()

    @property
    def ends(self) -> bool:
        """Whether nothing new is started."""
        return self.failure is not None or self.wish.signal is not None

    def start(self, run: Run, slot: Slot) -> Active:
        """Begin with a run's first stage that is not done."""
        active = Active(run, slot, deque(stage for stage in run.stages if not stage.done))
        if active.left:
            with self._problems_of(run):
                self._launch(active)
        return active

    def is_done_with(self, active: Active) -> bool:
        """Go on with a run where its program has ended; whether the run has come to its end."""
        with self._problems_of(active.run):
            return self._goes_to_end(active)
        return True

    @contextmanager
    def _problems_of(self, run: Run) -> Iterator[None]:
        """Take what cannot be read, kept or written of a run as its failure, so that those beside it come to their end."""
        try:
            yield
        except (MceLlmError, OSError) as error:
            self._failed(f"{run.name}: {error}\nthe same command goes on from there once it is mended", 2)

    def _goes_to_end(self, active: Active) -> bool:
        if not active.left:
            return self._keep(active)
        if active.child is None:
            if self.ends:
                return True
            self._launch(active)
            return False
        code = active.child.poll()
        if code is None:
            return False
        seconds = active.child.seconds
        stage = active.stage
        launches_of(self._study, active.run).end(stage.name, seconds, code)
        self._watcher.ended(active, seconds, code)
        if code != 0:
            if self.wish.signal is None:
                self._fail(active, code)
            return True
        active.left.popleft()
        active.child = None
        if not active.left:
            return self._keep(active)
        if not self.ends:
            self._launch(active)
        return self.ends

    def _launch(self, active: Active) -> None:
        stage = active.stage
        if not _is_free(stage.folder):
            if stage.folder not in self._told_to_wait:
                self._told_to_wait.add(stage.folder)
                self._watcher.said(f"waiting for an earlier process that still writes to {stage.folder}")
            return
        signs = signs_of(self._study, active.run, stage.name)
        launches_of(self._study, active.run).begin(stage.name, time.time(), signs)
        active.child = Child(
            stage.command(active.slot, self._study.launch),
            stage.script,
            log_of(self._study, active.run, stage.name),
            active.slot.environment,
        )
        self._watcher.began(active)

    def _keep(self, active: Active) -> bool:
        run = active.run
        line = line_of(
            self._study,
            run,
            self._found.shaping[run.arm.name],
            self._found.options,
            self._found.launch,
        )
        self._results.add(line)
        self._watcher.finished(run)
        self.drop_weights(run)
        return True

    def drop_weights(self, run: Run) -> None:
        """Delete of a finished run's weights what the study does not keep, once no evaluation needs them any more."""
        if run.later:
            return
        for path in weight_files(self._study.folder(run.arm.name, run.seed), self._study.keep_weights):
            remove(path)

    def _fail(self, active: Active, code: int) -> None:
        log = log_of(self._study, active.run, active.stage.name)
        begins = active.child.begins if active.child is not None else 0
        text = (
            f"{active.run.name}: {active.stage.name} ended with exit code {code}{_tail_of(log, begins)}\n"
            "the same command goes on from there once it is mended"
        )
        self._failed(text, code)

    def _failed(self, text: str, code: int) -> None:
        if self.failure is None:
            self.failure = RunFailedError(text, code)
        else:
            self._watcher.said(text)


def _tail_of(log: Path, begins: int) -> str:
    lines = "".join(f"\n  | {line}" for line in last_lines(log, _TAIL, begins))
    return f"; the end of {log}:{lines}"


def _is_free(folder: Path) -> bool:
    """Whether no process holds a folder; one that outlived an earlier study may still be saving in it."""
    if not folder.is_dir():
        return True
    try:
        hold_folder(folder)
    except OutputError:
        return False
    release_folder(folder)
    return True


@contextmanager
def _signals(wish: _Wish) -> Iterator[None]:
    """Note SIGINT and SIGTERM; the handlers of before come back at the end."""
    came = 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal came
        if wish.signal is None:
            wish.signal, came = number, time.monotonic()
        elif time.monotonic() - came > _SAME_REQUEST:
            wish.at_once = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
