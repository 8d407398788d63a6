"""What a loss changes inside a model: numbers and words, sure and unsure positions, near and far tokens, temperature.

Scores the reference solutions of a data set with several fine-tuned models of one base model, and adds a line of figures for
each to a file; `insides_page.py` makes tables and pictures of it. Models whose line is there are left out, so that the models
of a long study can be measured, and deleted, as they are made.

- Positions are told apart by how sure the model was *before* training (its largest probability), so that all models are
  read at the same places.
- Near and far: where a model's probability goes that is not on the right token. `cosine` is its mean similarity to the right
  token in the token geometry (rows of the head before training, centred, normalised), `near` the share of it on the right
  token's 64 nearest.
- Digits: at positions whose token is one digit, the probability of each other digit, and how far it is from the right one.
- Temperature: nats per token after the logits are divided by the best constant, found on every second question and used
  on the others. What a loss gains by smoothing alone is gone then.
- How far the geometry itself moved: the similarities of each token of the solutions to its 64 nearest before training, in the
  trained head: the mean distance from what they were, and their correlation with it. Where they hardly move, a geometry taken
  from the head as it is and one from the head as it was at the start are the same loss.
- Effective ranks over training (of the hidden states, and of the predicted density matrices), where the folder of a run has
  them: `monitor_steps` measures them.

    python benchmarks/loss_insides.py --before BASE --study runs/studies/NAME --data FILE --output insides.jsonl
    python benchmarks/loss_insides.py --before BASE --model ce=DIR ce=DIR --model token=DIR token=DIR --data FILE --output insides.jsonl
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_pages import rounded
from measuring import new_file

from mce_llm.eval.likelihood.evaluation import LIKELIHOOD, batches, scored_template
from mce_llm.eval.likelihood.references import encode_references
from mce_llm.eval.likelihood.scoring import Scorer
from mce_llm.eval.likelihood.settings import LikelihoodConfig
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.lm import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry

TEMPERATURES = np.round(np.exp(np.linspace(np.log(0.7), np.log(2.8), 13)), 3)
SURE = (0.0, 0.5, 0.9, 0.99, 1.0)
NEAREST = 64
DIGITS = "0123456789"
BATCH_TOKENS = 1024
RANKS = ("hidden_effective_rank", "density_effective_rank")
BEFORE = "before"
PLACES = 5  # digits behind the point of what is kept


class Geometry:
    """Directions of all tokens, and each one's nearest, from the head of the model before training."""

    def __init__(self, table_VD: torch.Tensor, tokens: list[int]) -> None:
        self.tokens = tokens
        self.rows_VD = _directions(table_VD)
        similar = self.rows_VD[tokens] @ self.rows_VD.T
        similar[torch.arange(len(tokens)), torch.tensor(tokens)] = -2.0
        found = similar.topk(min(NEAREST, len(self.rows_VD) - 1))
        self.similar_NK, self.near_NK = found
        self.nearest = dict(zip(tokens, self.near_NK, strict=True))

    def moved(self, table_VD: torch.Tensor) -> dict[str, float]:
        """How far the same similarities are from these in another table."""
        rows_VD = _directions(table_VD)
        now_NK = torch.einsum("nd,nkd->nk", rows_VD[self.tokens], rows_VD[self.near_NK])
        both = torch.stack([self.similar_NK.flatten(), now_NK.flatten()])
        return {
            "mean distance": float((now_NK - self.similar_NK).abs().mean()),
            "correlation": float(torch.corrcoef(both.double())[0, 1]),
        }


def _directions(table_VD: torch.Tensor) -> torch.Tensor:
    found = TokenGeometry.from_table(table_VD.float(), MatrixLossConfig())
    return (found.table_VD - found.mean_D) * found.scale_V[:, None]


