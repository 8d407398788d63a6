"""`TrainingArguments` with the settings of the loss beside everything Hugging Face's have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from mce_llm.errors import MceLlmError
from mce_llm.lm.config import (
    OWN_SETTINGS,
    SETTING_NAMES,
    MatrixLossConfig,
    MatrixLossConfigError,
    is_count,
    own_problems,
)
from mce_llm.running.launched_precision import note_launched_precision
from mce_llm.running.messages import ConfigurationError, nearest_hint, raise_all

# What to install for the trackers whose presence transformers can tell.
_PIP_NAMES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


@dataclass
class MatrixSettings:
    """What this package adds to `TrainingArguments`; inherit from it first, and from some training arguments second."""

    loss: str = field(
        default="mce",
        metadata={
            "help": "What is trained: mce (cross-entropy and matrix cross-entropy), ce (cross-entropy alone), label_smoothing or "
            "emo (cross-entropy and earth mover's distance over the embeddings)."
        },
    )
    matrix_kind: str = field(
        default="token",
        metadata={"help": "Which density matrices are compared: token, marginal or expected."},
    )
    matrix_weight: float | None = field(
        default=None,
        metadata={
            "help": "Loss mce: λ in L = CE + λ · MCE (1 by default); 0 trains with cross-entropy alone."
        },
    )
    matrix_shrinkage: float = field(
        default=0.05,
        metadata={"help": "ε, the share of I/d mixed into the density matrices, in [0, 1)."},
    )
    matrix_support: int | None = field(
        default=64,
        metadata={
            "help": "Kind token: the k most probable tokens that are kept (0 or null: the full vocabulary)."
        },
    )
    matrix_order: int = field(default=8, metadata={"help": "Kind token: Lanczos steps; more are more exact."})
    matrix_embeddings: str = field(
        default="output",
        metadata={"help": "The table that gives the token geometry: output (the head) or input."},
    )
    matrix_center: bool = field(
        default=True, metadata={"help": "Subtract the mean embedding from every row."}
    )
    matrix_normalize: bool = field(default=True, metadata={"help": "Scale every centred row to length one."})
    smoothing: float | None = field(
        default=None,
        metadata={
            "help": "Loss label_smoothing: s, the share of the target that is uniform over the tokens, between 0 and 1 (0.1 by "
            "default)."
        },
    )
    emo_weight: float | None = field(
        default=None,
        metadata={
            "help": "Loss emo: w in L = (1 − w) · CE + w · EMO, above 0 and at most 1 (0.5 by default, as published)."
        },
    )
    emo_max_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Loss emo: the largest factor that weighs the distance against CE (3 by default, as in the package EMOLoss; 0: "
            "no limit, as in the paper)."
        },
    )
    emo_center: bool | None = field(
        default=None,
        metadata={
            "help": "Loss emo: subtract the mean embedding from every row (false by default, as published)."
        },
    )
    model_check: bool = field(
        default=True,
        metadata={
            "help": "Before training, check on a small model of the same class that the loss is causal cross-entropy, that no "
            "token sees later ones, and that packed examples are kept apart; false takes all that on trust."
        },
    )
    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is not finite on any rank: stop the run, or skip the step on all ranks."
        },
    )
    nonfinite_patience: int = field(
        default=10,
        metadata={
            "help": "With on_nonfinite skip: the most steps in a row that are skipped before the run stops."
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop when metric_for_best_model (by default the loss) has not improved in this many evaluations; 0: never."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "With early_stopping_patience: how much better counts as an improvement."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses that are not finite out of the logged mean (hides divergence)."},
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the parser takes the second of these
        default="tensorboard",
        metadata={"help": "Where curves go: tensorboard (OUTPUT_DIR/runs), wandb, trackio, …, all or none."},
    )
    monitor_steps: int = field(
        default=100,
        metadata={"help": "Optimizer steps between measurements of effective ranks and spectra (0: never)."},
    )
    monitor_positions: int = field(
        default=512,
        metadata={"help": "Unmasked positions that such a measurement looks at, over all ranks."},
    )
    sample_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps between sample generations; 0, the default, for none: they stop training meanwhile."
        },
    )
    sample_prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Texts to complete as they stand, or one .txt file (a prompt a line) or .json file (a list); "
            "by default the prompts of the first evaluation rows."
        },
    )
    sample_max_new_tokens: int = field(default=64, metadata={"help": "The longest sample, in tokens."})

    def __post_init__(self) -> None:
        """Check the matrix settings before anything slow happens.

        Raises:
            MatrixLossConfigError: Unusable matrix settings, all listed at once, under their names here.
            ConfigurationError: Other settings that cannot be used, all listed at once.
        """
        problems = [
            *_guard_problems(self),
            *_selection_problems(self),
            *_monitoring_problems(self),
            *report_to_problems(self.report_to),
        ]
        error: type[MceLlmError] = ConfigurationError
        try:
            _ = self.matrix_loss
        except MatrixLossConfigError as unusable:
            problems, error = [str(unusable), *problems], MatrixLossConfigError
        raise_all(problems, error)
        arguments: Any = self
        if self.early_stopping_patience and arguments.metric_for_best_model is None:
            arguments.metric_for_best_model = "loss"
        note_launched_precision(self)
        super().__post_init__()  # type: ignore[misc]  # of the training arguments

    def __getstate__(self) -> dict[str, Any]:
        """Without the hub's token: the trainer pickles its arguments beside the weights, and uploads that file."""
        return {**self.__dict__, "hub_token": None}

    @property
    def matrix_loss(self) -> MatrixLossConfig:
        """The settings of the loss as one object."""
        own = {name: getattr(self, SETTING_NAMES[name]) for name in OWN_SETTINGS}
        weight = own.pop("weight") if self.loss == "mce" else None  # then one of the matrix_* settings
        problems = own_problems(self.loss, own, SETTING_NAMES)
        usable = {"weight": weight} if problems else {"weight": weight, "loss": self.loss, **own}
        try:
            config = MatrixLossConfig(
                kind=self.matrix_kind,  # type: ignore[arg-type]
                shrinkage=self.matrix_shrinkage,
                support=self.matrix_support or None,
                order=self.matrix_order,
                embeddings=self.matrix_embeddings,  # type: ignore[arg-type]
                center=self.matrix_center,
                normalize=self.matrix_normalize,
                **usable,
            )
        except MatrixLossConfigError as error:
            problems = [f"in the matrix_* settings: {error}", *problems]
        raise_all(problems, MatrixLossConfigError)
        return config


