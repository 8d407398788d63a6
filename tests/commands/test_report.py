"""`mce-llm report` as it is typed."""

import pytest

from helpers.evaluations import outcomes, write_run

A, B = outcomes(4, 1, 2, 3)


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "a", A), write_run(tmp_path / "b", B, model="b")]


def test_it_says_what_the_page_says_and_where_it_is(command, runs, tmp_path):
    result = command("report", *runs, "--output", tmp_path / "out", columns=300)
    assert result.exit_code == 0, result.output
    assert "GSM8K: These runs do not tell A and B apart" in result.output
    assert f"written to {tmp_path / 'out' / 'index.html'}, with 3 pictures" in result.output
    assert f"mce-llm report {runs[0]} {runs[1]}" in (tmp_path / "out" / "index.html").read_text()


def test_one_run(command, runs, tmp_path):
    result = command("report", runs[0], "--output", tmp_path / "out", columns=300)
    assert result.exit_code == 0, result.output
    assert "GSM8K: not compared: there is one run" in result.output
    assert result.output.rstrip().endswith("with 1 picture")


def test_no_pair(command, runs, tmp_path):
    result = command("report", *runs, "--no-pair", "--output", tmp_path / "out", columns=300)
    assert result.exit_code == 0, result.output
    assert "not compared" in result.output
    assert "--no-pair" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["absent"], "no such directory"),
        (["a", "--pair"], "one run on GSM8K only"),
        (["a", "b", "--output", "."], "no report of mce-llm"),
        (["a", "a"], "one run"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_exit_code_2(
    command, runs, tmp_path, monkeypatch, words, pattern
):
    monkeypatch.chdir(tmp_path)
    result = command("report", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert pattern in result.stderr
    assert not (tmp_path / "report").exists()
