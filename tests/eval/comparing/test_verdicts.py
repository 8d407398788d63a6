"""Numbers of a comparison as words."""

import pytest

from mce_llm.eval.comparing.verdicts import p_text, percent, points, verdict
from mce_llm.eval.intervals import Interval


@pytest.mark.parametrize(
    ("share", "text", "signed"),
    [
        (0.0311, "3.1", "+3.1"),
        (-0.0311, "−3.1", "−3.1"),
        (0.0004, "0.04", "+0.04"),
        (0.0, "0.0", "0.0"),
        (-1e-7, "0.0", "0.0"),
    ],
)
def test_points(share, text, signed):
    assert points(share) == text
    assert points(share, sign=True) == signed


def test_numbers_as_words():
    assert [p_text(p) for p in (1.0, 0.0314, 0.05, 1e-9)] == ["p = 1", "p = 0.031", "p = 0.05", "p < 0.0001"]
    assert [percent(c) for c in (0.95, 0.995, 0.9)] == ["95 %", "99.5 %", "90 %"]
    assert [percent(c) for c in (0.999999, 1e-6, 1.0, 0.0)] == ["99.9999 %", "0.0001 %", "100 %", "0 %"]


def test_a_close_call_is_called_one():
    said = verdict(
        difference=0.03,
        interval=Interval(0.0005, 0.06),
        confidence=0.95,
        seeds=1,
        n=1319,
        test="exact McNemar",
        p_value=0.052,
        discordance=0.2,
        detectable=0.035,
    )
    assert said.startswith("These runs do not tell A and B apart")
    assert "Interval and test do not agree, so it is a close call." in said
