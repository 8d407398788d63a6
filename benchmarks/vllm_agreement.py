"""Do vLLM and transformers give the same answers, and how fast is each? Both backends on the same questions, in one run.

Greedy answers are compared token by token. Where two part, the model is asked, in transformers and float32, how far apart the two
tokens are at that place: a tie to the last digits is rounding, anything else is a defect. The backends take turns; vLLM's
start (loading, compiling) is told apart. Runs in an environment with vLLM; on a CPU VLLM_CPU_KVCACHE_SPACE sets its memory in GiB.

    python benchmarks/vllm_agreement.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data gsm8k --prompt chat
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from accelerate import PartialState
from measuring import machine, positive, progress, table

from mce_llm.data import load_examples
from mce_llm.eval.engines.backends import Backend, open_backend
from mce_llm.eval.engines.decoding import Decoding, Ends, Generation, Request
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.eval.presets import PRESETS, preset_template
from mce_llm.eval.settings import BACKENDS, EvaluationConfig


@dataclass(frozen=True)
class Parting:
    """The first place at which two answers differ.

    Attributes:
        index: The question.
        place: How many tokens they share.
        gap: How much larger the one token's logit is than the other's, in float32.
    """

    index: int
    place: int
    gap: float


@contextmanager
def tokens_of_answers() -> Iterator[dict[int, list[int]]]:
    """Collect the token ids of the answers that end meanwhile, by question."""
    found: dict[int, list[int]] = {}
    finish = Ends.finish

    def collecting(self: Ends, row: Request, new_ids: Sequence[int]) -> Generation:
        found[row.index] = list(new_ids)
        return finish(self, row, new_ids)

    with mock.patch.object(Ends, "finish", collecting):
        yield found


def answer(
    backend: Backend,
    prompts: list[list[int]],
    decoding: Decoding,
    ends: list[int],
    batch_size: int,
    done: Collection[tuple[int, int]] = (),
) -> int:
    """Answer the prompts that are not done; returns the number of new tokens."""
    answers = backend.answers(
        prompts,
        decoding,
        indices=range(len(prompts)),
        done=done,
        end_token_ids=ends,
        batch_size=batch_size,
    )
    return sum(found.n_tokens for found in answers)


def partings(
    model: str, prompts: list[list[int]], ours: dict[int, list[int]], theirs: dict[int, list[int]]
) -> list[Parting]:
    """Where answers differ, and by how much the two tokens do; one that ends earlier differs where the other goes on."""
    different = [index for index in ours if ours[index] != theirs[index]]
    if not different:
        return []
    exact, _ = load_model_and_tokenizer(model, "float32")
    found = []
    for index in different:
        pairs = enumerate(zip(ours[index], theirs[index], strict=False))
        place = next((n for n, (one, other) in pairs if one != other), None)
        if place is None:
            found.append(Parting(index, min(len(ours[index]), len(theirs[index])), float("inf")))
            continue
        with torch.inference_mode():
            ids = torch.tensor([prompts[index] + ours[index][:place]])
            logits = exact(input_ids=ids, logits_to_keep=1).logits[0, -1]
        gap = (logits[ours[index][place]] - logits[theirs[index][place]]).abs().item()
        found.append(Parting(index, place, gap))
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model or adapter: a directory or hub id")
    parser.add_argument("--data", required=True, help="questions: a file, gsm8k, ...")
    parser.add_argument("--prompt", default="chat", choices=[*PRESETS])
    parser.add_argument("--limit", type=positive, default=64, help="questions")
    parser.add_argument("--max_new_tokens", type=positive, default=200)
    parser.add_argument("--batch_size", type=positive, default=32, help="of both")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=positive, default=2)
    parser.add_argument("--threads", type=positive, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Run both backends and print what came of it."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    state = PartialState()
    template = preset_template(options.prompt, "gsm8k")
    questions = load_examples(options.data, split=None, default_split="test", limit=options.limit)["question"]
    decoding = Decoding(max_new_tokens=options.max_new_tokens, stop=template.stop)
    rows, results = [], []
    for dtype in options.dtypes:
        backends: dict[str, Backend] = {
            name: open_backend(
                EvaluationConfig(
                    model=options.model, output="unused", data=options.data, dtype=dtype, backend=name
                ),
                state,
            )
            for name in BACKENDS
        }
        tokenizer = backends["hf"].tokenizer
        prompts = [template.encode_prompt(tokenizer, question, evaluation=True) for question in questions]
        ends = list(dict.fromkeys([*template.end_token_ids(tokenizer), *backends["hf"].end_token_ids]))
        speeds: dict[str, list[float]] = {name: [] for name in backends}
        tokens: dict[str, dict[int, list[int]]] = {}
        # What is loaded and compiled with the first answer is no part of the others: the longest prompt alone, untimed.
        longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
        others = [(index, 0) for index in range(len(prompts)) if index != longest]
        for name, backend in backends.items():
            progress(f"{dtype}, one answer: {name}")
            answer(backend, prompts, decoding, ends, options.batch_size, done=others)
        for repeat in range(options.repeats):
            for name, backend in backends.items():
                progress(f"{dtype}, repeat {repeat + 1}/{options.repeats}: {name}")
                begin = time.perf_counter()
                with tokens_of_answers() as tokens[name]:
                    count = answer(backend, prompts, decoding, ends, options.batch_size)
                seconds = time.perf_counter() - begin
                speeds[name].append(count / seconds)
                print(f"{dtype} {name}: {count} tokens, {count / seconds:.0f} a second", file=sys.stderr)
        progress("")
        apart = partings(options.model, prompts, tokens["hf"], tokens["vllm"])
        ratios = sorted(vllm / hf for hf, vllm in zip(speeds["hf"], speeds["vllm"], strict=True))
        results.append(
            {
                "dtype": dtype,
                "questions": len(prompts),
                "tokens_per_second": speeds,
                "vllm_start_seconds": backends["vllm"].start_seconds,
                "apart": [vars(parting) for parting in apart],
            }
        )
        gaps = [parting.gap for parting in apart]
        rows.append(
            [
                dtype,
                f"{len(prompts) - len(apart)} of {len(prompts)}",
                f"{statistics.median(gaps):.1e} ({max(gaps):.1e})" if gaps else "–",
                *(f"{max(speeds[name]):.0f}" for name in BACKENDS),
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                f"{backends['vllm'].start_seconds:.0f} s",
            ]
        )
        del backends
    if options.json:
        print(json.dumps({"machine": machine(torch.device("cpu")), "results": results}))
        return
    print(
        f"{len(questions)} questions, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, at most "
        f"{options.max_new_tokens} new ones, batch {options.batch_size}, {machine(state.device)}"
    )
    header = ["dtype", "same tokens", "gap where they part, median (most)", "hf tokens/s", "vllm tokens/s"]
    print(table([*header, "vllm / hf", "vllm start"], rows))


if __name__ == "__main__":
    main()
