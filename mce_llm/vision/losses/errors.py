"""The errors that these losses raise beside `LossInputError` and `NonFiniteLossError`, which all losses share.

Each message names the value, the limit and the remedy. Where they are raised is said at the functions.
"""

from mce_llm.errors import MceLlmError


class ViewLossError(MceLlmError, ValueError):
    """A loss of two views cannot be computed as asked; the base of the errors here."""


class LossSettingsError(ViewLossError):
    """One or more settings of a loss are unusable; the message lists all of them."""


class UnknownLossError(LossSettingsError):
    """There is no loss of that name."""


class TaylorDivergenceError(ViewLossError):
    """The Taylor series of the logarithm around I does not converge for these rows.

    Attributes:
        radius: The spectral radius of Q − I that was measured; the series needs less than 1.
    """

    def __init__(self, message: str, radius: float) -> None:
        super().__init__(message)
        self.radius = radius


class RankMismatchError(ViewLossError, RuntimeError):
    """The processes brought rows that do not fit together."""
