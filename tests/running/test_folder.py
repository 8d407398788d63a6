"""The folder of a run: one process at a time works in it, whatever becomes of that process."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest

from mce_llm.errors import MceLlmError
from mce_llm.running import folder as folders
from mce_llm.running.folder import (
    LOCK,
    OutputError,
    check_place,
    folder_held,
    hold_folder,
    make_folder,
    release_folder,
    release_folders,
    write_record,
)


@pytest.fixture(autouse=True)
def nothing_stays_held():
    yield
    release_folders()


# Says that it holds the folder, does as it is told in `then`, and waits until its standard input is closed.
OWNER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from mce_llm.running.folder import hold_folder, release_folder
folder = Path(sys.argv[1])
hold_folder(folder)
{then}
print("holds", flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(folder, then=""):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=textwrap.dedent(then)), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_is_refused_until_the_owner_ends(tmp_path):
    with owner(tmp_path) as other:
        for _ in range(2):  # being refused changes nothing
            with pytest.raises(OutputError, match=rf"another run is writing to .*\(process {other.pid} on "):
                hold_folder(tmp_path)
        hold_folder(tmp_path / "inside")  # another folder
        other.communicate(timeout=60)
        assert other.returncode == 0
        assert not (tmp_path / LOCK).exists()
        hold_folder(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


def test_the_error_is_of_the_type_that_was_asked_for(tmp_path):
    class OwnError(MceLlmError, RuntimeError):
        pass

    with owner(tmp_path), pytest.raises(OwnError, match="choose another output directory"):
        hold_folder(tmp_path, error=OwnError)


def test_a_killed_owner_holds_nothing(tmp_path):
    with owner(tmp_path) as other:
        other.kill()
        other.wait()
        assert (tmp_path / LOCK).read_text().startswith(f"process {other.pid} on")
        hold_folder(tmp_path)
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on")


@pytest.mark.parametrize(
    "child",
    [
        """
        begun, begin = os.pipe()
        child = os.fork()  # as a worker of a DataLoader is made
        if not child:
            sys.stdout.close()
            os.write(begin, b"!")
            signal.pause()
        os.read(begun, 1)
        print(child)
        """,
        """
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        print(child.pid)
        """,
    ],
    ids=["forked", "started"],
)
def test_a_child_that_outlives_its_killed_parent_holds_nothing(tmp_path, child):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=textwrap.dedent(child)), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        survivor = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == "holds\n"
            with pytest.raises(OutputError, match=f"process {process.pid} "):
                hold_folder(tmp_path)
            process.kill()
            process.wait()
            hold_folder(tmp_path)
            os.kill(survivor, 0)  # it still lives
        finally:
            os.kill(survivor, signal.SIGKILL)


def test_a_forked_child_leaves_its_parents_lock_alone(tmp_path):
    """It neither frees the folder nor removes the lock, also where it ends as a program does."""
    with (
        owner(
            tmp_path,
            """
        if not os.fork():
            release_folder(folder)
            sys.exit()  # functions that are registered for the end are called
        os.wait()
        """,
        ) as other,
        pytest.raises(OutputError, match=f"process {other.pid} "),
    ):
        hold_folder(tmp_path)


def test_a_forked_process_is_not_its_parent(tmp_path):
    hold_folder(tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work():
        try:
            hold_folder(tmp_path)
        except OutputError as error:
            queue.put(str(error))
        else:
            queue.put("held")

    child = context.Process(target=work)
    child.start()
    said = queue.get(timeout=60)
    child.join()
    assert f"process {os.getpid()} " in said


def test_a_second_run_of_one_process_has_the_first_let_go(tmp_path):
    said = []
    hold_folder(tmp_path, let_go=lambda: said.append("first"))
    assert said == []
    hold_folder(tmp_path, let_go=lambda: said.append("second"))
    assert said == ["first"]
    (tmp_path / "link").symlink_to(tmp_path)
    hold_folder(tmp_path / "link")  # the same folder under another name
    assert said == ["first", "second"]
    hold_folder(tmp_path)
    assert said == ["first", "second"]
    release_folder(tmp_path)
    assert not (tmp_path / LOCK).exists()
    hold_folder(tmp_path, let_go=lambda: said.append("third"))
    release_folder(tmp_path)
    hold_folder(tmp_path)
    assert said == ["first", "second"]  # who was done is not told


def test_a_lock_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """The owner lets go between our two steps: what we then lock is a file that nobody else can find."""
    lock, seen = folders.fcntl.flock, []

    def late(file, how):
        if not seen:
            (tmp_path / LOCK).unlink()
        seen.append(os.fstat(file.fileno()).st_ino)
        lock(file, how)

    monkeypatch.setattr(folders.fcntl, "flock", late)
    hold_folder(tmp_path)
    monkeypatch.undo()
    assert len(seen) == 2
    assert (tmp_path / LOCK).stat().st_ino == seen[-1]
    refused = subprocess.run(
        [sys.executable, "-c", OWNER.format(then=""), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"process {os.getpid()} on" in refused.stderr


def test_what_is_let_go_of_is_this_runs_own_lock(tmp_path):
    """Somebody emptied the folder, and another run has begun in it."""
    hold_folder(tmp_path)
    (tmp_path / LOCK).unlink()
    with owner(tmp_path) as other:
        release_folder(tmp_path)
        with pytest.raises(OutputError, match=f"process {other.pid} "):
            hold_folder(tmp_path)


def test_a_folder_that_is_gone_is_let_go_of(tmp_path):
    hold_folder(tmp_path / "run")
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run").rmdir()
    release_folder(tmp_path / "run")
    hold_folder(tmp_path / "run")
    assert (tmp_path / "run" / LOCK).exists()


def test_held_as_long_as_a_block_runs(tmp_path):
    with folder_held(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(KeyError), folder_held(tmp_path):
        raise KeyError
    assert not (tmp_path / LOCK).exists()
    release_folder(tmp_path)  # held by nobody


def test_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OutputError, match=rf"cannot write to .*Is a directory .*{LOCK}.*choose another"):
        hold_folder(tmp_path)


def test_a_full_disk_is_said(tmp_path):
    """The folder is free afterwards."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        from mce_llm.running.folder import OutputError, hold_folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            hold_folder(Path(sys.argv[1]))
        except OutputError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        hold_folder(Path(sys.argv[1]))
        print("held")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    first, second = done.stdout.splitlines()
    assert "cannot write to" in first
    assert "File too large" in first
    assert second == "held"
    assert done.stderr == ""


