"""What holds for all tests."""

import os
from pathlib import Path

import pytest
import torch
import transformers


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small matrices on a busy machine spend seconds waiting for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet_transformers():
    transformers.logging.set_verbosity_error()


@pytest.fixture
def unwritable(tmp_path):
    """A path where no directory can be made, not even by root."""
    if os.geteuid() == 0:
        if not Path("/proc/self").exists():
            pytest.skip("root may write anywhere here")
        return Path("/proc/out")
    (tmp_path / "locked").mkdir(mode=0o500)
    return tmp_path / "locked" / "out"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that build whole models for the memory plan take minutes together."""
    for item in items:
        if {"planning", "commands"} & set(item.path.parts):
            item.add_marker(pytest.mark.slow)
