"""Study files and lines of results, made up: no model is needed to read, check and compare them."""

import copy

import yaml

GROUPS = ("all", "numbers", "results", "answer", "words")


def write_study(folder, **changed):
    """Write study.yaml and recipe.yaml into a folder; keys that are None are left out.

    Args:
        folder: Where to; `model`, `data.jsonl` and `test.jsonl` are named in it.
        changed: Keys of the study file.

    Returns:
        The path of study.yaml.
    """
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "dataset": str(folder / "data.jsonl"),
        "prompt": "plain",
        "output_dir": "unused",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    content = {
        "name": "small",
        "output": str(folder / "out"),
        "recipe": "recipe.yaml",
        "baseline": "ce",
        "arms": {"mce": {"settings": {"matrix_weight": 1}}, "ce": {"settings": {"matrix_weight": 0}}},
        "seeds": [1, 2],
        "evaluations": {
            "answers": {
                "script": "gsm8k",
                "settings": {"data": str(folder / "test.jsonl"), "prompt": "plain", "max_new_tokens": 4},
            }
        },
        "primary": {"evaluation": "answers", "measure": "accuracy", "smallest_difference": 0.01},
        **changed,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


def answers_outcome(scores, model="m"):
    """What results.jsonl holds of an evaluation of answers."""
    return {
        "script": "gsm8k",
        "options": {"data": "content 1"},
        "seconds": 10.0,
        "code": [{"source": "s"}],
        "hashes": {
            "task": "gsm8k",
            "dtype": "float32",
            "prompt": "p",
            "data": "d",
            "decoding": "c",
            "model": model,
        },
        "summary": {"n": len(scores)},
        "questions": {"count": len(scores), "asked": len(scores), "hash": "q"},
        "values": {"score": list(scores)},
        "versions": {"torch": "2.14"},
        "remarks": [],
    }


def likelihood_outcome(nats, model="m", tokens=10, bins=3):
    """What results.jsonl holds of an evaluation of likelihoods: all groups alike, one question a value."""
    count = len(nats)
    group = {
        "tokens": [tokens] * count,
        "nats": list(nats),
        "top1": [tokens // 2] * count,
        "entropy": [1.5] * count,
    }
    calibration = {
        "tokens": [[tokens] + [0] * (bins - 1)] * count,
        "confidence": [[0.3 * tokens] + [0] * (bins - 1)] * count,
        "top1": [[tokens // 2] + [0] * (bins - 1)] * count,
    }
    outcome = answers_outcome([0] * count, model)
    hashes = {name: value for name, value in outcome["hashes"].items() if name != "decoding"}
    return {
        **outcome,
        "script": "likelihood",
        "hashes": {**hashes, "task": "likelihood", "scoring": "s"},
        "values": {
            "groups": {name: copy.deepcopy(group) for name in GROUPS},
            "calibration": {name: copy.deepcopy(calibration) for name in ("numbers", "all")},
        },
    }


def result_line(arm, seed, evaluations, **changed):
    """A line of results.jsonl."""
    return {
        "format": 1,
        "study": "small",
        "arm": arm,
        "seed": seed,
        "changes": {},
        "settings": {"learning_rate": 0.01},
        "code": [{"source": "s"}],
        "versions": {"torch": "2.14"},
        "launch": {"training": [], "evaluation": []},
        "training": {"seconds": 60.0, "steps": 3, "logged": {"loss": 1.0}, "train_loss": 1.5},
        "evaluations": evaluations,
        **changed,
    }
