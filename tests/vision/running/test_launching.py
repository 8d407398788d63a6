"""How processes of a vision script join, and agree to stop."""

import signal

import pytest

from mce_llm.running.preemption import training
from mce_llm.running.processes import LaunchError
from mce_llm.vision.running import leave_if_asked, run_script, stop_agreed
from mce_llm.vision.running.launching import make_accelerator


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


@pytest.mark.parametrize(("launched", "said"), [("bf16", True), ("fp8", True), ("no", False), (None, False)])
def test_another_precision_of_the_launch_is_said(monkeypatch, capsys, launched, said):
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert make_accelerator("no", cpu=True).mixed_precision == "no"
    printed = capsys.readouterr().out
    assert (f"the launch asks for mixed_precision {launched}" in printed) == said
    assert ("which is not used: the settings have mixed_precision: no" in printed) == said


def test_parallelism_of_the_launch_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    with pytest.raises(LaunchError, match=r"tensor parallelism was asked for"):
        make_accelerator("no", cpu=True)
