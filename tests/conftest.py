"""What holds for all tests."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from mce_llm.running.noise import silence_known_noise

silence_known_noise()  # as every program of the package does: some tests compare whole outputs

# On a busy machine an example may take as long as it likes; what is left of the profile is that of the place (CI has its own).
settings.register_profile(
    "any speed", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any speed")


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


# Minutes each, or many of them: begun first, so that no process is left alone with them at the end.
_LONG = ("tests/commands", "tests/recipes", "tests/eval", "tests/benchmarks")


def pytest_collection_modifyitems(items):
    def place(item):
        return next((n for n, name in enumerate(_LONG) if item.nodeid.startswith(name)), len(_LONG))

    items.sort(key=place)
