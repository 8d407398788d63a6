"""What the task files refer to: the questions, their prompt, and the judgement of an answer.

lm-evaluation-harness loads this file by its path, so everything else is imported from the installed package.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lm_eval
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from mce_llm.data import PromptTemplate
from mce_llm.eval.answers import judge
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.presets import preset_template
from mce_llm.eval.shots import chosen_shots
from mce_llm.eval.tasks import GSM8K, MATH, UNREADABLE, Task
from mce_llm.running.messages import counted, nearest_hint, raise_all

DEFAULT_PROMPT = "metamath"
KEYS: dict[str, type] = {
    "data": str,
    "data_name": str,
    "split": str,
    "columns": dict,
    "unreadable_references": str,
    "prompt": str,
    "shots": str,
    "num_shots": int,
    "max_new_tokens": int,
    "ignore": list,
}
"""What `--metadata` can say to these tasks, as the options of the same names do; `ignore` names what is for others."""
# What the harness itself keeps there.
_HARNESS = {"version", "config", "config_source", "num_fewshot"}
# Arguments of `from_pretrained` and of vLLM, which the harness hands on without a name of its own for them.
_HANDED_ON = {
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "quantization_config",
    "token",
    "torch_dtype",
    "use_safetensors",
    "variant",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "disable_custom_all_reduce",
    "distributed_executor_backend",
    "download_dir",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "hf_overrides",
    "kv_cache_dtype",
    "load_format",
    "max_num_seqs",
    "pipeline_parallel_size",
    "swap_space",
}
_ELSEWHERE = {
    "limit": "--limit",
    "system_prompt": "--system_instruction",
    "chat_template_kwargs": "--model_args chat_template_args or enable_thinking",
    "temperature": "--gen_kwargs",
    "top_p": "--gen_kwargs",
}


class SolutionTask(ConfigurableTask):
    """A task that asks with one of our prompts, and generates until one of its stop strings."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != "class"}
        asked = checked_metadata(settings.get("metadata") or {})
        self.template = _template(asked, str(settings["task"]).removeprefix("mce_"))
        generation = {**settings["generation_kwargs"], "until": list(self.template.stop)}
        if "max_new_tokens" in asked:
            generation["max_gen_toks"] = asked["max_new_tokens"]
        super().__init__(config={**settings, "generation_kwargs": generation})

    def doc_to_text(self, doc: Mapping[str, str], doc_to_text: Any = None) -> str:
        """Return the text after which the model goes on; for a chat prompt the user's turn, which the harness renders."""
        return self.template.evaluation_prompt(doc["question"])

    def fewshot_context(
        self,
        doc: dict[str, Any],
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str | list[str]:
        """Return the whole prompt; the arguments are those of the harness.

        Raises:
            EvaluationError: A chat prompt without the harness's chat template, or another prompt inside one.
        """
        name = self.template.name
        if self.template.chat and not apply_chat_template:
            raise EvaluationError(
                f"the prompt {name} needs the chat template of the tokenizer; add --apply_chat_template"
            )
        if apply_chat_template and not self.template.chat:
            raise EvaluationError(
                f"--apply_chat_template would put the prompt {name}, which is no chat, into a user's turn; leave it out, or set "
                '--metadata \'{"prompt": "chat-cot"}\''
            )
        if not self.template.shots:
            return super().fewshot_context(
                doc,
                num_fewshot,
                system_instruction=system_instruction,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                chat_template=chat_template,
                gen_prefix=gen_prefix,
            )
        if num_fewshot or not fewshot_as_multiturn or chat_template is None or gen_prefix:
            raise EvaluationError(
                "shots and num_shots show worked examples as turns of the chat; leave --num_fewshot out, and let "
                "--fewshot_as_multiturn be true"
            )
        messages = [] if not system_instruction else [{"role": "system", "content": system_instruction}]
        return chat_template([*messages, *self.template.pair(doc["question"], "").messages[:-1]])


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Take what is meant for these tasks out of `--metadata`, among which the harness puts the model's arguments.

    Args:
        metadata: As the harness passes it on.

    Returns:
        The values of `KEYS`.

    Raises:
        EvaluationError: A key that is known to nobody, or a value of the wrong kind; the message names all.
    """
    ours = {key: value for key, value in metadata.items() if key in KEYS and value is not None}
    problems = []
    for key, value in ours.items():
        if key == "columns" and isinstance(value, str):
            try:
                value = ours[key] = json.loads(value)
            except ValueError:
                problems.append(f"columns is no JSON: {value!r}")
                continue
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            problems.append(f"{key} must be {_KINDS[KEYS[key]]}, got {value!r}")
        elif isinstance(value, int) and value < 1:
            problems.append(f"{key} must be at least 1, got {value}")
    if ours.get("unreadable_references", UNREADABLE[0]) not in UNREADABLE:
        problems.append(f"unreadable_references must be one of {', '.join(UNREADABLE)}")
    ignored = ours["ignore"] if isinstance(ours.get("ignore"), list) else []
    others = {*_HARNESS, *_HANDED_ON, *ignored}
    strange = [key for key in metadata if key not in KEYS and key not in others]
    if strange:
        arguments = _model_arguments()
        strange = [key for key in strange if key not in arguments]
    problems += [
        f"unknown key {key!r}: set it with {_ELSEWHERE[key]}"
        if key in _ELSEWHERE
        else f"unknown key {key!r}{nearest_hint(key, KEYS)}"
        for key in strange
    ]
    if problems:
        problems.append(
            f"the tasks take {', '.join(KEYS)}; an argument of the model that is not known here passes with "
            '"ignore": ["its name"]'
        )
    raise_all([f"--metadata: {problem}" for problem in problems], EvaluationError)
    return ours


_KINDS = {
    str: "a text",
    int: "a whole number",
    dict: "a mapping from roles to columns",
    list: "a list of names",
}


def _model_arguments() -> set[str]:
    """The arguments of all models of the harness; read and not imported, since most need packages of their own."""
    names: set[str] = set()
    for file in Path(lm_eval.__file__).parent.joinpath("models").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return names


def _template(asked: Mapping[str, Any], task: str) -> PromptTemplate:
    name = asked.get("prompt", DEFAULT_PROMPT)
    shots = chosen_shots(task, asked.get("shots"), asked.get("num_shots"), boxed=name == "chat-cot")
    return preset_template(name, task, shots)


def load_gsm8k(**metadata: Any) -> dict[str, Dataset]:
    """Load questions whose answers are numbers.

    Args:
        metadata: What the harness passes on: `data` (by default gsm8k), `split`, `columns` and the other `KEYS`.

    Returns:
        The columns `question` and `answer`, as the only split, `test`.

    Raises:
        DataError: If the data cannot be read, or questions have no usable answer.
        EvaluationError: If there are keys that nobody knows.
    """
    return _load(GSM8K, metadata)


def load_math(**metadata: Any) -> dict[str, Dataset]:
    """Load questions whose answers are expressions, by default math; else as `load_gsm8k`."""
    return _load(MATH, metadata)


def _load(task: Task, metadata: Mapping[str, Any]) -> dict[str, Dataset]:
    asked = checked_metadata(metadata)
    questions = task.load(
        asked.get("data", task.name),
        asked.get("split"),
        name=asked.get("data_name"),
        columns=asked.get("columns"),
        unreadable=asked.get("unreadable_references", UNREADABLE[0]),
    )
    for note in questions.notes:
        print(note)
    if questions.skipped:
        left_out = counted(len(questions.skipped), "question")
        print(f"warning: left out, for references that cannot be judged by: {left_out}")
    return {"test": questions.rows}


def judge_number(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Judge one generation whose answer is a number: 1 or 0 for each metric of the task."""
    return _judge(doc["answer"], results[0], GSM8K)


def judge_expression(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Judge one generation whose answer is an expression: 1 or 0 for each metric of the task."""
    return _judge(doc["answer"], results[0], MATH)


def _judge(gold: str, solution: str, task: Task) -> dict[str, float]:
    verdict = judge(solution, gold, task.style)
    return {
        "exact_match": float(verdict.correct),
        "fallback": float(verdict.answer.is_fallback),
        "no_answer": float(verdict.answer.is_missing),
        "still_thinking": float(verdict.answer.is_unfinished),
    }
