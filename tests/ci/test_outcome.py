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
