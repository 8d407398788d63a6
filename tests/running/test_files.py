"""Files that are whole or absent, and the removal of what is in the way."""

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from mce_llm.running.files import flush_folder, remove, whole_file, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with whole_file(path) as beside:
        beside.write_text("first")
        assert not path.exists()
        assert beside.parent == path.parent  # else the last step would be a copy
    assert path.read_text() == "first"
    with whole_file(path) as beside:
        beside.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), SystemExit(143)])
def test_what_was_there_stays_where_the_block_raises(tmp_path, error):
    def write():
        with whole_file(path) as beside:
            beside.write_text("half")
            raise error

    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    write_text(tmp_path / "file", "earlier")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "earlier"


KILLED = """
import os, signal, sys
from pathlib import Path
from mce_llm.running.files import whole_file
with whole_file(Path(sys.argv[1])) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_it_writes(tmp_path):
    path = tmp_path / "file"
    write_text(path, "earlier")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "earlier"
    write_text(path, "later")
    assert path.read_text() == "later"


# A file may take 5,000 bytes, as where a disk has no more; the error differs, what follows from it does not.
FULL = """
import resource, signal, sys
from pathlib import Path
from mce_llm.running.files import write_json, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for write, content in ((write_text, "x" * 6000), (write_json, ["x" * 6000])):
    try:
        write(Path(sys.argv[1]), content)
    except OSError as error:
        print(error.strerror)
"""


def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "earlier")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["File too large"] * 2, done.stderr
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    write_text(small_disk / "file", "earlier" * 1000)
    with pytest.raises(OSError, match="No space left on device"):
        write_text(small_disk / "file", "x" * 200_000)
    assert (small_disk / "file").read_text() == "earlier" * 1000
    assert names(small_disk) == ["file"]
    write_text(small_disk / "file", "later" * 1000)
    assert (small_disk / "file").read_text() == "later" * 1000


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_readable_for_whom_the_umask_says(tmp_path, mask, mode):
    """Also what was written by a library that makes files for their owner alone, and over such a file."""
    private = tmp_path / "private"
    private.touch(mode=0o600)
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "")
        write_text(private, "")
        with whole_file(tmp_path / "moved") as beside:
            descriptor, name = tempfile.mkstemp(dir=tmp_path)
            os.close(descriptor)
            os.replace(name, beside)
    finally:
        assert os.umask(before) == mask
    for name in ("text", "private", "moved"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name


def test_json_that_people_can_read(tmp_path):
    write_json(tmp_path / "a.json", {"λ": [1, None], "text": "é"})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8") == (
        '{\n  "λ": [\n    1,\n    null\n  ],\n  "text": "é"\n}\n'
    )
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"λ": object()})
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_places_that_cannot_be_written(tmp_path, unwritable):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        write_text(tmp_path / "file" / "below", "")
    with pytest.raises(OSError, match=str(unwritable)):
        write_text(unwritable / "file", "")


def test_entries_of_a_folder_reach_the_disk(tmp_path):
    flush_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush_folder(tmp_path / "not there")


def test_removal(tmp_path):
    (tmp_path / "kept" / "inside").mkdir(parents=True)
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "to folder").symlink_to(tmp_path / "kept")
    (tmp_path / "to nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "file").touch()
    for name in ("to folder", "to nothing", "folder", "file", "not there"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["file", "inside"]  # what a link leads to stays
