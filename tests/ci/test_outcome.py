"""What continuous integration says at its end, from files that pytest itself has written."""

import os
import subprocess
import sys

import pytest

from helpers.scripts import load_script

outcome = load_script(".ci/outcome.py")

FIRST = """
import pytest

def test_a(): pass
@pytest.mark.skip(reason="no GPU")
def test_b(): pass
@pytest.mark.skip(reason="no   GPU")
def test_c(): pass
@pytest.mark.skip(reason="no browser")
def test_d(): pass
"""
WHOLE = "import pytest\npytest.importorskip('no_such_module')\n"
LATER = "def test_a(): pass\ndef test_d(): {}\n"


@pytest.fixture
def run(tmp_path):
    def call(name, **files):
        folder = tmp_path / "tests"
        folder.mkdir(exist_ok=True)
        for module, text in files.items():
            (folder / f"{module}.py").write_text(text)
        result = tmp_path / f"{name}.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--rootdir={folder}",
            f"--junitxml={result}",
            folder,
        ]
        # What this run of pytest was told is not for that one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        command += ["-p", "no:cacheprovider"]
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        return result

    return call


def test_what_no_run_has_run_is_listed(run, capsys):
    first = run("first", test_one=FIRST, test_whole=WHOLE)
    assert outcome.main([first]) == 0
    said = capsys.readouterr().out
    assert "  no GPU\n    test_one.test_b\n    test_one.test_c\n" in said
    assert "  no browser\n    test_one.test_d\n" in said
    assert "no_such_module" in said
    assert "    test_whole\n" in said
    assert said.endswith("first: 1 passed, 4 skipped, 0 failed\n")

    second = run("second", test_one=LATER.format("pass"), test_whole="def test_e(): pass\n")
    assert outcome.main([first, second]) == 0
    said = capsys.readouterr().out
    assert "test_b" in said
    assert "test_d" not in said  # the second has run it,
    assert "test_whole" not in said  # and what that module holds
    assert said.endswith("second: 3 passed, 0 skipped, 0 failed\n")


def test_failures_and_missing_files_are_an_exit_code(run, tmp_path, capsys):
    assert outcome.main([run("bad", test_one=LATER.format("assert False"))]) == 1
    assert "bad: 1 passed, 0 skipped, 1 failed" in capsys.readouterr().out
    broken = run("broken", test_one="def test_a(: pass\n")
    assert outcome.main([broken]) == 1
    good = run("good", test_one=LATER.format("pass"))
    assert outcome.main([good]) == 0
    assert outcome.main([good, tmp_path / "none.xml"]) == 1
    assert "none.xml is missing" in capsys.readouterr().out
    nothing = run("nothing", test_one="")
    assert outcome.main([nothing]) == 1


def test_what_passes_when_run_again_is_named(run, capsys):
    first = run("first", test_one=LATER.format("assert False"), test_two=LATER.format("assert False"))
    mended = run("first-again", test_one=LATER.format("pass"), test_two=LATER.format("assert False"))
    assert outcome.main([first, mended]) == 1
    said = capsys.readouterr().out
    assert "\nfailed, and passed when run again:\n  test_one.test_d\nfirst: 3 passed" in said
    assert "first: 3 passed, 0 skipped, 1 failed\n" in said  # test_two.test_d failed twice
    mended = run("first-again", test_one=LATER.format("pass"), test_two=LATER.format("pass"))
    assert outcome.main([first, mended]) == 0
    # It is what passed later of the same run that counts, not of another.
    other = run("other", test_one=LATER.format("pass"), test_two=LATER.format("pass"))
    assert outcome.main([first, other]) == 1
    capsys.readouterr()


def test_the_script_runs_what_failed_once_more(tmp_path):
    """`.ci/run` with a Makefile of its own: one test fails the first time, one each time."""
    import shutil
    from pathlib import Path

    here = Path(__file__).parents[2]
    shutil.copytree(here / ".ci", tmp_path / ".ci")
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_first_time.py").write_text(
        "from pathlib import Path\n"
        "def test_good(): pass\n"
        "def test_flaky():\n"
        "    seen = Path('seen')\n"
        "    known = seen.exists()\n"
        "    seen.touch()\n"
        "    assert known\n"
    )
    line = f"\t{sys.executable} -m pytest -q --rootdir=tests tests\n"
    (tmp_path / "Makefile").write_text(f".PHONY: test test-ci\ntest:\n{line}test-ci:\n{line}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def ci():
        done = subprocess.run(
            [tmp_path / ".ci/run"], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    code, said = ci()
    assert code == 0, said
    assert "failed, and passed when run again:\n  test_first_time.test_flaky\n" in said
    assert "test-again: 1 passed, 0 skipped, 0 failed" in said
    assert "test-ci-again" not in said
    (tests / "test_broken.py").write_text("def test_broken(): assert False\n")
    code, said = ci()
    assert code == 1
    assert "test: 2 passed, 0 skipped, 1 failed" in said
    assert "passed when run again" not in said
