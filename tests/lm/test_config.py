"""MatrixLossConfig: contract defaults, and every bad setting with its message."""

import json

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
        "loss": "mce",
        "smoothing": None,
        "emo_weight": None,
        "emo_max_ratio": None,
        "emo_center": None,
    }


@pytest.mark.parametrize(
    ("loss", "own"),
    [
        ("ce", {}),
        ("label_smoothing", {"smoothing": 0.1}),
        ("emo", {"emo_weight": 0.5, "emo_max_ratio": 3.0, "emo_center": False}),
        ("mce", {"weight": 1.0}),
    ],
)
def test_each_loss_has_its_own_settings_and_no_others(loss, own):
    config = MatrixLossConfig(loss=loss)
    nothing = {
        "weight": 0.0,
        "smoothing": None,
        "emo_weight": None,
        "emo_max_ratio": None,
        "emo_center": None,
    }
    assert {name: getattr(config, name) for name in nothing} == {**nothing, **own}
    assert config.objective == loss
    assert MatrixLossConfig.from_dict(config.to_dict()) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_matrix_loss_of_weight_zero_is_cross_entropy():
    assert MatrixLossConfig(weight=0).objective == "ce"
    assert MatrixLossConfig(loss="ce", weight=0.0).objective == "ce"


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"weight": 0.3}, (1.0, {"mce_loss": 0.3})),
        ({"weight": 0}, (1.0, {})),
        ({"loss": "ce"}, (1.0, {})),
        ({"loss": "label_smoothing", "smoothing": 0.25}, (0.75, {"smoothing_loss": 0.25})),
        ({"loss": "emo", "emo_weight": 0.25}, (0.75, {"emo_loss": 0.25})),
    ],
)
def test_shares_of_cross_entropy_and_of_what_stands_beside_it(settings, shares):
    assert MatrixLossConfig(**settings).shares == shares


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
        (
            {"loss": "cross_entropy"},
            "loss must be one of ce, label_smoothing, emo, mce, got 'cross_entropy'",
        ),
        ({"loss": "smoothing"}, "did you mean 'label_smoothing'"),
        (
            {"loss": "label_smoothing", "smoothing": 0},
            "smoothing must be between 0 and 1, both excluded, got 0",
        ),
        ({"loss": "label_smoothing", "smoothing": 1.0}, "smoothing must be between 0 and 1"),
        ({"loss": "label_smoothing", "smoothing": float("nan")}, "smoothing must be between 0 and 1"),
        (
            {"loss": "emo", "emo_weight": 0},
            "emo_weight must be above 0 and at most 1, got 0; 0.5 is the published",
        ),
        ({"loss": "emo", "emo_weight": 1.1}, "emo_weight must be above 0 and at most 1"),
        ({"loss": "emo", "emo_max_ratio": -1}, "emo_max_ratio must be a finite number ≥ 0, got -1; 3 is"),
        ({"loss": "emo", "emo_max_ratio": float("inf")}, "emo_max_ratio must be a finite number"),
        ({"loss": "emo", "emo_center": 1}, "emo_center must be true or false, got 1"),
        (
            {"loss": "ce", "weight": 0.5},
            "weight belongs to the loss mce, and with loss ce it would do nothing: leave",
        ),
        ({"loss": "emo", "weight": 1}, "weight belongs to the loss mce, and with loss emo"),
        (
            {"smoothing": 0.1},
            "smoothing belongs to the loss label_smoothing, and with loss mce it would do nothing",
        ),
        ({"loss": "label_smoothing", "emo_weight": 0.5}, "emo_weight belongs to the loss emo"),
        ({"loss": "ce", "emo_max_ratio": 0}, "emo_max_ratio belongs to the loss emo"),
        ({"emo_center": False}, "emo_center belongs to the loss emo, and with loss mce"),
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
    with pytest.raises(MatrixLossConfigError) as error:
        MatrixLossConfig(loss="ce", order=0, weight=2.0, smoothing=0.1, emo_weight=0.5)
    for part in ("order must", "weight belongs", "smoothing belongs", "emo_weight belongs"):
        assert part in str(error.value)


def test_zero_shrinkage_keeps_the_logarithm_finite():
    assert MatrixLossConfig(shrinkage=0.0).epsilon > 0
    assert MatrixLossConfig(shrinkage=0.05).epsilon == 0.05
