"""How good an encoder's features are to their nearest neighbours: `accelerate launch vision/knn.py --encoder DIR …`.

Nothing is trained: a test image gets the class that its k nearest training images vote for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mce_llm.running.processes import say
from mce_llm.running.settings import parse_settings, raise_all
from mce_llm.vision.data import DataSettings
from mce_llm.vision.probing.accuracy import accuracy_report, sentence
from mce_llm.vision.probing.encoders import EncoderSettings, open_encoder, prepared_as
from mce_llm.vision.probing.images import encode_images, open_labelled
from mce_llm.vision.probing.neighbours import knn_ranks
from mce_llm.vision.running import RunSettings, open_run, run_script


@dataclass
class NeighbourSettings:
    """How neighbours are found and vote."""

    k: list[int] = field(
        default_factory=lambda: [200],
        metadata={
            "help": "Neighbours that vote: 200 is usual, 20 for small sets. Of several, the first is the result, and all "
            "are in summary.json."
        },
    )
    temperature: float = field(default=0.1, metadata={"help": "τ: a neighbour's vote weighs exp(cosine/τ)."})
    encode_batch_size: int = field(
        default=256,
        metadata={"help": "Images that each process encodes at once; changes speed and memory alone."},
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values.
        """
        problems = [f"k must be at least 1, got {k}" for k in self.k if k < 1]
        problems += [f"k {k} comes twice" for k in dict.fromkeys(self.k) if self.k.count(k) > 1]
        if not 0 < self.temperature < float("inf"):
            problems.append(f"temperature must be positive, got {self.temperature}; 0.1 is the usual choice")
        if self.encode_batch_size < 1:
            problems.append(f"encode_batch_size must be at least 1, got {self.encode_batch_size}")
        raise_all(problems)


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the training and test images, let neighbours vote, and write summary.json.

    Args:
        argv: The command line; that of the process by default.
    """
    groups = (EncoderSettings, DataSettings, NeighbourSettings, RunSettings)
    words = sys.argv[1:] if argv is None else argv
    (which, data, settings, running), given = parse_settings(groups, words, description=__doc__)
    run = open_run(running, given)
    accelerator = run.accelerator
    encoder = open_encoder(which, running.seed)
    data = prepared_as(encoder, data, given)
    train, test = open_labelled(data)
    raise_all(
        [
            f"k must be at most {len(train):,}, the number of training images, got {k}; 20 is usual for small sets"
            for k in settings.k
            if k > len(train)
        ]
    )
    bank, queries = (
        encode_images(encoder.module, source, train, data, accelerator, settings.encode_batch_size)
        for source in (train, test)
    )
    ranks = knn_ranks(
        bank.features.to(accelerator.device),
        bank.labels,
        queries.features,
        queries.labels,
        settings.k,
        settings.temperature,
        len(train.classes),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    by_k = {
        k: accuracy_report(_merged(found, accelerator.device), queries.labels, train.classes)
        for k, found in ranks.items()
    }
    for k, report in by_k.items():
        say(f"{encoder.facts['name']}, k = {k}: {sentence(report)}")
    run.finish(
        {
            "method": "weighted k nearest neighbours",
            "k": settings.k[0],
            "temperature": settings.temperature,
            **by_k[settings.k[0]],
            "by_k": {
                str(k): {
                    name: value
                    for name, value in report.items()
                    if name not in ("per_class", "images", "classes")
                }
                for k, report in by_k.items()
            },
            "encoder": encoder.facts,
            "train_images": len(train),
            "feature_dim": bank.features.shape[1],
            "image_size": data.image_size,
        }
    )


def _merged(ranks: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The ranks that all processes found: each has −2 where another one looked."""
    if torch.distributed.is_initialized():
        everywhere = ranks.to(device)
        torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MAX)
        ranks = everywhere.cpu()
    return ranks


if __name__ == "__main__":
    sys.exit(run_script(main))
