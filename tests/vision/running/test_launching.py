"""How scripts start and end."""

import signal

import pytest
import torch

from mce_llm.running.preemption import PreemptedError, training
from mce_llm.running.processes import LaunchError
from mce_llm.running.settings import ConfigurationError
from mce_llm.vision.models import BackboneError
from mce_llm.vision.running import leave_if_asked, run_script, stop_agreed
from mce_llm.vision.running.launching import make_accelerator


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ConfigurationError("no such setting"), 2, "error: no such setting"),
        (BackboneError("no such encoder"), 2, "error: no such encoder"),
        (LaunchError("alone"), 2, "error: alone"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "lower batch_size"),
        (OSError(28, "No space left on device"), 2, "the disk is full"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (PreemptedError("SIGTERM"), 143, "stopped by SIGTERM"),
    ],
)
def test_exit_codes(error, code, message, capsys):
    def main(argv):
        assert argv == ["--x"]
        if error is not None:
            raise error

    assert run_script(main, ["--x"]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_bugs_keep_their_traceback(error):
    def main(argv):
        raise error

    with pytest.raises(type(error), match="a bug"):
        run_script(main, [])


def test_a_signal_waits_for_the_end_of_the_step(tmp_path):
    saved = []

    def main(argv):
        with training():
            leave_if_asked(lambda: saved.append(1), tmp_path)  # nothing was asked for yet
            assert not stop_agreed()
            signal.raise_signal(signal.SIGTERM)
            saved.append(0)
            leave_if_asked(lambda: saved.append(2), tmp_path)

    assert run_script(main, []) == 143
    assert saved == [0, 2]


def test_accumulation_in_the_launch_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(LaunchError, match=r"losses here are of whole batches.*set it to 1"):
        make_accelerator("no", cpu=True)
