"""Is the hub there? One question, a quick answer, and a cached copy where there is no answer."""

import socket

import huggingface_hub.constants
import pytest

from mce_llm.running import hub


@pytest.fixture
def endpoint(monkeypatch):
    """Set the hub's address; without a proxy, and with the answer not known yet."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.unreachable.cache_clear()
    yield lambda url: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    hub.unreachable.cache_clear()


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_address_that_answers_and_one_that_does_not(endpoint, closed_port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.unreachable() is None
        assert hub.hub_problem("acme/other") is None
    hub.unreachable.cache_clear()
    endpoint(f"http://127.0.0.1:{closed_port}")
    assert "127.0.0.1: " in hub.unreachable()
    for kind in ("model", "dataset"):
        problem = hub.hub_problem("acme/other", kind)
        assert problem.startswith(
            "acme/other is not on this machine, and the hub cannot be reached (127.0.0.1: "
        )
        assert "HTTPS_PROXY" in problem


def test_a_name_that_cannot_be_resolved(endpoint):
    endpoint("https://hub.invalid")
    assert hub.unreachable().startswith("hub.invalid: ")


def test_where_the_question_is_not_asked(endpoint, closed_port, monkeypatch, tmp_path):
    endpoint(f"http://127.0.0.1:{closed_port}")
    assert hub.hub_problem(str(tmp_path)) is None  # a directory
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:8080")  # the proxy knows the way
    assert hub.hub_problem("acme/other") is None
    monkeypatch.delenv("HTTPS_PROXY")
    hub.unreachable.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the libraries say so themselves
    assert hub.hub_problem("acme/other") is None
