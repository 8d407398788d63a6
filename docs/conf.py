"""How `make docs` builds the guides and the API reference, without a network.

Sources are found from the top of the repository, so that README.md and the README of each folder are pages as they
stand and their links mean the same here as where the repository is read. What the build checks beyond Sphinx is in
`reference.py` beside this file.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mce_llm import __version__  # noqa: E402

project = "mce-llm"
author = "The mce-llm authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "reference"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "recipes/README.md", "eval/README.md", "vision/README.md"]
html_theme = "furo"
highlight_language = "text"  # of fences without a language: most are command lines
html_title = f"mce-llm {release}"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["templates"]
html_additional_pages = {"index": "start.html"}  # build/docs/index.html leads to the first page

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "groupwise"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the fields of a dataclass stand in its docstring, once

myst_heading_anchors = 3  # links to headings, written as GitHub writes them
myst_enable_extensions = ["colon_fence"]

default_role = "name"  # of reference.py

nitpicky = True
# Names of other packages, in annotations and base classes: their documentation is not here. With MCE_LLM_INTERSPHINX=1
# and a network those that have an inventory become links.
_OTHERS = [
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "evaluate",
    "numpy",
    "rich",
    "PIL",
    "matplotlib",
    "timm",
]
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join([*_OTHERS, *sys.stdlib_module_names])})\..*"),
    # The same where an annotation cannot be resolved, because what it names is imported for type checkers alone.
    ("py:class", r"(nn|dist)\.\w+|Path|PeftModel|PreTrainedModel"),
    # Private bases and type variables.
    ("py:.*", r"(mce_llm\.(\w+\.)*)?_\w+"),
    ("py:.*", r"mce_llm\.eval\.comparing\.pairing\.Run"),
]
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
if os.environ.get("MCE_LLM_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
