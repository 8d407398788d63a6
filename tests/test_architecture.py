"""Who may import whom: one way between the packages, no circles between modules, optional packages on demand.

Every import statement is read with `ast`, also those inside functions and under `if TYPE_CHECKING:`.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers.scripts import ROOT

SCRIPTS = ("recipes", "eval", "vision", "benchmarks")
# Of each package in mce_llm: the others that it may import.
ARROWS = {
    "errors": set(),
    "matrix": {"errors"},
    "running": {"errors"},
    "data": {"running", "errors"},
    "lm": {"matrix", "running", "errors"},
    "vision": {"matrix", "running", "errors"},
    "eval": {
        "lm",
        "data",
        "matrix",
        "running",
        "errors",
    },  # likelihoods: what a model does behind its head is known in lm
    "planning": {"lm", "running", "errors"},  # which layers a model's head and decoder are, is known in lm
    "finetuning": {"lm", "data", "running", "errors"},
    "studies": {"finetuning", "lm", "eval", "data", "running", "errors"},
    "commands": {
        "studies",
        "finetuning",
        "planning",
        "eval",
        "vision",
        "lm",
        "data",
        "matrix",
        "running",
        "errors",
    },
    "cli": {"commands", "finetuning", "running", "errors", "__version__"},
    "__main__": {"cli"},
    "__init__": {"errors"},
}
# Packages that an installation may lack, and the modules that may import them at once: these are loaded by whoever asks
# for what the package does, and by nobody else.
OPTIONAL = {
    "deepspeed": (),
    "bitsandbytes": (),
    "wandb": (),
    "trackio": (),
    "math_verify": (),
    "latex2sympy2_extended": (  # in a process of their own
        "mce_llm.eval.judging.symbolic_reading",
        "mce_llm.eval.judging.symbolic_statements",
    ),
    "liger_kernel": (),
    "sklearn": (),
    "detectron2": (),
    "vllm": (),
    "trl": ("mce_llm.lm.trl",),
    "triton": (
        "mce_llm.lm.kernels.position_program",
        "mce_llm.lm.kernels.row_softmax_program",
        "mce_llm.lm.kernels.token_form_program",
    ),
    "lm_eval": ("mce_llm.eval.lm_eval_tasks.utils",),
    "timm": ("mce_llm.vision.exporting.timm_format",),
    "torchvision": (
        "mce_llm.vision.coco",
        "mce_llm.vision.data",
        "mce_llm.vision.exporting.torchvision_format",
    ),
    "faster_coco_eval": ("mce_llm.vision.coco",),
}
# Whoever works with images has installed the extra `vision`; its losses need none of it.
VISION_EXTRA = {"timm", "torchvision", "faster_coco_eval"}


@dataclass(frozen=True)
class Import:
    """One imported name: where the statement stands, what it names, and when it is executed."""

    source: str
    target: str
    when: str  # "loading", "calling" (inside a function) or "typing" (under TYPE_CHECKING)


def module_name(file, root):
    """The dotted name of a file below a folder; that of a package for its __init__.py."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(root, folders):
    """Return the modules in the folders of a tree, and every import in them."""
    files = {module_name(file, root): file for folder in folders for file in (root / folder).rglob("*.py")}
    found = []

    def note(source, target, when):
        # `from package import module` imports a module, `from module import name` what is in it.
        found.append(Import(source, target if target in files else longest_module(target), when))

    def longest_module(target):
        parts = target.split(".")
        known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((name for name in known if name in files), target)

    def walk(node, source, when):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    note(source, alias.name, when)
            elif isinstance(child, ast.ImportFrom):
                is_package = files[source].name == "__init__.py"
                above = source.split(".")[: len(source.split(".")) - child.level + is_package]
                base = ".".join([*above, child.module or ""]).strip(".") if child.level else child.module
                for alias in child.names:
                    note(source, f"{base}.{alias.name}", when)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                walk(child, source, "calling")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    walk(ast.Module([statement], []), source, "typing")
                walk(ast.Module(child.orelse, []), source, when)
            else:
                walk(child, source, when)

    for name, file in files.items():
        walk(ast.parse(file.read_text(encoding="utf-8")), name, "loading")
    return set(files), found


