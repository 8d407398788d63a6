"""Are our likelihoods those of transformers' own loss, and of lm-evaluation-harness? All three on the same texts, in one run.

transformers is given one text at a time with labels on the solution; the harness (where it is installed) scores the same ids as
continuations. Sums of nats are compared question by question, and the seconds of each are told.

    python benchmarks/likelihood_agreement.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data gsm8k --prompt chat
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from measuring import machine, positive, progress, table
from transformers import PreTrainedTokenizerBase

from mce_llm.eval.likelihood.evaluation import LIKELIHOOD, batches, scored_template
from mce_llm.eval.likelihood.references import Reference, encode_references
from mce_llm.eval.likelihood.scoring import Scorer
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.eval.presets import PRESETS, preset_template


def ours(model: Any, references: Sequence[Reference], batch_tokens: int) -> list[float]:
    """Nats of each solution as the evaluation has them."""
    scorer = Scorer(model)
    order = sorted(range(len(references)), key=lambda index: -references[index].length)
    found = [0.0] * len(references)
    for batch in batches(order, [reference.length for reference in references], batch_tokens):
        chosen = [references[index] for index in batch]
        scored = scorer.score([one.prompt_ids for one in chosen], [one.completion_ids for one in chosen])
        for index, scores in zip(batch, scored, strict=True):
            found[index] = float(scores.nats_T.sum())
    return found


def transformers_loss(model: Any, references: Sequence[Reference]) -> list[float]:
    """The mean that a model's forward returns for labels, times their number."""
    found = []
    for reference in references:
        ids = torch.tensor([reference.prompt_ids + reference.completion_ids], device=model.device)
        labels = ids.clone()
        labels[0, : len(reference.prompt_ids)] = -100
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        found.append(float(loss) * len(reference.completion_ids))
    return found


def harness(
    model: Any, tokenizer: PreTrainedTokenizerBase, references: Sequence[Reference], batch_size: int
) -> list[float]:
    """Of lm-evaluation-harness, given the same ids."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [(("", ""), list(one.prompt_ids), list(one.completion_ids)) for one in references]
    return [-likelihood for likelihood, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model or adapter: a directory or hub id")
    parser.add_argument("--data", required=True, help="questions with solutions: a file, gsm8k, ...")
    parser.add_argument("--prompt", default="chat", choices=[*PRESETS])
    parser.add_argument("--limit", type=positive, default=64, help="questions")
    parser.add_argument("--batch_tokens", type=positive, default=1024, help="of ours")
    parser.add_argument("--batch_size", type=positive, default=4, help="of the harness")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Score the texts in three ways and print how far they are apart."""
    options = arguments()
    state = PartialState(cpu=not torch.accelerator.is_available())
    rows = LIKELIHOOD.load(options.data, limit=options.limit).rows
    template = scored_template(preset_template(options.prompt, "gsm8k"))
    results = []
    for dtype in options.dtypes:
        model, tokenizer = load_model_and_tokenizer(options.model, dtype, state.device)
        references = encode_references(rows, template, tokenizer)
        ways: dict[str, Callable[[], list[float]]] = {
            "ours": lambda m=model, r=references: ours(m, r, options.batch_tokens),  # type: ignore[misc]
            "transformers' loss": lambda m=model, r=references: transformers_loss(m, r),  # type: ignore[misc]
        }
        if find_spec("lm_eval") is not None:
            ways["harness"] = lambda m=model, t=tokenizer, r=references: harness(m, t, r, options.batch_size)  # type: ignore[misc]
        mine: list[float] = []
        for name, score in ways.items():
            started = time.perf_counter()
            nats = score()
            seconds = time.perf_counter() - started
            mine = mine or nats
            tokens = sum(len(one.completion_ids) for one in references)
            results.append(
                {
                    "dtype": dtype,
                    "way": name,
                    "nats_per_token": sum(nats) / tokens,
                    "largest_difference": max(
                        abs(one - other) / len(reference.completion_ids)
                        for one, other, reference in zip(mine, nats, references, strict=True)
                    ),
                    "seconds": seconds,
                }
            )
            progress(f"{dtype}, {name}: {seconds:.1f} s")
    if options.json:
        print(json.dumps({"machine": machine(state.device), "results": results}))
        return
    print(f"{machine(state.device)}; {len(rows)} solutions of {options.data}, {options.prompt}")
    print(
        table(
            ["dtype", "", "nats per token", "largest difference of a solution, per token", "seconds"],
            [
                [
                    row["dtype"],
                    row["way"],
                    f"{row['nats_per_token']:.6f}",
                    f"{row['largest_difference']:.1e}",
                    f"{row['seconds']:.1f}",
                ]
                for row in results
            ],
        )
    )


if __name__ == "__main__":
    main()
