"""What a loss changes inside a model: numbers and words, sure and unsure positions, near and far tokens, temperature.

Scores the reference solutions of a data set with several fine-tuned models of one base model, and holds each against the
first. Several folders under one name are training seeds of one method; what is printed is their mean.

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

    python benchmarks/loss_insides.py --before BASE --model ce=DIR ce=DIR --model token=DIR token=DIR --data FILE --output DIR
"""

import argparse
import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mce_llm.eval.likelihood.evaluation import LIKELIHOOD, batches, scored_template
from mce_llm.eval.likelihood.references import encode_references
from mce_llm.eval.likelihood.scoring import Scorer
from mce_llm.eval.likelihood.settings import LikelihoodConfig
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.lm import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.running.files import write_json

TEMPERATURES = np.round(np.exp(np.linspace(np.log(0.7), np.log(2.8), 13)), 3)
SURE = (0.0, 0.5, 0.9, 0.99, 1.0)
NEAREST = 64
DIGITS = "0123456789"
BATCH_TOKENS = 1024
RANKS = {"hidden_effective_rank": "hidden states", "density_effective_rank": "predicted density matrices"}


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


def tables(rows: np.ndarray, masks: dict[str, np.ndarray], half_N: np.ndarray, right_N: np.ndarray) -> dict:
    """Everything that is told of one model.

    Args:
        rows: As `Inside.rows` gives them.
        masks: Name of a set of positions → (N,) bool.
        half_N: Whether a position is of an even question.
        right_N: The digit that is right, −1 where the token is no digit.
    """
    column = dict(zip(Inside.FIELDS, rows, strict=True))
    at_TN = np.stack([column[f"at {t}"] for t in TEMPERATURES])
    found: dict = {}
    for name, mask in masks.items():
        if not mask.any():
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
    found["digits"] = {
        "probability": np.array(digits).tolist(),
        "distance": float((wrong * distance).sum() / wrong.sum()),
    }
    return found


def averaged(parts: list[dict]) -> dict:
    """The mean over training seeds of tables of the same form."""
    if isinstance(parts[0], dict):
        return {name: averaged([part[name] for part in parts]) for name in parts[0]}
    return np.mean(np.array(parts, dtype=float), axis=0).tolist()


def ranks(folder: Path) -> dict[str, dict[str, float]]:
    """Effective ranks that a run has logged: name → step → rank; empty where it has not."""
    file = folder / "trainer_state.json"
    history = json.loads(file.read_text(encoding="utf-8"))["log_history"] if file.is_file() else []
    return {
        name: of
        for name in RANKS
        if (of := {str(line["step"]): line[name] for line in history if name in line})
    }


