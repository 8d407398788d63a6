"""Hints, causes and checks that error messages of all programs share, and several problems in one error."""

import pytest

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import (
    ConfigurationError,
    cause,
    model_path_problem,
    nearest_hint,
    raise_all,
)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Metamaht", " (did you mean 'metamath'?)"), ("PLAIN", " (did you mean 'plain'?)"), ("zzz", "")],
)
def test_nearest_hint(name, hint):
    assert nearest_hint(name, ["metamath", "plain"]) == hint


def test_cause_is_the_innermost_error_on_one_line():
    chained = RuntimeError("cannot load")
    chained.__cause__ = OSError("no route\n  to host")
    assert cause(chained) == "OSError: no route to host"
    assert cause(ValueError()) == "ValueError"
    assert len(cause(ValueError("x" * 1000))) < 320


def test_model_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # nothing asks whether the hub is there
    (tmp_path / "notes.txt").write_text("")
    assert "no config.json (found: notes.txt)" in model_path_problem(str(tmp_path))
    assert "is a file" in model_path_problem(str(tmp_path / "notes.txt"))
    assert "no such directory" in model_path_problem(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "(found: nothing)" in model_path_problem(str(tmp_path / "empty"))
    (tmp_path / "config.json").write_text("{}")
    assert model_path_problem(str(tmp_path)) is None
    assert model_path_problem("owner/name") is None
    assert model_path_problem("gpt2") is None


class OneLine(MceLlmError, TypeError):
    """Several problems on one line, as by default."""


@pytest.mark.parametrize(
    ("problems", "error", "message"),
    [
        (["a is 1"], ConfigurationError, "a is 1"),
        (["a is 1", "b is 2"], ConfigurationError, "\n- a is 1\n- b is 2"),
        (["a is 1"], OneLine, "a is 1"),
        (["a is 1", "b is 2"], OneLine, "a is 1; b is 2"),
    ],
)
def test_all_problems_are_raised_at_once(problems, error, message):
    with pytest.raises(error) as caught:
        raise_all(problems, error)
    assert str(caught.value) == message


def test_settings_are_the_default_and_no_problem_is_no_error():
    raise_all([])
    raise_all([], OneLine)
    with pytest.raises(ConfigurationError, match="a is 1"):
        raise_all(["a is 1"])
