"""MatrixLossConfig: contract defaults, and every bad setting with its message."""

import pytest

from mce_llm.lm import MatrixLossConfig, MatrixLossConfigError


def test_defaults_are_the_documented_ones():
    assert MatrixLossConfig().to_dict() == {
        "kind": "token",
        "weight": 1.0,
        "shrinkage": 0.05,
        "support": 64,
        "order": 8,
        "embeddings": "output",
        "center": True,
        "normalize": True,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "tokens"},
            "kind must be one of token, marginal, expected, got 'tokens' \\(did you mean 'token'",
        ),
        ({"weight": -1.0}, "weight must be a finite number ≥ 0, got -1.0"),
        ({"weight": float("nan")}, "weight must be a finite number"),
        ({"weight": "1"}, "weight must be a finite number"),
        ({"weight": True}, "weight must be a finite number"),
        ({"shrinkage": 1.2}, r"shrinkage must be in \[0, 1\), got 1.2; 0.05 is the usual choice"),
        ({"shrinkage": 1.0}, r"shrinkage must be in \[0, 1\)"),
        ({"shrinkage": -0.1}, r"shrinkage must be in \[0, 1\)"),
        ({"support": 0}, "support must be a positive integer, or None"),
        ({"support": 2.5}, "support must be a positive integer"),
        ({"order": 0}, "order must be a positive integer"),
        ({"embeddings": "both"}, "embeddings must be one of output, input"),
        ({"center": 1}, "center must be true or false"),
        ({"suport": 3}, "unknown setting 'suport' \\(did you mean 'support'"),
        ({"zzz": 3}, "unknown setting 'zzz'; known are kind, weight"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(MatrixLossConfigError, match=message):
        MatrixLossConfig.from_dict(settings)


def test_all_problems_are_reported_at_once():
    with pytest.raises(MatrixLossConfigError) as error:
        MatrixLossConfig.from_dict({"weight": -1, "shrinkage": 2, "order": 0, "kind": "x", "unknown": 1})
    for part in ("weight", "shrinkage", "order", "kind", "unknown"):
        assert part in str(error.value)


def test_zero_shrinkage_keeps_the_logarithm_finite():
    assert MatrixLossConfig(shrinkage=0.0).epsilon > 0
    assert MatrixLossConfig(shrinkage=0.05).epsilon == 0.05
