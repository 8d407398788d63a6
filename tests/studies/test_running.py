"""How runs are started, watched and stopped, with small programs in the place of trainings and evaluations."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from helpers.processes import command_line
from helpers.studies import answers_outcome, result_line, write_study
from helpers.waiting import wait_until
from mce_llm.running.bound import bound_command
from mce_llm.studies import running
from mce_llm.studies.checking import Checked
from mce_llm.studies.collecting import launches_of, log_of
from mce_llm.studies.errors import RunFailedError, StudyError
from mce_llm.studies.parts import EVERYTHING, Part
from mce_llm.studies.planning import Stage
from mce_llm.studies.reading import Overrides, read_study
from mce_llm.studies.results import Results
from mce_llm.studies.running import Stopped, prepare, run_study
from mce_llm.studies.slots import Slot

DONE = "pass"
FAILS = "import sys; print('no such luck'); sys.exit(7)"
ENDLESS = "import time, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print('step 2/9 · x', flush=True); time.sleep(600)"
SLOT = Slot(None, 0, 1, True)


class Watcher:
    """Keeps what it is told."""

    def __init__(self):
        self.events, self.most = [], 0
        self.looks = lambda: None

    def began(self, active):
        self.events.append(("began", active.run.name, active.stage.name))

    def ended(self, active, seconds, code):
        self.events.append(("ended", active.run.name, active.stage.name, code))

    def finished(self, run):
        self.events.append(("finished", run.name))

    def said(self, text):
        self.events.append(("said", text))

    def look(self, active):
        self.most = max(self.most, len(active))
        self.looks()


@pytest.fixture
def programs(monkeypatch):
    """(arm, seed, stage) → the program that stands for it; `DONE` for all others."""
    found = {}

    def command(self, slot, launch):
        run = self.folder if self.name == "training" else self.folder.parent
        key = (run.name, int(run.parent.name.removeprefix("seed")), self.name)
        text = found.get(key, DONE)
        marker = f"from pathlib import Path; Path({str(self.folder)!r}).mkdir(parents=True, exist_ok=True)\n"
        return [sys.executable, "-c", marker + text]

    monkeypatch.setattr(Stage, "command", command)
    monkeypatch.setattr(
        running,
        "line_of",
        lambda study, run, *_: result_line(
            run.arm.name, run.seed, {"answers": answers_outcome([1, 0], model=run.name)}
        ),
    )
    monkeypatch.setattr(running, "_POLL", 0.02)
    return found


@pytest.fixture
def study(tmp_path):
    return read_study(write_study(tmp_path))


def run(study, watcher, jobs=1, part=EVERYTHING):
    found = Checked(
        study, {arm.name: {} for arm in study.arms}, {}, {}, Results(study.output, study.name).read()
    )
    run_study(found, part.runs(study, found.results), [SLOT] * jobs, watcher)


def test_runs_come_one_after_the_other_and_only_once(study, programs):
    run(study, watcher := Watcher())
    finished = [event[1] for event in watcher.events if event[0] == "finished"]
    assert finished == ["ce, seed 1", "mce, seed 1", "ce, seed 2", "mce, seed 2"]
    stages = [event[1:] for event in watcher.events if event[0] == "began"]
    assert stages[:2] == [("ce, seed 1", "training"), ("ce, seed 1", "answers")]
    assert len(stages) == 8
    assert watcher.most == 1
    assert list(Results(study.output, study.name).read()) == [("ce", 1), ("mce", 1), ("ce", 2), ("mce", 2)]
    log = study.output / "logs" / "seed1" / "ce" / "training.log"
    assert log.read_text().startswith(f"$ {sys.executable} -c ")
    run(study, again := Watcher())
    assert again.events == []


def test_several_runs_at_once(study, programs):
    programs["ce", 1, "training"] = programs["mce", 1, "training"] = "import time; time.sleep(0.5)"
    run(study, watcher := Watcher(), jobs=2)
    assert watcher.most == 2
    assert sum(event[0] == "finished" for event in watcher.events) == 4


def test_a_failure_ends_the_study_with_its_exit_code_and_its_last_lines(study, programs):
    """The run beside it comes to the end of its program, and begins no other."""
    programs["mce", 1, "training"] = FAILS
    programs["ce", 1, "training"] = "import time; time.sleep(1)"
    with pytest.raises(
        RunFailedError, match=r"mce, seed 1: training ended with exit code 7.*\n  . no such luck"
    ) as raised:
        run(study, watcher := Watcher(), jobs=2)
    assert raised.value.code == 7
    ended = [event[1:] for event in watcher.events if event[0] == "ended"]
    assert ended == [("mce, seed 1", "training", 7), ("ce, seed 1", "training", 0)]
    assert sum(event[0] == "began" for event in watcher.events) == 2
    del programs["mce", 1, "training"]
    run(study, again := Watcher())
    assert sum(event[0] == "finished" for event in again.events) == 4


def test_results_that_cannot_be_kept_are_a_failure_of_that_run_alone(study, programs, monkeypatch):
    """The program beside it comes to its end, and what was kept before stays."""
    programs["ce", 1, "training"] = "import time; time.sleep(1)"

    def line(study, run, *_):
        if run.arm.name == "mce":
            raise StudyError("no record of a finished training")
        return result_line(run.arm.name, run.seed, {})

    monkeypatch.setattr(running, "line_of", line)
    with pytest.raises(RunFailedError, match=r"mce, seed 1: no record of a finished") as raised:
        run(study, watcher := Watcher(), jobs=2)
    assert raised.value.code == 2
    assert watcher.events[-1] == ("ended", "ce, seed 1", "training", 0)
    assert Results(study.output, study.name).read() == {}


def test_two_runs_with_the_same_weights_end_the_study_with_the_second(study, programs, monkeypatch):
    """Not at the end, when all have been trained, and not with a file that later starts refuse."""

    def line(study, run, *_):
        return result_line(run.arm.name, run.seed, {"answers": answers_outcome([1, 0], model="same")})

    monkeypatch.setattr(running, "line_of", line)
    for _ in range(2):
        with pytest.raises(RunFailedError, match=r"mce, seed 1(.|\n)*changes nothing in the training"):
            run(study, Watcher())
        assert list(Results(study.output, study.name).read()) == [("ce", 1)]


def test_a_log_that_cannot_be_written_is_a_failure(study, programs):
    (study.output / "logs" / "seed1").mkdir(parents=True)
    (study.output / "logs" / "seed1" / "ce").write_text("in the way")
    with pytest.raises(RunFailedError, match=r"ce, seed 1: .*seed1/ce"):
        run(study, watcher := Watcher())
    assert watcher.events == []


def test_a_program_that_was_killed_has_the_exit_code_of_a_shell(study, programs):
    programs["ce", 1, "answers"] = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(RunFailedError) as raised:
        run(study, Watcher())
    assert raised.value.code == 137


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_programs(number, code, study, programs):
    programs["ce", 1, "training"] = ENDLESS
    watcher = Watcher()
    log = study.output / "logs" / "seed1" / "ce" / "training.log"
    sent = []

    def looks():
        if not sent and log.is_file() and "step 2" in log.read_text().partition("\n")[2]:
            sent.append(os.kill(os.getpid(), number))

    watcher.looks = looks
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as raised:
        run(study, watcher)
    assert raised.value.code == code
    assert watcher.events[-1] == ("ended", "ce, seed 1", "training", 143)
    assert signal.getsignal(number) is before
    assert Results(study.output, study.name).read() == {}


def test_a_program_that_does_not_leave_is_ended_by_a_second_signal(study, programs, monkeypatch):
    monkeypatch.setattr(running, "_SAME_REQUEST", 0.1)
    programs["ce", 1, "training"] = (
        "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    )
    watcher, sent = Watcher(), []
    log = study.output / "logs" / "seed1" / "ce" / "training.log"

    def looks():
        if (
            log.is_file()
            and log.read_text().rstrip().endswith("\nready")
            and (not sent or time.monotonic() > sent[-1] + 0.5)
        ):
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    watcher.looks = looks
    with pytest.raises(Stopped):
        run(study, watcher)
    assert len(sent) == 2
    assert watcher.events[-1] == ("ended", "ce, seed 1", "training", 137)


def test_a_folder_that_an_earlier_process_still_holds_is_waited_for(study, programs, tmp_path):
    folder = study.folder("ce", 1)
    code = (
        "import sys, time; from pathlib import Path; from mce_llm.running.folder import hold_folder\n"
        f"hold_folder(Path({str(folder)!r})); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        watcher = Watcher()

        def looks():
            if any(event[0] == "said" for event in watcher.events) and not holder.stdin.closed:
                holder.stdin.close()

        watcher.looks = looks
        run(study, watcher)
    assert watcher.events[0][0] == "said"
    assert "waiting for an earlier process that still writes to" in watcher.events[0][1]
    assert sum(event[0] == "finished" for event in watcher.events) == 4


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (True, ["answers", "checkpoint-2", "model.safetensors", "trainer_state.json"]),
        ("model", ["answers", "model.safetensors", "trainer_state.json"]),
        (False, ["answers", "trainer_state.json"]),
    ],
)
def test_weights_go_when_the_results_are_there(tmp_path, programs, keep, kept):
    study = read_study(write_study(tmp_path, keep_weights=keep))
    folder = study.folder("ce", 1)
    programs["ce", 1, "training"] = (
        f"p = Path({str(folder)!r}); (p / 'checkpoint-2').mkdir(exist_ok=True)\n"
        "[(p / n).write_text('x') for n in ('model.safetensors', 'trainer_state.json', 'checkpoint-2/optimizer.pt')]"
    )
    run(study, Watcher())
    assert sorted(path.name for path in folder.iterdir()) == kept
    (folder / "checkpoint-2").mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text("left by a kill between the two")
    run(study, Watcher())
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_weights_stay_for_evaluations_that_are_made_another_time(tmp_path, programs, monkeypatch):
    """The line of the first part has its evaluations alone; the second adds its own, and then the weights go."""
    evaluations = {name: {"script": "gsm8k", "settings": {"data": "x"}} for name in ("answers", "more")}
    study = read_study(write_study(tmp_path, keep_weights=False, evaluations=evaluations))
    folder = study.folder("ce", 1)
    programs["ce", 1, "training"] = f"Path({str(folder / 'model.safetensors')!r}).write_text('x')"

    def line(study, run, *_):
        told = {stage.name: answers_outcome([1, 0], model=run.name) for stage in run.stages[1:]}
        return result_line(run.arm.name, run.seed, told)

    monkeypatch.setattr(running, "line_of", line)
    run(study, first := Watcher(), part=Part(evaluations=("answers",)))
    run(study, again := Watcher(), part=Part(evaluations=("answers",)))
    assert {event[2] for event in first.events if event[0] == "began"} == {"training", "answers"}
    assert again.events == []
    assert (folder / "model.safetensors").exists()
    run(study, second := Watcher())
    assert {event[2] for event in second.events if event[0] == "began"} == {"more"}
    assert not (folder / "model.safetensors").exists()
    for found in Results(study.output, study.name).read().values():
        assert set(found.evaluations) == {"answers", "more"}


def test_preparations_run_once_each_and_a_failure_is_shown(tmp_path):
    made = tmp_path / "made.txt"
    steps = [
        {"command": ["python", "-c", f"open({str(made)!r}, 'a').write('x')"], "makes": str(made)},
        {"command": ["python", "-c", FAILS], "makes": str(tmp_path / "never")},
    ]
    study = read_study(write_study(tmp_path, prepare=steps))
    for _ in range(2):
        with pytest.raises(RunFailedError, match=r"ended with exit code 7(.|\n)*no such luck"):
            prepare(study, Watcher())
    assert made.read_text() == "x"
    lazy = read_study(
        write_study(tmp_path, prepare=[{"command": ["true"], "makes": str(tmp_path / "never")}])
    )
    with pytest.raises(RunFailedError, match=r"left no .*never"):
        prepare(lazy, Watcher())


def test_preparations_of_a_study_that_was_moved_are_not_run_again(tmp_path):
    steps = [
        {"command": ["python", "-c", "open('${output}/made', 'a').write('x')"], "makes": "${output}/made"}
    ]
    path = write_study(tmp_path, prepare=steps)
    study = read_study(path)
    study.output.mkdir()
    prepare(study, Watcher())
    moved = read_study(path, Overrides(output=tmp_path / "moved"))
    study.output.rename(moved.output)
    prepare(moved, watcher := Watcher())
    assert watcher.events == []
    assert (moved.output / "made").read_text() == "x"
    (moved.output / "prepared.json").write_text("{")
    prepare(moved, watcher := Watcher())
    assert len(watcher.events) == 1


def test_a_bound_program_ends_with_the_one_that_started_it(tmp_path):
    """A killed parent cannot pass anything on: the kernel does."""
    code = (
        "import subprocess, sys, time; from mce_llm.running.bound import bound_command\n"
        "child = subprocess.Popen(bound_command([sys.executable, '-c', 'import time; time.sleep(600)']))\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid = wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    child = psutil.Process(int(pid))
    wait_until(lambda: "time.sleep(600)" in (words := command_line(child)) and "bound" not in words)
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_bound_program_has_its_own_exit_code_and_a_missing_one_is_said():
    assert subprocess.run(bound_command([sys.executable, "-c", "exit(5)"]), check=False).returncode == 5
    missing = subprocess.run(bound_command(["no-such-program"]), check=False, capture_output=True, text=True)
    assert missing.returncode == 127
    assert "no-such-program: No such file" in missing.stderr


def test_the_time_before_a_kill_of_the_machine_is_kept(study, programs):
    """The next start writes to the log and saves checkpoints: what is known of the earlier one is noted before."""
    planned = EVERYTHING.runs(study, {})[0]
    log, now = log_of(study, planned, "training"), time.time()
    log.parent.mkdir(parents=True)
    log.write_text("step 1/9 \n")
    (checkpoint := study.folder("ce", 1) / "checkpoint-2").mkdir(parents=True)
    for path, ago in ((log, 4000), (checkpoint, 3600)):
        os.utime(path, (now - ago, now - ago))
    launches_of(study, planned).begin("training", now - 7200)
    run(study, Watcher(), part=Part(arms=("ce",), seeds=(1,)))
    assert launches_of(study, planned).seconds("training", []) == pytest.approx(3600, abs=60)
