"""Hints, causes and checks that error messages of several rooms share."""

import pytest

from mce_llm.running.messages import cause, model_path_problem, nearest_hint


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


def test_model_paths(tmp_path):
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
