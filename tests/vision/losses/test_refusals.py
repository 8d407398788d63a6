"""What the losses refuse: the input, the error's type, and what its message says."""

import pytest
import torch

from mce_llm.vision.losses import (
    LOSSES,
    BarlowTwinsLoss,
    LossInputError,
    LossSettingsError,
    MatrixSSLLoss,
    MECLoss,
    NonFiniteLossError,
    SimSiamLoss,
    TotalCodingRateLoss,
    UnknownLossError,
    ViewLossError,
    build_loss,
    loss_options,
)

GOOD = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def changed(row, column, value):
    rows = GOOD.clone()
    rows[row, column] = value
    return rows


ZERO = GOOD.clone()
ZERO[2] = 0
BAD_ROWS = [
    ({"z1": [[1.0]]}, LossInputError, "z1 must be a torch.Tensor, got list"),
    ({"z2": GOOD.long()}, LossInputError, "z2 must be floating point, got torch.int64"),
    ({"z2": GOOD[None]}, LossInputError, r"z2 must be \(m, d\) rows.*got shape \(1, 4, 6\)"),
    ({"z1": GOOD[:, :0]}, LossInputError, r"z1 must be \(m, d\) rows.*got shape \(4, 0\)"),
    ({"z1": GOOD[:3]}, LossInputError, r"one shape, got z1 \(3, 6\), z2 \(4, 6\)"),
    ({"z1": GOOD[:, :5]}, LossInputError, r"one shape, got z1 \(4, 5\), z2 \(4, 6\)"),
    (
        {"z1": GOOD.long(), "z2": 3},
        LossInputError,
        r"z1 must be floating.*; z2 must be a torch.Tensor, got int",
    ),
    (
        dict.fromkeys(("z1", "z2", "p1", "p2"), GOOD[:1]),
        LossInputError,
        "at least 2 rows .*got 1; use a larger batch",
    ),
    (dict.fromkeys(("z1", "z2", "p1", "p2"), GOOD[:0]), LossInputError, "at least 2 rows .*got 0"),
    ({"z2": GOOD.to("meta")}, LossInputError, "one device, got .*z2 on meta"),
    (
        {"z2": changed(3, 1, float("nan"))},
        NonFiniteLossError,
        "z2 has 1 of 24 entries that are not finite, the first in row 3, column 1.*learning rate",
    ),
    ({"z1": changed(0, 2, float("inf"))}, NonFiniteLossError, "z1 has 1 of 24 entries .*row 0, column 2"),
]


def call(loss, given):
    rows = {"z1": GOOD, "z2": GOOD.flip(0), "p1": GOOD.roll(1, 0), "p2": GOOD.roll(2, 0), **given}
    return loss(rows["z1"], rows["z2"], rows["p1"], rows["p2"])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("given", "error", "message"), BAD_ROWS)
def test_bad_rows(name, given, error, message):
    with pytest.raises(error, match=f"(?s){LOSSES[name].__name__}: .*{message}"):
        call(build_loss(name), given)


@pytest.mark.parametrize("options", [{"log": "exact", "form": "gram"}, {"log": "exact", "form": "dim"}])
@pytest.mark.parametrize(("given", "error", "message"), BAD_ROWS)
def test_bad_rows_for_the_exact_logarithm(options, given, error, message):
    """eigh fails on rows that are not finite; the message is ours all the same."""
    with pytest.raises(error, match=f"(?s){message}"):
        call(MatrixSSLLoss(**options), given)


@pytest.mark.parametrize("loss", [MatrixSSLLoss(), MatrixSSLLoss(log="exact"), MECLoss(), SimSiamLoss()])
@pytest.mark.parametrize("name", ["z1", "p2"])
def test_zero_rows_and_bad_teachers(loss, name):
    with pytest.raises(LossInputError, match=rf"1 of 4 rows of {name} are zero, the first is row 2"):
        call(loss, {name: ZERO})
    with pytest.raises(NonFiniteLossError, match=rf"{name} has 1 of 24"):
        call(loss, {name: changed(1, 1, float("nan"))})
    with pytest.raises(LossInputError, match=r"p1 is missing: .*teacher's.*; p2 is missing"):
        loss(GOOD, GOOD)


def test_zero_rows_of_the_coding_rate():
    with pytest.raises(LossInputError, match="1 of 4 rows of z1 are zero"):
        TotalCodingRateLoss()(ZERO, GOOD)


