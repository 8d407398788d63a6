"""Run folders with outcomes that are written down, shared by the tests of comparison."""

import pytest

from helpers.evaluations import outcomes, write_run
from mce_llm.eval.saved_runs import SavedRun


@pytest.fixture
def make(tmp_path):
    """Write a run and read it back."""

    def write(name, correct, **settings):
        return SavedRun.read(write_run(tmp_path / name / "gsm8k", correct, **{"model": name, **settings}))

    return write


@pytest.fixture
def pair(make):
    a, b = outcomes(both=60, only_a=5, only_b=20, neither=15)
    return make("ce", a), make("mce", b)
