"""Made-up likelihoods of reference solutions, question by question, as the evaluation writes them."""

import json
from dataclasses import asdict
from hashlib import sha256

import numpy as np

from mce_llm.eval.fingerprints import fingerprint
from mce_llm.eval.likelihood.summary import summarize_likelihood

GROUPS = ("all", "numbers", "results", "answer", "words")
BINS = 15


def likelihood_items(n=40, *, seed=0, shift=0.0, spread=0.1, sharpness=0.0, questions=None, data_seed=0):
    """Lines of `items.jsonl`.

    Args:
        n: Questions.
        seed: Of this run's own noise.
        shift: Added to the nats of each token, on average.
        spread: Of the noise of a question's nats per token.
        sharpness: How far confidences lie above the share that is right.
        questions: Their texts; by default `How many are {k} and {k}?`.
        data_seed: Of what all runs on the same data share: tokens, and how hard a question is.

    Returns:
        One dict a question.
    """
    shared, own = np.random.default_rng(data_seed), np.random.default_rng([1, seed])
    items = []
    for k in range(n):
        numbers = int(shared.integers(8, 30))
        results = int(shared.integers(1, 4))
        tokens = {"numbers": numbers, "results": results, "answer": 2, "words": int(shared.integers(20, 60))}
        tokens["all"] = tokens["numbers"] + tokens["words"]
        hard = shared.lognormal(-0.5, 0.4)
        groups, calibration = {}, {}
        middles = (np.arange(BINS) + 0.5) / BINS
        for group in ("numbers", "words"):
            bins = own.multinomial(tokens[group], np.full(BINS, 1 / BINS))
            hits = own.binomial(bins, middles)
            each = max(0.01, hard + shift + own.normal(0, spread))
            groups[group] = sums(tokens[group], each, int(hits.sum()))
            calibration[group] = {
                "tokens": bins.tolist(),
                "confidence": [round(float(value), 6) for value in bins * np.clip(middles + sharpness, 0, 1)],
                "top1": hits.tolist(),
            }
        groups["all"] = {name: groups["numbers"][name] + groups["words"][name] for name in groups["words"]}
        words = calibration.pop("words")
        calibration["all"] = {
            name: [a + b for a, b in zip(calibration["numbers"][name], words[name], strict=True)]
            for name in words
        }
        for group, outer in (("results", "numbers"), ("answer", "all")):
            share = tokens[group] / tokens[outer]
            each = share * groups[outer]["nats"] * own.uniform(0.9, 1) / tokens[group]
            right = int(own.binomial(min(tokens[group], groups[outer]["top1"]), 0.8))
            groups[group] = sums(tokens[group], each, right)
        groups = {name: groups[name] for name in GROUPS}
        text = questions[k] if questions else f"How many are {k} and {k}?"
        items.append(
            {"index": k, "question": text, "gold": str(2 * k), "groups": groups, "calibration": calibration}
        )
    return items


def sums(tokens, each, right):
    return {
        "tokens": tokens,
        "nats": round(float(tokens * each), 6),
        "top1": right,
        "entropy": round(float(tokens * each * 0.9), 6),
    }


def write_likelihood(
    folder,
    items,
    *,
    model="models/a",
    prompt="metamath",
    data="gsm8k",
    split="test",
    dtype="bfloat16",
    tokenizer="one",
    batch_tokens=8192,
    versions=None,
    hashes=None,
):
    """Write a finished evaluation of likelihoods.

    Args:
        folder: Where to; it is made.
        items: Its lines, as `likelihood_items` makes them.
        tokenizer: What stands for the tokens of the solutions.
        hashes: Entries that replace those computed from the settings.

    Returns:
        The folder.
    """
    template = {"name": prompt, "prompt": "Question: {question}\nAnswer:", "completion_prefix": " "}
    scoring = {"version": 1, "groups": list(GROUPS), "bins": BINS, "tokens": tokenizer}
    identity = {
        "prompt": _hash(template),
        "data": fingerprint([[item["question"], item["gold"]] for item in items]),
        "scoring": _hash(scoring),
        "model": _hash(model),
        **(hashes or {}),
    }
    versions = {"python": "3.11.9", "torch": "2.9.0", "transformers": "5.0.0", **(versions or {})}
    config = {
        "task": "likelihood",
        "dtype": dtype,
        "settings": {"model": model, "data": data, "split": split, "prompt": prompt, "limit": None},
        "prompt": template,
        "scoring": scoring,
        "hashes": identity,
        "versions": versions,
    }
    summary = asdict(
        summarize_likelihood(
            items,
            2.0,
            [],
            {
                "model": model,
                "data": data,
                "split": split,
                "prompt": prompt,
                "dtype": dtype,
                "batch_tokens": batch_tokens,
                "processes": 1,
                "hashes": identity,
                "versions": versions,
                "continued": 0,
            },
        )
    )
    folder.mkdir(parents=True)
    for name, content in (("config.json", config), ("summary.json", summary)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return folder


def _hash(content):
    return sha256(json.dumps(content).encode()).hexdigest()
