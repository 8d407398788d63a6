"""How scripts begin and end: exit codes, one message for a problem, and a folder that is free afterwards."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from helpers.waiting import HANG
from mce_llm.running import launching
from mce_llm.running.folder import LOCK, OutputError, hold_folder
from mce_llm.running.launching import run_script
from mce_llm.running.preemption import PreemptedError
from mce_llm.running.processes import LaunchError, shared
from mce_llm.running.settings import ConfigurationError

ENDS = [
    (None, 0, ""),
    (ConfigurationError("no such setting"), 2, "error: no such setting\n"),
    (OutputError("no such folder"), 2, "error: no such folder\n"),
    (LaunchError("alone"), 2, "error: alone\n"),
    (torch.OutOfMemoryError("CUDA out of memory"), 2, "lower batch_size"),
    (OSError(28, "No space left on device"), 2, "the disk is full"),
    (RuntimeError("PytorchStreamWriter failed: unexpected pos 64 vs 0"), 2, "the disk is full"),
    (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
    (PreemptedError("SIGTERM"), 143, "stopped by SIGTERM"),
]
BUGS = [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug"), OSError(5, "a bug")]


def raising(error, folder=None):
    def main(argv):
        assert argv == ["--x"]
        if folder is not None:
            hold_folder(folder)
            assert (folder / LOCK).exists()
        if error is not None:
            raise error

    return main


@pytest.mark.parametrize(("error", "code", "message"), ENDS)
def test_exit_codes(tmp_path, error, code, message, capsys):
    """However it ends, the folder is free and nothing is left in it."""
    assert run_script(raising(error, tmp_path), ["--x"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err if message else said.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", BUGS)
def test_bugs_keep_their_traceback(tmp_path, error):
    with pytest.raises(type(error), match="a bug"):
        run_script(raising(error, tmp_path), ["--x"])
    assert list(tmp_path.iterdir()) == []


def test_where_it_goes_on_from_and_what_needs_less_memory(capsys):
    for ended in (KeyboardInterrupt(), OSError(28, "No space left on device"), PreemptedError("SIGUSR1")):
        for place in ("step 7", lambda: "step 7"):
            run_script(raising(ended), ["--x"], goes_on_from=place)
            assert "goes on from step 7" in capsys.readouterr().err
    run_script(raising(torch.OutOfMemoryError("too much")), ["--x"], needs_less_memory="crop")
    assert capsys.readouterr().err == "error: out of memory: OutOfMemoryError: too much; crop\n"


@pytest.mark.parametrize(("rank", "known_to_be_shared", "said"), [(0, True, 1), (1, True, 0), (1, False, 1)])
def test_what_every_process_meets_is_said_by_the_first(monkeypatch, capsys, rank, known_to_be_shared, said):
    """However long the launcher takes to end the others; what one may have met alone, it says itself."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(launching, "_SECONDS_FOR_THE_FIRST", 0.0)
    problem = OutputError("another run is at work")
    assert run_script(raising(shared(problem) if known_to_be_shared else problem), ["--x"]) == 2
    assert capsys.readouterr().err.count("error: another run is at work") == said


def test_a_signal_is_an_exit_code_and_its_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert run_script(lambda argv: signal.raise_signal(signal.SIGTERM)) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


# Every process comes as far as the barrier, so that none meets its problem long before another is there. Each waits as
# long as argument 3 says for the launcher to end it before it repeats what the first one has said.
WORKER = """
import os, sys
from pathlib import Path
from mce_llm.running import launching
from mce_llm.running.folder import hold_folder
from mce_llm.running.processes import gather, join_processes
from mce_llm.running.settings import ConfigurationError

folder, problem, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
launching._SECONDS_FOR_THE_FIRST = seconds

def main(argv):
    state = join_processes()
    if state.is_main_process:
        hold_folder(folder)
    gather(None)
    if problem == "all" or (problem == "last" and state.process_index == 1):
        raise ConfigurationError(f"a problem of {problem}")
    if problem == "last":
        gather(None)  # waits for the one that does not come, until the launcher ends it

sys.exit(launching.run_script(main))
"""


@pytest.mark.parametrize(("problem", "seconds"), [("all", 600), ("last", 0)])
def test_two_processes(tmp_path, problem, seconds):
    """A problem that all meet is said by the first alone; one that only another one meets is said too."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "run"), problem, str(seconds)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=HANG,
        check=False,
    )
    assert done.stderr.count(f"error: a problem of {problem}\n") == 1, done.stderr
    assert "exitcode  : 2 " in done.stderr  # the launcher's own is 1, whatever its processes end with
    assert done.returncode == 1
    if problem != "last":  # there the launcher ends the one that holds the folder; its lock goes with it
        assert list((tmp_path / "run").iterdir()) == []
    hold_folder(tmp_path / "run")