# Has the kernel refuse the system call flock(2), as it does for a network file system whose server knows no locks.
WITHOUT_LOCKS = """
import ctypes, errno, struct, sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, RETURN, REFUSE, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7FFF0000
steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, {number}), (RETURN, 0, 0, REFUSE | errno.ENOLCK), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
if libc.prctl(PR_SET_SECCOMP, FILTER, program, 0, 0):
    sys.exit("no filter: " + errno.errorcode[ctypes.get_errno()])

from mce_llm.running.folder import hold_folder, release_folder
folder, said = Path(sys.argv[1]), []
hold_folder(folder, let_go=lambda: said.append("let go"))
hold_folder(folder)
print(said, sorted(path.name for path in folder.iterdir()))
release_folder(folder)
"""


def test_a_file_system_without_locks_is_said(tmp_path):
    """The run goes on; a second one in this process is noticed still."""
    number = {"x86_64": 73, "aarch64": 32}.get(platform.machine())
    if not sys.platform.startswith("linux") or number is None:
        pytest.skip("which number flock(2) has is not known here")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS.format(number=number), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.startswith("no filter: "):
        pytest.skip(f"system calls cannot be filtered here ({done.stderr.strip()})")
    assert done.stdout == "['let go'] []\n", done.stderr
    assert done.stderr.count(f"{tmp_path} is on a file system without locks") == 1


def test_places(tmp_path, unwritable):
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "not" / "there")
    assert not (tmp_path / "not").exists()  # only looked at
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=f"{tmp_path / 'file'} is a file"):
            check_place(place)
    make_folder(tmp_path / "not" / "there")
    assert list((tmp_path / "not" / "there").iterdir()) == []
    with pytest.raises(OutputError, match="is a file; name a directory"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write to output_dir"):
        make_folder(unwritable)


def test_a_record_has_no_secrets(tmp_path):
    write_record(
        tmp_path, {"lr": 1.0, "seed": 1, "hub_token": "secret", "output_dir": "a"}, ("torch", "no-such")
    )
    assert "secret" not in (tmp_path / "recipe.yaml").read_text()
    assert '"no-such": "not installed"' in (tmp_path / "versions.json").read_text()
