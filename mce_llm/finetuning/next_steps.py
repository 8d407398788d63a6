"""What to do with a trained model: commands that are ready to be run."""

from __future__ import annotations

import shlex
from pathlib import Path

from mce_llm.finetuning.settings import DataArguments
from mce_llm.running.installation import named_file


def evaluation_command(output: Path, data: DataArguments) -> str:
    """The command that measures a trained model's accuracy, with the wording that it was trained on.

    Args:
        output: Where it was saved.
        data: What it was trained on; the held-out file, where there is one, gives the questions.
    """
    words = ["python", named_file("eval/gsm8k.py"), "--model", str(output), "--prompt", data.prompt]
    if data.eval_dataset is not None and Path(data.eval_dataset).expanduser().exists():
        words += ["--data", data.eval_dataset]
        for option, value in (
            ("--split", data.eval_split),
            ("--data_name", data.eval_dataset_name),
            ("--columns", data.columns),
        ):
            words += [option, value] if value is not None else []
    if data.system_prompt is not None:
        words += ["--system_prompt", data.system_prompt]
    if data.chat_template_kwargs is not None:
        words += ["--chat_template_kwargs", data.chat_template_kwargs]
    return shlex.join([*words, "--output", str(output / "gsm8k")])
