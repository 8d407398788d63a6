"""Tasks for EleutherAI's lm-evaluation-harness: GSM8K and MATH, judged as everywhere in this package.

The harness reads the YAML files of this folder:

    lm_eval --include_path "$(python -m mce_llm.eval.lm_eval_tasks)" --tasks mce_gsm8k,mce_math --model hf ...

What the YAML files refer to is in `utils`. Nothing here imports the harness, so that the folder can be asked for.
"""

from __future__ import annotations

from pathlib import Path


def task_folder() -> Path:
    """Return the folder to give to the harness as `--include_path`."""
    return Path(__file__).resolve().parent