class Inside(Scorer):
    """A scorer that also looks at where probability goes; rows of what it gives are named by `FIELDS`."""

    FIELDS = ("nats", "top1", "confidence", "cosine", "near", *(f"at {t}" for t in TEMPERATURES), *DIGITS)

    def __init__(self, model: torch.nn.Module, geometry: Geometry, digits: list[int]) -> None:
        super().__init__(model)
        self.geometry, self.digits = geometry, digits

    def rows(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """(fields, tokens of all completions)."""
        self.kept: list[torch.Tensor] = []
        self.score(prompts, completions)
        return torch.cat(self.kept, dim=1).numpy()

    def _chunk(self, logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        z_CV = logits_CV.float()
        q_CV = z_CV.softmax(-1)
        place_C1 = targets_C[:, None]
        right_C = q_CV.gather(1, place_C1).squeeze(1)
        wrong_C = (1 - right_C).clamp(min=1e-9)
        toward_C = ((q_CV @ self.geometry.rows_VD) * self.geometry.rows_VD[targets_C]).sum(-1)
        near_CK = torch.stack([self.geometry.nearest[int(target)] for target in targets_C])
        z_C = z_CV.gather(1, place_C1).squeeze(1)
        at = [(z_CV / float(t)).logsumexp(-1) - z_C / float(t) for t in TEMPERATURES]
        top_C, best_C = q_CV.max(-1)
        columns = [
            -right_C.clamp(min=1e-30).log(),
            (best_C == targets_C).float(),
            top_C,
            (toward_C - right_C) / wrong_C,
            q_CV.gather(1, near_CK).sum(-1) / wrong_C,
            *at,
            *q_CV[:, self.digits].T,
        ]
        self.kept.append(torch.stack([column.double() for column in columns]))
        return super()._chunk(logits_CV, targets_C)


def tables(
    rows: np.ndarray, masks: Mapping[str, np.ndarray], half_N: np.ndarray, right_N: np.ndarray
) -> dict[str, Any]:
    """Everything that the solutions tell of one model: `positions` (by their name) and `digits`.

    Args:
        rows: As `Inside.rows` gives them.
        masks: Name of a set of positions → (N,) bool.
        half_N: Whether a position is of an even question.
        right_N: The digit that is right, −1 where the token is no digit.
    """
    column = dict(zip(Inside.FIELDS, rows, strict=True))
    at_TN = np.stack([column[f"at {t}"] for t in TEMPERATURES])
    found: dict[str, Any] = {}
    for name, mask in masks.items():
        if not (mask & half_N).any() or not (mask & ~half_N).any():
            continue
        wrong_N = 1 - np.exp(-column["nats"][mask])
        temperatures, tempered = [], 0.0
        for side in (half_N, ~half_N):
            best = int(at_TN[:, mask & side].mean(axis=1).argmin())
            temperatures.append(float(TEMPERATURES[best]))
            tempered += float(at_TN[best, mask & ~side].sum())
        found[name] = {
            "tokens": int(mask.sum()),
            "nats": float(column["nats"][mask].mean()),
            "top1": float(column["top1"][mask].mean()),
            "confidence": float(column["confidence"][mask].mean()),
            "wrong": float(wrong_N.mean()),
            # Of the wrong probability as a whole, so that a position counts as much as it has of it.
            "cosine": float((column["cosine"][mask] * wrong_N).sum() / wrong_N.sum()),
            "near": float((column["near"][mask] * wrong_N).sum() / wrong_N.sum()),
            "temperature": float(np.mean(temperatures)),
            "tempered nats": tempered / int(mask.sum()),
        }
    q_10N = np.stack([column[digit] for digit in DIGITS])
    digits = [q_10N[:, right_N == digit].mean(axis=1) for digit in range(10)]
    wrong = np.array(digits) * (1 - np.eye(10))
    distance = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    off_by = float((wrong * distance).sum() / wrong.sum())
    return {
        "positions": found,
        "digits": {"probability": np.array(digits).tolist(), "distance": off_by},
    }


def ranks(folder: Path) -> dict[str, dict[str, float]]:
    """Effective ranks that a run has logged: name → step → rank; empty where it has not."""
    file = folder / "trainer_state.json"
    history = json.loads(file.read_text(encoding="utf-8"))["log_history"] if file.is_file() else []
    return {
        name: of
        for name in RANKS
        if (of := {str(line["step"]): line[name] for line in history if name in line})
    }


@dataclass(frozen=True)
class Model:
    """A fine-tuned model.

    Attributes:
        name: Of its loss; models of one name are training seeds of one method.
        seed: The training seed, or its number among those of one name.
        folder: Where it is.
    """

    name: str
    seed: int
    folder: Path


def models_of_study(folder: Path) -> list[Model]:
    """The runs of a study whose weights are there, seed by seed.

    Args:
        folder: The study's output, with seedN/ARM.
    """
    found = [
        Model(weights.parent.name, int(weights.parent.parent.name.removeprefix("seed")), weights.parent)
        for weights in folder.glob("seed[0-9]*/*/model.safetensors")
    ]
    return sorted(found, key=lambda model: (model.seed, model.name))


def named_models(words: Sequence[str]) -> list[Model]:
    """Models given as NAME=DIR; those of one name are numbered.

    Raises:
        ValueError: One is no such text, or no directory.
    """
    found: list[Model] = []
    for text in words:
        name, _, folder = text.partition("=")
        if not folder or not Path(folder).is_dir() or name == BEFORE:
            raise ValueError(f"--model must be NAME=DIR, a directory that is there, got {text!r}")
        found.append(Model(name, 1 + sum(model.name == name for model in found), Path(folder)))
    return found


class Solutions:
    """The reference solutions that all models are read at.

    Args:
        options: The command line.

    Raises:
        ValueError: The tokenizer has no tokens of the single digits.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        config = LikelihoodConfig(
            model=options.before,
            output=str(options.output),
            data=options.data,
            split=options.split,
            prompt=options.prompt,
        )
        questions = LIKELIHOOD.load(config.data, config.split, None)
        self._dtype = options.dtype
        model, tokenizer = load_model_and_tokenizer(options.before, options.dtype, torch.device("cpu"))
        self._found = encode_references(
            questions.rows, scored_template(config.template("likelihood")), tokenizer
        )
        self._order = sorted(range(len(self._found)), key=lambda index: -self._found[index].length)
        tokens_N = np.concatenate([self._found[index].completion_ids for index in self._order])
        known = tokenizer.get_vocab()
        if lacking := [digit for digit in DIGITS if digit not in known]:
            raise ValueError(f"the tokenizer has no tokens of the single digits {', '.join(lacking)}")
        self._digits = [known[digit] for digit in DIGITS]
        self._right_N = np.full(len(tokens_N), -1)
        for digit, token in enumerate(self._digits):
            self._right_N[tokens_N == token] = digit
        self._half_N = np.concatenate(
            [np.full(len(self._found[index].completion_ids), index % 2 == 0) for index in self._order]
        )
        self._geometry = Geometry(
            model.get_output_embeddings().weight.detach(), sorted(set(tokens_N.tolist()))
        )
        before = self._rows(model)
        self._masks = self._positions(before[Inside.FIELDS.index("confidence")])
        self.before = self._tables(before)

    def _positions(self, sure_N: np.ndarray) -> dict[str, np.ndarray]:
        masks = {
            name: np.concatenate([self._found[index].groups[name] for index in self._order])
            for name in ("all", "numbers", "results", "answer", "words")
        }
        for group in ("numbers", "words"):
            for low, high in itertools.pairwise(SURE):
                masks[f"{group} {low:g}–{high:g}"] = masks[group] & (sure_N > low) & (sure_N <= high)
        return masks

    def _rows(self, model: torch.nn.Module) -> np.ndarray:
        inside = Inside(model.eval(), self._geometry, self._digits)
        return np.concatenate(
            [
                inside.rows(
                    [self._found[index].prompt_ids for index in batch],
                    [self._found[index].completion_ids for index in batch],
                )
                for batch in batches(
                    self._order, [reference.length for reference in self._found], BATCH_TOKENS
                )
            ],
            axis=1,
        )

    def _tables(self, rows: np.ndarray) -> dict[str, Any]:
        return tables(rows, self._masks, self._half_N, self._right_N)

    def measured(self, folder: Path) -> dict[str, Any]:
        """What is told of the model in a folder."""
        model, _ = load_model_and_tokenizer(str(folder), self._dtype, torch.device("cpu"))
        moved = self._geometry.moved(model.get_output_embeddings().weight.detach())
        return {**self._tables(self._rows(model)), "geometry": moved, "ranks": ranks(folder)}


def kept_lines(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of a file by name and seed; none where it is not there."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {(line["name"], line["seed"]): line for line in lines}


def main() -> int:
    """Add a line for every model that has none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="The model before training.")
    parser.add_argument(
        "--model", action="append", nargs="+", default=[], metavar="NAME=DIR", help="Fine-tuned models."
    )
    parser.add_argument("--study", type=Path, help="The output of a study: all its runs that have weights.")
    parser.add_argument("--data", default="gsm8k", help="Questions with reference solutions.")
    parser.add_argument("--split", default=None, help="Their split, or a slice of it.")
    parser.add_argument("--prompt", default="chat", help="The prompt.")
    parser.add_argument("--dtype", default="bfloat16", help="Of the weights.")
    parser.add_argument("--output", type=new_file, required=True, help="The file of lines, *.jsonl.")
    options = parser.parse_args()
    try:
        models = named_models([word for words in options.model for word in words])
    except ValueError as error:
        parser.error(str(error))
    models += models_of_study(options.study) if options.study else []
    known = kept_lines(options.output)
    about = {"data": Path(options.data).name, "split": options.split, "prompt": options.prompt}
    about["dtype"] = options.dtype
    if other := [line["about"] for line in known.values() if line["about"] != about]:
        parser.error(f"{options.output} holds lines of {other[0]}, not of {about}")
    missing = [model for model in models if (model.name, model.seed) not in known]
    print(f"{len(models) - len(missing)} of {len(models)} models have their line", file=sys.stderr)
    if not models:
        parser.error("there is no model; give --model or a --study whose runs have weights")
    if not missing:
        return 0
    try:
        solutions = Solutions(options)
    except ValueError as error:
        parser.error(str(error))
    found = rounded({"name": BEFORE, "seed": 0, "about": about, **solutions.before}, PLACES)
    if (BEFORE, 0) not in known:
        _add(options.output, found)
    elif not _alike(known[BEFORE, 0], found):
        parser.error(f"{options.output} begins with another model before training, or other solutions")
    for model in missing:
        print(f"{model.name}, seed {model.seed}: {model.folder}", file=sys.stderr)
        measured = solutions.measured(model.folder)
        line = {"name": model.name, "seed": model.seed, "about": about, **measured}
        _add(options.output, rounded(line, PLACES))
    return 0


def _alike(line: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lines can be of one model on the same solutions, measured on other machines, say."""
    one, two = (each["positions"]["all"] for each in (line, other))
    return one["tokens"] == two["tokens"] and abs(one["nats"] - two["nats"]) < 0.01


def _add(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