@pytest.mark.parametrize("name", LOSSES)
def test_without_validation_nan_spreads(name):
    assert call(build_loss(name, validate=False), {"z1": changed(1, 1, float("nan"))}).isnan()


def test_a_loss_that_overflows_although_its_rows_are_finite():
    with pytest.raises(NonFiniteLossError, match="although all rows are finite"):
        call(TotalCodingRateLoss(invariance=3e38 * 10), {})


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (MatrixSSLLoss, {"gamma": -1.0}, "gamma must be a finite number >= 0, got -1.0"),
        (MatrixSSLLoss, {"gamma": "1"}, "gamma must be a finite number >= 0, got '1'"),
        (MatrixSSLLoss, {"lam": float("inf")}, "lam must be a finite number >= 0, got inf"),
        (MatrixSSLLoss, {"lam": True}, "lam must be a finite number >= 0, got True"),
        (MatrixSSLLoss, {"lam": 0, "gamma": 0}, "lam and gamma are both 0"),
        (MatrixSSLLoss, {"mu": 0}, "mu must be a finite number > 0, got 0; 1 is the recipe's"),
        (MatrixSSLLoss, {"mu": 2.0}, r"mu must be below 2 with log='taylor', got 2.*log='exact'"),
        (MatrixSSLLoss, {"order": 0}, "order must be a whole number from 1 to 64, got 0; 4 is the usual"),
        (MatrixSSLLoss, {"order": 4.0}, "order must be a whole number from 1 to 64, got 4.0"),
        (MatrixSSLLoss, {"order": 65}, "order must be a whole number from 1 to 64, got 65"),
        (
            MatrixSSLLoss,
            {"variant": "offical"},
            "one of paper, official, got 'offical' .did you mean 'official'",
        ),
        (MatrixSSLLoss, {"log": "exakt"}, "one of taylor, exact, got 'exakt'"),
        (MatrixSSLLoss, {"form": "gramm"}, "one of auto, gram, dim, got 'gramm'"),
        (MatrixSSLLoss, {"on_divergence": None}, "one of raise, exact, ignore, got None"),
        (MatrixSSLLoss, {"gather": "no"}, "gather must be true or false, got 'no'"),
        (MatrixSSLLoss, {"validate": 1}, "validate must be true or false, got 1"),
        (
            MatrixSSLLoss,
            {"mu": -1, "order": 0, "form": 3},
            r"(?s)3 settings are unusable:.*mu .*order .*form ",
        ),
        (MECLoss, {"distortion": 0}, "distortion must be a finite number > 0, got 0; 64"),
        (MECLoss, {"warmup_epochs": -1}, "warmup_epochs must be a finite number >= 0"),
        (MECLoss, {"warmup_factor": 0}, "warmup_factor must be a finite number > 0"),
        (TotalCodingRateLoss, {"invariance": -1}, "invariance must be a finite number >= 0"),
        (TotalCodingRateLoss, {"distortion": "a"}, "distortion must be a finite number > 0, got 'a'"),
        (BarlowTwinsLoss, {"lam": -1}, "lam must be a finite number >= 0, got -1"),
        (BarlowTwinsLoss, {"scale": 0}, "scale must be a finite number > 0, got 0"),
        (SimSiamLoss, {"gather": 2}, "gather must be true or false, got 2"),
    ],
)
def test_bad_settings(loss, options, message):
    with pytest.raises(LossSettingsError, match=message):
        loss(**options)
    with pytest.raises(ViewLossError, match=loss.__name__):
        loss(**options)


def test_losses_by_name():
    loss = build_loss("matrix_ssl", gamma=2.0, variant="official")
    assert isinstance(loss, MatrixSSLLoss)
    assert (loss.gamma, loss.variant) == (2.0, "official")
    assert loss_options("matrix_ssl")["order"] == 4
    assert set(loss_options("sim_siam")) == {"gather", "validate", "process_group"}
    for name in LOSSES:
        assert isinstance(build_loss(name), LOSSES[name])


def test_unknown_names_and_options():
    with pytest.raises(
        UnknownLossError, match=r"unknown loss 'matrix_sll' \(did you mean 'matrix_ssl'\?\); choose"
    ):
        build_loss("matrix_sll")
    with pytest.raises(
        LossSettingsError, match=r"no option 'gama' \(did you mean 'gamma'\?\), 'xyz'; its options are"
    ):
        build_loss("matrix_ssl", gama=1.0, xyz=2)
    with pytest.raises(LossSettingsError, match="no option 'order'"):
        build_loss("sim_siam", order=2)
