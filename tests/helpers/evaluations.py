"""Folders as evaluations leave them, from a table of what was right: no model is needed to compare runs."""

import json
from collections import Counter
from hashlib import sha256

import numpy as np

from mce_llm.eval.intervals import wilson_interval

_ENDINGS = {
    "answer_is": "The answer is: {}".format,
    "hash": "#### {}".format,
    "boxed": r"\boxed{{{}}}".format,
    "last_number": "so {}".format,
}
"""`found_by` → the last line of an answer that is found like that."""


def write_run(
    folder,
    correct,
    *,
    task="gsm8k",
    model="models/a",
    prompt="metamath",
    prompt_text="Question: {question}\nAnswer:",
    data=None,
    split="test",
    dtype="bfloat16",
    max_new_tokens=512,
    temperature=0.0,
    batch_size=16,
    versions=None,
    found_by=None,
    finished=None,
    questions=None,
    responses=None,
    hashes=None,
):
    """Write a finished evaluation.

    Args:
        folder: Where to; it is made.
        correct: For each question whether it was answered rightly, or a row of such for several samples.
        data: Where its questions came from; by default what the task is called after.
        found_by: How the answer of each question was found; by default `answer_is` for all of them.
        finished: How each question's generation ended; by default `eos` for all of them.
        questions: Their texts; by default `How many are {n} and {n}?`.
        responses: The texts of the answers, one a question, in front of the sentence that says the answer.
        hashes: Entries that replace those computed from the settings.

    Returns:
        The folder.
    """
    data = data or task
    rows = np.asarray(correct, dtype=bool)
    rows = rows[:, None] if rows.ndim == 1 else rows
    n, samples = rows.shape
    questions = questions or [f"How many are {k} and {k}?" for k in range(n)]
    found_by = found_by or ["answer_is"] * n
    finished = finished or ["eos"] * n
    items = []
    for k in range(n):
        for s in range(samples):
            predicted = str(2 * k if rows[k, s] else 2 * k + 1 + s)
            response = f"{responses[k] if responses else f'{k} and {k} are that.'}\n{_ENDINGS[found_by[k]](predicted)}"
            items.append(
                {
                    "index": k,
                    "sample": s,
                    "question": questions[k],
                    "gold": f"#### {2 * k}",
                    "response": response,
                    "predicted": predicted,
                    "found_by": found_by[k],
                    "correct": bool(rows[k, s]),
                    "finished": finished[k],
                    "new_tokens": 10 + k % 7,
                }
            )
    decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "num_samples": samples}
    template = {"name": prompt, "prompt": prompt_text, "stop": ["### Instruction:"]}
    about = {"model": model, "data": data, "split": split, "prompt": prompt, "max_new_tokens": max_new_tokens}
    identity = {
        "prompt": _hash(template),
        "data": _hash([data, split, questions]),
        "decoding": _hash(decoding),
        "model": _hash(model),
        **(hashes or {}),
    }
    versions = {"python": "3.11.9", "torch": "2.9.0", "transformers": "5.0.0", **(versions or {})}
    config = {
        "task": task,
        "dtype": dtype,
        "settings": {**about, "temperature": temperature, "num_samples": samples},
        "prompt": template,
        "decoding": decoding,
        "hashes": identity,
        "versions": versions,
    }
    right = int(rows.sum())
    tokens = sum(item["new_tokens"] for item in items)
    summary = {
        "task": task,
        "n": n,
        "num_samples": samples,
        "correct": right,
        "accuracy": right / rows.size,
        "confidence": 0.95,
        "interval": list(wilson_interval(right, rows.size)),
        "found_by": dict(Counter(item["found_by"] for item in items)),
        "correct_by": dict(Counter(item["found_by"] for item in items if item["correct"])),
        "truncated": sum(item["finished"] == "length" for item in items) / len(items),
        "new_tokens": tokens,
        "seconds": 2.0,
        "tokens_per_second": tokens / 2.0,
        **about,
        "batch_size": batch_size,
        "dtype": dtype,
        "processes": 1,
        "hashes": identity,
        "versions": versions,
        "majority": None,
        "pass_at": None
        if samples == 1
        else {"1": right / rows.size, str(samples): float(rows.any(1).mean())},
    }
    folder.mkdir(parents=True)
    for name, content in (("config.json", config), ("summary.json", summary)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return folder


def outcomes(both, only_a, only_b, neither):
    """Two lists of right and wrong with these counts of questions: A's, B's."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def _hash(content):
    return sha256(json.dumps(content).encode()).hexdigest()
