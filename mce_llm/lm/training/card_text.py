"""Fixed texts of the model card, and Markdown that is valid whatever a user's strings contain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MCE = "L = CE + λ · MCE(P, Q), MCE(P, Q) = tr(−P log Q + Q), in nats. "
_RHO = (
    "A distribution p over tokens becomes the density matrix ρ(p) = (1−ε) Σ_v p_v ê_v ê_vᵀ + ε I/d, with ê_v the token "
    "embeddings, held constant. "
)
_MEASURED = "The other settings below say what was evaluated as matrix cross-entropy, if anything was."
LOSS_TEXT = {
    "token": _MCE
    + _RHO
    + "P = ê_y ê_yᵀ of the target y and Q = ρ(softmax of the logits), for each position.",
    "marginal": _MCE
    + _RHO
    + "P and Q are ρ of the mean target and of the mean predicted distribution of a micro-batch over all processes.",
    "expected": _MCE
    + "P is the covariance of the target embeddings ê_y and Q that of the expected embeddings Σ_v q_v ê_v, over a "
    "micro-batch on all processes, both mixed with the share ε of I/d.",
    "ce": "Cross-entropy alone. " + _MEASURED,
    "label_smoothing": "L = (1−s) · CE + s · S, in nats, with S = −1/n Σ_v log q_v over the n rows of the head that are "
    "tokens. " + _MEASURED,
    "emo": "L = (1−w) · CE + w · r · D, with D = 1 − ⟨ê_y, Σ_v q_v ê_v⟩ for each position, ê_v the token embeddings at "
    "length one, held constant, y the target and q the predicted distribution; the factor r = min(CE/D, c) is constant "
    "too, and with c = 0 it has no limit (EMO, arXiv:2310.04691). " + _MEASURED,
}
"""Kind of the matrix loss, or another loss → its formula."""
NAMES = {
    "ce": "cross-entropy alone (λ = 0)",
    "label_smoothing": "label-smoothed cross-entropy",
    "emo": "earth mover's distance (EMO) beside cross-entropy",
    "mce": "matrix cross-entropy beside cross-entropy",
}
TAGS = {"label_smoothing": ["label-smoothing"], "emo": ["emo"], "mce": ["matrix-cross-entropy"]}

SETTING_MEANINGS = {
    "kind": "which density matrices are compared",
    "weight": "λ",
    "shrinkage": "ε, the share of I/d",
    "support": "k, the most probable tokens kept (kind token; null: all)",
    "order": "Lanczos steps (kind token)",
    "embeddings": "the table that gives ê",
    "center": "the mean embedding was subtracted",
    "normalize": "every ê has length one",
    "loss": "what was trained",
    "smoothing": "s of label_smoothing",
    "emo_weight": "w of emo",
    "emo_max_ratio": "c of emo",
    "emo_center": "the mean embedding was subtracted in emo",
}

CITATION_OF_EMO = """@inproceedings{ren2024emo,
  title     = {EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling},
  author    = {Ren, Siyu and Wu, Zhiyong and Zhu, Kenny Q.},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.04691}
}
"""
CITATION = """@inproceedings{zhang2024matrix,
  title     = {Matrix Information Theory for Self-Supervised Learning},
  author    = {Zhang, Yifan and Tan, Zhiquan and Yang, Jingqin and Huang, Weiran and Yuan, Yang},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2305.17326}
}
@software{mce_llm,
  title = {mce-llm: fine-tuning language models with matrix cross-entropy}
}"""


def code(text: str) -> str:
    """Any string as a code span on one line, also inside a table."""
    line = " ".join(text.split()).replace("|", "\\|")
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
    fence = _fence(line, 1)
    inner = f" {line} " if not line or line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inner}{fence}"


def fenced(text: str, language: str) -> str:
    """A block of code."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listed(items: Iterable[str]) -> str:
    """A bullet list."""
    return "\n".join(f"- {item}" for item in items)


def number(value: float) -> str:
    """Four significant digits, whole numbers as they are."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _fence(text: str, shortest: int) -> str:
    """More backticks than stand together anywhere in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(shortest, longest + 1)
