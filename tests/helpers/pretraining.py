"""A pretraining run of seconds: its settings, its command line, and its journal."""

import json

TINY = {
    "dataset": "shapes",
    "limit": 40,
    "eval_limit": 20,
    "image_size": 16,
    "backbone": "timm/resnet18",
    "stem": "cifar",
    "backbone_kwargs": "{channels: [8, 8, 8, 8], stem_width: 8}",
    "embedding_dim": 12,
    "projector_dim": 12,
    "predictor_dim": 6,
    "teacher_momentum": 0.9,
    "epochs": 2,
    "batch_size": 10,
    "base_learning_rate": 1.0,
    "warmup_epochs": 1,
    "monitor_images": 20,
    "knn_k": 3,
    "num_workers": 0,
    "cpu": True,
}


def words(output, **changed):
    settings = {**TINY, "output_dir": str(output), **changed}
    return [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    ]


def journal(folder):
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
