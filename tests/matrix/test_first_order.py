"""Second derivatives of what has a backward pass of its own: exact, or refused, and never taken for zero."""

import ast
from pathlib import Path

import mce_llm

# Whose backward pass can be differentiated again, each held to a dense form where it is tested.
ANY_ORDER = {"_FullPrecisionProduct", "_SumOverProcesses"}
# What refuses it.
REFUSING = {"first_derivative", "is_grad_enabled"}


def own_functions():
    """The classes with a backward pass of their own: {name: names that the backward pass calls}."""
    found = {}
    for file in sorted(Path(mce_llm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b).endswith("Function") for b in node.bases
            ):
                (backward,) = [item for item in node.body if getattr(item, "name", "") == "backward"]
                found[node.name] = {
                    ast.unparse(call.func).rpartition(".")[2]
                    for call in ast.walk(backward)
                    if isinstance(call, ast.Call)
                }
    return found


def test_every_backward_pass_says_what_becomes_of_its_derivative():
    functions = own_functions()
    assert len(functions) >= 8
    unsaid = {
        name
        for name, calls in functions.items()
        if name not in {*ANY_ORDER, "_FirstDerivative"} and not calls & REFUSING
    }
    assert not unsaid
    assert functions.keys() >= ANY_ORDER