def find_circle(modules, imports):
    """Return modules that import each other while they are loaded, or None."""
    graph = {name: set() for name in modules}
    for item in imports:
        if item.when == "loading" and {item.source, item.target} <= modules and item.target != item.source:
            graph[item.source].add(item.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def package_of(module):
    """The package inside mce_llm that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def wrong_arrows(imports, arrows):
    """Return the imports between packages of mce_llm that the table does not allow."""
    return [
        f"{item.source} imports {item.target}"
        for item in imports
        if item.source.split(".")[0] == item.target.split(".")[0] == "mce_llm"
        and (source := package_of(item.source)) != (target := package_of(item.target))
        and target != "__init__"  # mce_llm itself: the version
        and target not in arrows[source]
    ]


def is_in(module, homes):
    """Whether a module is one of these, or inside of one."""
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def loaded_by(modules, imports):
    """Return a function from a module to the names of other packages that are imported while it is loaded."""
    direct = {name: set() for name in modules}
    for item in imports:
        if item.when == "loading":
            direct[item.source].add(item.target)

    @cache
    def closure(start):
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name not in seen and name in modules:
                seen.add(name)
                waiting += [
                    *direct[name],
                    name.rpartition(".")[0],
                ]  # a package is loaded before what is in it
        targets = {target for name in seen for target in direct[name] if target not in modules}
        return frozenset(target.split(".")[0] for target in targets) - set(sys.stdlib_module_names)

    return closure


@pytest.fixture(scope="module")
def tree():
    return read_imports(ROOT, ("mce_llm", *SCRIPTS))


def test_every_package_has_its_arrows(tree):
    modules, _ = tree
    packages = {package_of(name) for name in modules if is_in(name, ["mce_llm"])}
    assert packages <= set(ARROWS), "a new package needs a line in ARROWS"


def test_no_circles(tree):
    modules, imports = tree
    assert find_circle({name for name in modules if is_in(name, ["mce_llm"])}, imports) is None


def test_arrows_go_one_way(tree):
    assert wrong_arrows(tree[1], ARROWS) == []


def test_the_arrows_themselves_have_no_circle():
    TopologicalSorter(ARROWS).prepare()


def test_matrix_needs_torch_alone(tree):
    named = {item.target.split(".")[0] for item in tree[1] if is_in(item.source, ["mce_llm.matrix"])}
    assert named - set(sys.stdlib_module_names) == {"torch", "mce_llm"}


def test_nothing_imports_a_script_or_a_test(tree):
    modules, imports = tree
    outside = {*SCRIPTS, "tests", "helpers", *(Path(name).stem for name in modules if is_in(name, SCRIPTS))}
    package = [item for item in imports if is_in(item.source, ["mce_llm"])]
    assert [item for item in package if item.target.split(".")[0] in outside - {"math"}] == []
    scripts = [item for item in imports if is_in(item.source, SCRIPTS)]
    assert [item for item in scripts if is_in(item.target, ["tests", "helpers"])] == []


def test_optional_packages_are_imported_where_they_are_needed(tree):
    strays = [
        f"{item.source} imports {item.target}"
        for item in tree[1]
        if item.when == "loading"
        and is_in(item.source, ["mce_llm"])
        and (name := item.target.split(".")[0]) in OPTIONAL
        and not is_in(item.source, OPTIONAL[name])
    ]
    assert strays == []


def test_optional_packages_are_loaded_by_nobody_else(tree):
    modules, imports = tree
    closure = loaded_by(modules, imports)
    homes = [home for names in OPTIONAL.values() for home in names]
    loaded = {
        name: found
        for name in modules
        if is_in(name, ["mce_llm"]) and not is_in(name, homes)
        if (found := closure(name) & set(OPTIONAL))
    }
    assert {name: found for name, found in loaded.items() if not is_in(name, ["mce_llm.vision"])} == {}
    assert {name: found for name, found in loaded.items() if not found <= VISION_EXTRA} == {}


@pytest.mark.parametrize("module", ["mce_llm.matrix", "mce_llm.lm.config", "mce_llm.vision.losses"])
def test_what_torch_alone_suffices_for(tree, module):
    assert loaded_by(*tree)(module) <= {"torch", "mce_llm"}


@pytest.mark.parametrize(
    "module",
    [
        "mce_llm.cli",
        "mce_llm.data.boxed",
        "mce_llm.eval.answers",
        "mce_llm.lm.config",
        "mce_llm.matrix",
        "mce_llm.vision.losses",
    ],
)
def test_what_does_not_load_transformers(module):
    code = f"import sys, {module}; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def make_tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(root, ["mce_llm"])


PACKAGES = {"mce_llm/__init__.py": "", "mce_llm/data/__init__.py": "", "mce_llm/eval/__init__.py": ""}


@pytest.mark.parametrize(
    "statement",
    [
        "import mce_llm.eval.b",
        "from mce_llm.eval import b",
        "from mce_llm.eval.b import name",
        "from . import b",
        "from .b import name",
        "try:\n    from mce_llm.eval.b import name\nexcept ImportError:\n    pass",
        "class A:\n    from mce_llm.eval.b import name",
    ],
)
def test_a_circle_is_found(tmp_path, statement):
    files = {"mce_llm/eval/a.py": statement, "mce_llm/eval/b.py": "from mce_llm.eval.a import x"}
    circle = find_circle(*make_tree(tmp_path, {**PACKAGES, **files}))
    assert set(circle) == {"mce_llm.eval.a", "mce_llm.eval.b"}


@pytest.mark.parametrize(
    "statement",
    [
        "def f():\n    from mce_llm.eval.b import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mce_llm.eval.b import name",
    ],
)
def test_what_is_imported_later_is_no_circle(tmp_path, statement):
    files = {"mce_llm/eval/a.py": statement, "mce_llm/eval/b.py": "from mce_llm.eval.a import x"}
    modules, imports = make_tree(tmp_path, {**PACKAGES, **files})
    assert find_circle(modules, imports) is None
    assert Import("mce_llm.eval.b", "mce_llm.eval.a", "loading") in imports


@pytest.mark.parametrize(
    "statement",
    [
        "from mce_llm.eval import x",
        "from ..eval.a import x",
        "def f():\n    import mce_llm.eval.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mce_llm.eval.a import x",
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, statement):
    files = {"mce_llm/data/a.py": statement, "mce_llm/eval/a.py": "from mce_llm.data.a import y"}
    _, imports = make_tree(tmp_path, {**PACKAGES, **files})
    (found,) = wrong_arrows(imports, ARROWS)
    assert found.startswith("mce_llm.data.a imports mce_llm.eval")


def test_a_package_that_is_loaded_on_the_way_is_found(tmp_path):
    files = {
        "mce_llm/eval/__init__.py": "import mce_llm.eval.b",
        "mce_llm/eval/a.py": "",
        "mce_llm/eval/b.py": "import trl.core",
        "mce_llm/data/a.py": "def f():\n    import mce_llm.eval.a",
    }
    closure = loaded_by(*make_tree(tmp_path, {**PACKAGES, **files}))
    assert closure("mce_llm.eval.a") == {"trl"}
    assert closure("mce_llm.data.a") == frozenset()