def mean_ranks(logged: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean over training seeds, at the steps that all have."""
    return {
        name: {
            step: float(np.mean([of[name][step] for of in logged]))
            for step in logged[0][name]
            if all(step in of[name] for of in logged)
        }
        for name in logged[0]
        if all(name in of for of in logged)
    }


def draw_ranks(found: dict[str, dict], file: Path) -> None:
    """Effective ranks of every model over training, a panel a kind."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for place, (name, title) in enumerate(RANKS.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        for model, of in found.items():
            if name in of:
                axes.plot([int(step) for step in of[name]], list(of[name].values()), label=model)
        axes.set_title(f"effective rank: {title}", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if place == 0:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw(found: dict, baseline: str, file: Path) -> None:
    """Differences from the baseline by how sure the model was before, for numbers and for words."""
    names = [name for name in found if name not in (baseline, "before")]
    bins = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(SURE)]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for panel, group in enumerate(("numbers", "words")):
        axes = figure.add_subplot(1, 2, panel + 1)
        for number, name in enumerate(names):
            differences = [
                found[name][place]["nats"] - found[baseline][place]["nats"] if place in found[name] else 0.0
                for place in (
                    f"{group} {span}" for span in bins
                )  # a span without a token is in no model's table
            ]
            axes.bar(
                np.arange(len(bins)) + 0.8 * number / len(names), differences, 0.8 / len(names), label=name
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(bins)) + 0.4 - 0.4 / len(names), bins)
        axes.set_title(f"{group}: nats per token against {baseline}", fontsize=10)
        axes.set_xlabel("largest probability of the model before training")
        axes.grid(axis="y", alpha=0.3)
        if panel == 0:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> int:
    """Score all models, print the tables, write `insides.json` and `insides.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="The model before training.")
    parser.add_argument(
        "--model",
        action="append",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="Models; the first name is the baseline.",
    )
    parser.add_argument("--data", default="gsm8k", help="Questions with reference solutions.")
    parser.add_argument("--split", default=None, help="Their split, or a slice of it.")
    parser.add_argument("--prompt", default="chat", help="The prompt.")
    parser.add_argument("--dtype", default="bfloat16", help="Of the weights.")
    parser.add_argument("--output", type=Path, required=True, help="A folder for what is found.")
    options = parser.parse_args()
    folders: dict[str, list[str]] = defaultdict(list)
    for text in (word for words in options.model for word in words):
        name, _, folder = text.partition("=")
        if not folder or not Path(folder).is_dir() or name == "before":
            parser.error(f"--model must be NAME=DIR, a directory that is there, got {text!r}")
        folders[name].append(folder)
    config = LikelihoodConfig(
        model=options.before,
        output=str(options.output),
        data=options.data,
        split=options.split,
        prompt=options.prompt,
    )
    questions = LIKELIHOOD.load(config.data, config.split, None)
    device = torch.device("cpu")
    model, tokenizer = load_model_and_tokenizer(options.before, options.dtype, device)
    references = encode_references(questions.rows, scored_template(config.template("likelihood")), tokenizer)
    order = sorted(range(len(references)), key=lambda index: -references[index].length)
    tokens_N = np.concatenate([references[index].completion_ids for index in order])
    known = tokenizer.get_vocab()
    if lacking := [digit for digit in DIGITS if digit not in known]:
        parser.error(f"the tokenizer has no tokens of the single digits {', '.join(lacking)}")
    digits = [known[digit] for digit in DIGITS]
    geometry = Geometry(model.get_output_embeddings().weight.detach(), sorted(set(tokens_N.tolist())))
    right_N = np.full(len(tokens_N), -1)
    for digit, token in enumerate(digits):
        right_N[tokens_N == token] = digit
    groups = {
        name: np.concatenate([references[index].groups[name] for index in order])
        for name in ("all", "numbers", "results", "answer", "words")
    }
    half_N = np.concatenate(
        [np.full(len(references[index].completion_ids), index % 2 == 0) for index in order]
    )

    def rows_of(loaded: torch.nn.Module) -> np.ndarray:
        inside = Inside(loaded.eval(), geometry, digits)
        return np.concatenate(
            [
                inside.rows(
                    [references[index].prompt_ids for index in batch],
                    [references[index].completion_ids for index in batch],
                )
                for batch in batches(order, [reference.length for reference in references], BATCH_TOKENS)
            ],
            axis=1,
        )

    before = rows_of(model)
    sure_N = before[Inside.FIELDS.index("confidence")]
    masks = dict(groups)
    for group in ("numbers", "words"):
        for low, high in itertools.pairwise(SURE):
            masks[f"{group} {low:g}–{high:g}"] = groups[group] & (sure_N > low) & (sure_N <= high)
    found = {"before": tables(before, masks, half_N, right_N)}
    over_training, moved = {}, {}
    for name, places in folders.items():
        parts, movements = [], []
        if over := mean_ranks([ranks(Path(place)) for place in places]):
            over_training[name] = over
        for place in places:
            print(f"{name}: {place}", file=sys.stderr)
            trained, _ = load_model_and_tokenizer(place, options.dtype, device)
            parts.append(tables(rows_of(trained), masks, half_N, right_N))
            movements.append(geometry.moved(trained.get_output_embeddings().weight.detach()))
        found[name], moved[name] = averaged(parts), averaged(movements)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(
        options.output / "insides.json",
        {
            "seeds": {name: len(of) for name, of in folders.items()},
            "models": found,
            "effective ranks": over_training,
            "geometry": moved,
        },
    )
    draw(found, next(iter(folders)), options.output / "insides.png")
    if over_training:
        draw_ranks(over_training, options.output / "ranks.png")
    print("| model | positions | tokens | nats | first choice | wrong | cosine | near | best T | nats at T |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, table in found.items():
        for where, of in table.items():
            if where != "digits":
                print(
                    f"| {name} | {where} | {of['tokens']:,.0f} | {of['nats']:.4f} | {of['top1']:.1%} | {of['wrong']:.3f} | "
                    f"{of['cosine']:.4f} | {of['near']:.3f} | {of['temperature']:.2f} | {of['tempered nats']:.4f} |"
                )
        if name in moved:
            told = ", ".join(f"{what} {value:.4f}" for what, value in moved[name].items())
            print(f"| {name} | geometry against that before: {told} | | | | | | | | |")
        print(f"| {name} | wrong digits are off by | | {table['digits']['distance']:.3f} | | | | | | |")
    print(
        f"\nwritten to {options.output}: {json.dumps(sorted(file.name for file in options.output.iterdir()))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
