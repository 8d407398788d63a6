"""`mce-llm validate`: examines a recipe and prints the outcome, for people or for programs.

What is examined is in `validation`, how it is printed in `validate_report`.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import redirect_stdout
from typing import Any

from mce_llm.commands.recipe_shapes import read_recipe
from mce_llm.commands.validate_report import print_validation
from mce_llm.commands.validation import Validation, validate_recipe
from mce_llm.running.terminal import DataConsole


def as_json(outcome: Validation) -> str:
    """The outcome for programs."""
    plan = outcome.plan
    return json.dumps(
        {
            "exit_code": outcome.exit_code,
            "findings": [vars(item) for item in outcome.findings.items],
            "fetches": [vars(fetch) for fetch in outcome.fetches],
            "data": {role: data.record() for role, data in outcome.data.items()},
            "samples": [sample.plain for sample in outcome.samples],
            "trial_step": outcome.step and vars(outcome.step),
            "optimizer_steps": outcome.steps,
            "memory": plan
            and {
                "recommended": plan.recommended,
                "peak_bytes": {item.engine: round(item.peak) for item in plan.engines},
                "verdicts": {item.engine: item.verdict for item in plan.engines},
            },
        },
        indent=2,
        ensure_ascii=False,
    )


def run_validate(config: str, overrides: list[str], *, json_output: bool, **options: Any) -> int:
    """Examine a recipe and print the outcome.

    Args:
        config: The YAML file.
        overrides: Settings as on the recipe's own command line.
        json_output: Print JSON in place of the report.
        **options: Those of `validate_recipe`.

    Returns:
        The exit code: 0 where the recipe can run, 1 where something has to change.

    Raises:
        ConfigurationError: The settings cannot be parsed.
    """
    recipe = read_recipe(config, overrides)
    # What the parts say on their way is no part of the report, nor are names that transformers is about to change.
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        outcome = validate_recipe(recipe, **options)
    if json_output:
        print(as_json(outcome))
    else:
        print_validation(outcome, DataConsole(markup=True))
    return outcome.exit_code