@dataclass
class MatrixTrainingArguments(MatrixSettings, TrainingArguments):
    """Training arguments of `MatrixTrainer`: Hugging Face's, and those of `MatrixSettings`.

    Two defaults differ from Hugging Face's: `logging_nan_inf_filter` is False, because it hides losses
    that are not finite, and `report_to` is tensorboard instead of none.
    """


def _guard_problems(settings: MatrixSettings) -> list[str]:
    problems = []
    if settings.on_nonfinite not in ("stop", "skip"):
        problems.append(
            f"on_nonfinite must be stop or skip, got {settings.on_nonfinite!r}"
            f"{nearest_hint(settings.on_nonfinite, ('stop', 'skip'))}"
        )
    if settings.nonfinite_patience < 0:
        problems.append(
            f"nonfinite_patience must be at least 0, got {settings.nonfinite_patience}; 10 is usual"
        )
    return problems


def _selection_problems(settings: Any) -> list[str]:
    """What is wrong with choosing and stopping by evaluations."""
    problems = []
    if not is_count(settings.early_stopping_patience, least=0):
        problems.append(
            f"early_stopping_patience must be a number of evaluations, 0 or more (0: never), got "
            f"{settings.early_stopping_patience!r}"
        )
    if not settings.early_stopping_threshold >= 0:
        problems.append(
            f"early_stopping_threshold must be at least 0, got {settings.early_stopping_threshold}"
        )
    elif settings.early_stopping_threshold and not settings.early_stopping_patience:
        problems.append(
            "early_stopping_threshold does nothing without early_stopping_patience; set it to 3, say"
        )
    if _value(settings.eval_strategy) == "no":
        wanted = {
            "load_best_model_at_end": settings.load_best_model_at_end,
            "early_stopping_patience": settings.early_stopping_patience,
            "save_strategy best": _value(settings.save_strategy) == "best",
        }
        problems += [
            f"{name} goes by evaluations, and eval_strategy is no; set it to epoch or steps"
            for name, is_set in wanted.items()
            if is_set
        ]
    return problems


def _value(choice: Any) -> str:
    """A choice as text, be it one already or one of transformers' enumerations."""
    return str(getattr(choice, "value", choice))


def _monitoring_problems(settings: MatrixSettings) -> list[str]:
    problems = [
        f"{name} must be a number of steps, 0 or more (0: never), got {value!r}"
        for name in ("monitor_steps", "sample_steps")
        if not is_count(value := getattr(settings, name), least=0)
    ]
    if not is_count(settings.monitor_positions, least=2):
        problems.append(
            f"monitor_positions must be at least 2, got {settings.monitor_positions!r}; 512 is the usual choice"
        )
    if not is_count(settings.sample_max_new_tokens, least=1):
        problems.append(f"sample_max_new_tokens must be at least 1, got {settings.sample_max_new_tokens!r}")
    if isinstance(settings.sample_prompts, str):
        problems.append("sample_prompts must be a list of texts, got one text")
    if settings.sample_prompts and settings.sample_steps == 0:
        problems.append("sample_prompts does nothing while sample_steps is 0; set sample_steps to 500, say")
    return problems


def report_to_problems(report_to: object) -> list[str]:
    """What is wrong with the trackers that were named: misspelt ones, and ones that are not installed.

    Args:
        report_to: As given: a name, a list of names, `all` or `none`.

    Returns:
        One text a problem.
    """
    names = [report_to] if isinstance(report_to, str) else report_to
    known = sorted(INTEGRATION_TO_CALLBACK)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return [f"report_to must be a tracker, a list of trackers, all or none, got {report_to!r}"]
    if len(names) == 1 and names[0] in ("all", "none"):
        return []
    problems = []
    installed = None
    for name in names:
        if name in ("all", "none"):
            problems.append(f"report_to: {name} stands alone, got {list(names)}")
        elif name not in INTEGRATION_TO_CALLBACK:
            hint = nearest_hint(name, [*known, "all", "none"]) or f"; known are {', '.join(known)}, all, none"
            problems.append(f"report_to: unknown tracker {name!r}{hint}")
        elif name in _PIP_NAMES:
            installed = get_available_reporting_integrations() if installed is None else installed
            if name not in installed:
                problems.append(f"report_to: {name} is not installed; pip install {_PIP_NAMES[name]}")
    return problems
