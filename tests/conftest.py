"""What holds for all tests."""

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
