"""The process in which math-verify compares expressions; started and ended by `symbolic`, never imported.

Reads lines `["gold", "prediction"]` and answers each with `{"equal": true}` or false. Nothing of this package
is imported, so that it starts quickly and needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

MEMORY_LIMIT = 4 << 30  # bytes; sympy writes out powers such as 9^{9^9}


def limit_memory() -> None:
    """Let a computation that grows without end fail instead of the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, most))


def main() -> None:
    """Answer until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not come between the answers
    limit_memory()
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import parse, verify
        from math_verify.parser import LatexExtractionConfig
        from sympy import I
    except ImportError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    # units=False: it would read 2t as 2 tonnes. Boxes and thousands are gone already.
    config = LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        ),
    )

    def read(latex: str) -> list[Any]:
        found = parse(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
        # i is read as a symbol like any other, so that i² would not be -1.
        return [
            item.subs({name: I for name in item.free_symbols if name.name == "i"})
            if any(name.name == "i" for name in getattr(item, "free_symbols", ()))
            else item
            for item in found
        ]

    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        gold, prediction = json.loads(line)
        try:
            equal = verify(
                read(gold),
                read(prediction),
                float_rounding=15,
                numeric_precision=60,  # so that a root differs from its decimals, however many
                allow_set_relation_comp=True,
                timeout_seconds=None,
            )
        except Exception:  # sympy raises nearly every type on odd input; what cannot be compared is not equal
            equal = False
        answers.write(json.dumps({"equal": bool(equal)}) + "\n")


if __name__ == "__main__":
    main()
