"""The process in which sympy compares expressions; started and ended by `symbolic`, never imported.

Reads lines `["gold", "prediction"]` and answers each with `{"equal": true}` or false. How they are read and compared is
known in `symbolic_reading`, `symbolic_equality` and `symbolic_statements`, which need neither torch nor transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

MEMORY_LIMIT = 4 << 30  # bytes; sympy writes out powers such as 9^{9^9}


def limit_memory() -> None:
    """Let a computation that grows without end fail instead of the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, most))


def load_package() -> None:
    """Make `mce_llm` the package that this file belongs to, whether or not it or another copy is installed."""
    folder = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location(
        "mce_llm", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["mce_llm"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    """Answer until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not come between the answers
    limit_memory()
    load_package()
    try:
        from mce_llm.eval.judging.symbolic_statements import mean_the_same
    except ImportError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    sys.set_int_max_str_digits(0)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        gold, prediction = json.loads(line)
        try:
            equal = mean_the_same(gold, prediction)
        except Exception:  # sympy raises nearly every type on odd input; what cannot be compared is not equal
            equal = False
        answers.write(json.dumps({"equal": bool(equal)}) + "\n")


if __name__ == "__main__":
    main()
