"""The exceptions whose message tells the user all there is to know: they are printed, without a traceback."""

from mce_llm.configuration import ConfigurationError
from mce_llm.data.errors import DataError
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError
from mce_llm.lm import GeometryError, MatrixLossConfigError, UnsupportedModelError
from mce_llm.planning import PlanningError
from mce_llm.recipes.settings import ModelSourceError

EXPLAINED = (
    ConfigurationError,
    DataError,
    EvaluationError,
    GeometryError,
    IntervalError,
    MatrixLossConfigError,
    ModelSourceError,
    PlanningError,
    UnsupportedModelError,
)
