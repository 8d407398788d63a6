"""The documentation builds as `make docs` does, and does not build where something in it is wrong."""

import os
import subprocess
import sys

import pytest

from helpers.scripts import ROOT

for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed, reason="the extra docs")

pytestmark = pytest.mark.slow

PAGE = """# Title

```{toctree}
```

[a heading](#title), {py:class}`pathlib.Path`, `mce_llm.errors.MceLlmError`, `recipes/finetune.py`

```{eval-rst}
.. public:: mce_llm.errors
.. public:: sample
```
"""

SAMPLE = '''"""A module."""

__all__ = ["LIMIT", "Thing", "run"]

LIMIT = 3
"""The most."""


class Thing:
    """A thing, made by `run`, with a limit of `LIMIT`."""

    def size(self) -> int:
        """The size: in bytes."""
        return 1


def run() -> int:
    """Run.

    Returns:
        The number: at most `LIMIT`.
    """
    return 1
'''


def build(source, output, **environment):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-n",
            "-q",
            "-c",
            ROOT / "docs",
            source,
            output,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def small(folder, page=PAGE, sample=SAMPLE):
    """Build one page with a module of its own."""
    (folder / "source" / "docs").mkdir(parents=True)
    (folder / "source" / "docs" / "index.md").write_text(page, encoding="utf-8")
    (folder / "sample.py").write_text(sample, encoding="utf-8")
    built = build(folder / "source", folder / "built", PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")
    return built, folder / "built" / "docs" / "index.html"


def test_the_whole_documentation(tmp_path):
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr
    assert "docs/index.html" in (tmp_path / "index.html").read_text()
    for page, name in [
        ("matrix", "mce_llm.matrix.matrix_log"),
        ("lm", "mce_llm.lm.MatrixTrainer"),  # imported when it is first asked for
        ("lm", "mce_llm.lm.trl.MatrixSFTTrainer"),
        ("data", "mce_llm.data.IGNORE_INDEX"),
        ("eval", "mce_llm.eval.compare_runs"),
        ("vision", "mce_llm.vision.losses.pairs.PairedLogLoss.components"),
        ("running", "mce_llm.running.launching.run_script"),
    ]:
        assert f'id="{name}"' in (tmp_path / "docs" / "api" / f"{page}.html").read_text(), name


def test_names_become_links_and_colons_stay(tmp_path):
    built, page = small(tmp_path)
    assert built.returncode == 0, built.stderr
    text = page.read_text()
    assert 'href="#sample.run"' in text
    assert 'href="#sample.LIMIT"' in text
    assert "The size: in bytes." in text
    assert "The number: at most" in text
    assert "The most." in text


def test_every_fault_is_found(tmp_path):
    page = (
        PAGE.replace("(#title)", "(#titel)")
        .replace("py:class}`pathlib.Path", "py:class}`mce_llm.errors.MceLmError")
        .replace("`mce_llm.errors.MceLlmError`", "`mce_llm.error.MceLlmError` [a page](guide.md)")
        .replace("recipes/finetune.py", "recipes/finetunes.py")
    )
    sample = SAMPLE.replace('"""The most."""', "").replace('        """The size: in bytes."""\n', "")
    built, _ = small(tmp_path, page, sample)
    assert built.returncode != 0
    for complaint in [
        "'titel'",
        "py:class reference target not found: mce_llm.errors.MceLmError",
        "there is no mce_llm.error.MceLlmError",
        "'guide.md'",
        "there is no file recipes/finetunes.py",
        "sample.LIMIT is public and has no docstring",
        "sample.Thing.size is public and has no docstring",
    ]:
        assert complaint in built.stderr
