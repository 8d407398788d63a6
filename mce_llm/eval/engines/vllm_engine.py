"""Starting vLLM inside this process: settings of its surroundings, what it prints, and why it did not start.

vLLM's usual engine is a process of its own, which outlives a killed parent and keeps the GPU. Here it runs inside the
evaluation, so that both end together and an error comes with its cause; only the workers of a `tensor_parallel_size` above 1 are
processes, and these watch their parent.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from mce_llm.eval.errors import EvaluationError
from mce_llm.running.messages import cause

# Each holds unless the user has set the variable. They have to stand before vLLM is imported.
_SURROUNDINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anyone
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB, on a CPU alone, where it would be nine tenths of the machine's memory
}
_SHOWN = "VLLM_LOGGING_LEVEL"
_ASKED_TO_SHOW = _SHOWN in os.environ

# What an error says that only points at one in another process.
_ELSEWHERE = re.compile(r"root cause|background process|[Ee]ngine core", re.IGNORECASE)
_LOGGED_ERROR = re.compile(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:Error|Exception): \S.*)$", re.MULTILINE)
_MEMORY = re.compile(r"memory|cache blocks|KV cache", re.IGNORECASE)


def import_problem() -> str | None:
    """Say why vLLM cannot be imported, or None where it can.

    A library of CUDA that is missing and a torch of another version are seen only when its parts are loaded.
    """
    for name, value in _SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    with _printing_caught():
        try:
            from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: F401
            from vllm.lora.request import LoRARequest  # noqa: F401
        except Exception as error:  # ImportError, OSError and RuntimeError of torch's operators among others
            return cause(error)
    return None


def start_engine(name: str, options: dict[str, Any], adapter: str | None) -> tuple[Any, Any]:
    """Start an engine.

    Args:
        name: The model, for messages.
        options: Those of `vllm.EngineArgs`.
        adapter: The directory of a LoRA adapter.

    Returns:
        The engine, and what asks it for the adapter; None without one.

    Raises:
        EvaluationError: If it cannot be started; the message has the cause, and what to do where memory is short.
    """
    tqdm.write(f"vllm loads {name}; with compilation this can take some minutes", file=sys.stderr)
    with _printing_caught() as printed:
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.lora.request import LoRARequest

            engine = LLMEngine.from_engine_args(EngineArgs(**options))
            request = None if adapter is None else LoRARequest("evaluated", 1, adapter)
            if request is not None:
                engine.add_lora(request)
        except Exception as error:  # engine, CUDA, configuration and compiler errors have no common type
            text = printed()
            why = _root_cause(error, text)
            remedy = "; " + _LESS_MEMORY if _MEMORY.search(why) else ""
            where = f"; what it printed is in {_kept(text)}" if text else ""
            raise EvaluationError(f"vllm cannot run {name}: {why}{remedy}{where}") from error
    return engine, request


_LESS_MEMORY = (
    "use a smaller batch_size or max_new_tokens, spread over more GPUs (--tensor_parallel_size), or end what else holds the "
    "memory; on a CPU VLLM_CPU_KVCACHE_SPACE sets how many GiB hold keys and values"
)


@contextmanager
def _printing_caught() -> Iterator[Callable[[], str]]:
    """Catch what this process and its children print, unless the user wants to see it.

    C++ code and worker processes print too, so the file descriptors are turned and not `sys.stdout`. The file has no name: nothing
    is left of it, however the process ends.

    Yields:
        What gives the text so far.
    """
    if _ASKED_TO_SHOW:
        yield lambda: ""
        return
    with tempfile.TemporaryFile() as file:

        def printed() -> str:
            _flush()
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")

        _flush()
        before = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield printed
        finally:
            _flush()
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _kept(text: str) -> str:
    """Write a text to a file that stays, and say where."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="vllm-", suffix=".log", delete=False
    ) as file:
        file.write(text)
    return file.name


def _root_cause(error: Exception, printed: str) -> str:
    """The cause of an error, from what a worker process has printed where the error only points there."""
    text = cause(error).partition(" [type=")[0]  # what pydantic adds is all of the configuration
    if not _ELSEWHERE.search(text):
        return text
    own = [line.strip() for line in _LOGGED_ERROR.findall(printed) if not _ELSEWHERE.search(line)]
    return own[-1][:300] if own else text
