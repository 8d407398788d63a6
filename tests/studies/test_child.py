"""One launched program: its end, its log as a terminal would show it, and the journal of its launches."""

import json
import os
import sys

import pytest

from helpers.waiting import wait_until
from mce_llm.studies.child import Child, Launches, last_lines


def test_the_journal_adds_up_all_launches(tmp_path):
    log = tmp_path / "training.log"
    log.write_text("x")
    os.utime(log, (1040, 1040))
    journal = Launches(tmp_path / "launches.jsonl")
    journal.begin("training", 1000.0)
    journal.end("training", 12.0, 143)
    journal.begin("training", 1030.0)  # killed: it lasts to the last line of its log
    assert journal.seconds("training", [log]) == 22
    journal.begin("other", 1.0)
    with journal.path.open("a") as file:
        file.write('{"stage": "trai')  # torn
    journal.begin("training", 1050.0, [log])
    os.utime(log, (1055, 1055))
    assert journal.seconds("training", [log]) == 27
    journal.end("training", 3.0, 0)
    assert journal.seconds("training", [log]) == 25
    assert len(journal.codes("training")) == 1
    assert json.loads(journal.path.read_text().splitlines()[-1])["exit_code"] == 0


@pytest.mark.parametrize(
    ("logged", "saved", "seconds"), [(1010, 1020, 20), (1020, 1010, 20), (1099, 1, 30), (2, 1, 0)]
)
def test_an_end_that_nobody_saw_is_that_of_the_last_sign(logged, saved, seconds, tmp_path):
    """Of a log or a checkpoint, neither after the next start nor before its own."""
    (log := tmp_path / "training.log").write_text("x")
    (checkpoint := tmp_path / "checkpoint-2").mkdir()
    os.utime(log, (logged, logged))
    os.utime(checkpoint, (saved, saved))
    journal = Launches(tmp_path / "launches.jsonl")
    for started in (1000.0, 1030.0):
        journal.begin("training", started, [log, checkpoint, tmp_path / "none"])
    journal.end("training", 5.0, 0)
    assert journal.seconds("training", []) == seconds + 5


def test_the_end_of_a_log_is_what_a_terminal_would_show(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("before\n 10%|x| 1/9\r 20%|x| 2/9\r\nlast\n\n")
    assert last_lines(log, 2) == [" 20%|x| 2/9", "last"]
    assert last_lines(log, 5, begins=7) == [" 20%|x| 2/9", "last"]
    assert last_lines(tmp_path / "none", 2) == []


def test_a_program_may_be_asked_to_stop_when_it_has_ended(tmp_path):
    child = Child([sys.executable, "-c", ""], None, tmp_path / "log", {})
    wait_until(lambda: child.poll() is not None)
    child.ask_to_stop()
    child.kill()
    assert child.poll() == 0
