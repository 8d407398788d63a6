"""The data of `recipes/studies/quickstart.yaml`: made-up arithmetic in the formats of GSM8K and of MATH, and a tokenizer.

`python recipes/toy_study.py FOLDER` writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mce_llm.commands.quickstart import HELD_OUT, LARGEST_NUMBER, PROBLEMS
from mce_llm.data import generate_problems, train_tokenizer, write_jsonl

TRAINING = {**PROBLEMS, "validation": HELD_OUT["validation"]}
NUM_QUESTIONS = 300


def make_data(folder: Path) -> None:
    """Write the training, validation and test problems and a tokenizer; the same ones every time.

    Args:
        folder: Where to; `math.jsonl` is written last.
    """
    records = {
        name: generate_problems(count, split=split, seed=seed, max_number=LARGEST_NUMBER)
        for name, (split, count, seed) in TRAINING.items()
    }
    test = generate_problems(2 * NUM_QUESTIONS, split="test", seed=1, max_number=LARGEST_NUMBER)
    records["gsm8k"] = test[:NUM_QUESTIONS]
    for name, rows in records.items():
        write_jsonl(rows, folder / f"{name}.jsonl")
    texts = (f"{row['question']}\n{row['answer']}" for row in records["pretrain"])
    train_tokenizer(texts).save_pretrained(folder / "tokenizer")
    write_jsonl(map(_as_math, test[NUM_QUESTIONS:]), folder / "math.jsonl")


def _as_math(row: dict[str, str]) -> dict[str, str]:
    worked, _, answer = row["answer"].rpartition("#### ")
    return {
        "problem": row["question"],
        "solution": f"{worked.strip()} The answer is $\\boxed{{{answer}}}$.",
        "level": "Level 1",
        "type": "Prealgebra",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    make_data(parser.parse_args().folder)
