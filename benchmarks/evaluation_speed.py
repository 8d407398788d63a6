"""Time of generating answers with this package's engines and with lm-evaluation-harness's Hugging Face backend.

The same model in memory, the same prompts, stop strings, limit and batch size; one run, the engines in turn, repeats
interleaved. `--prompt cot-8shot` shows what a common beginning saves. The share of equal texts is printed too: float32
answers should be equal but for ties. Needs `pip install lm-eval` for the comparison.

    python benchmarks/evaluation_speed.py --model runs/quickstart/ce --data runs/quickstart/test.jsonl --prompt plain
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from measuring import device_argument, machine, positive, progress, table

from mce_llm.data import load_examples
from mce_llm.eval.engines.decoding import Decoding
from mce_llm.eval.engines.generation import choose_batching, generate
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.eval.presets import PRESETS, preset_template

HARNESS = "lm-evaluation-harness"


def ours(
    model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding, batch_size: int, batching: str
) -> Callable[[], list[str]]:
    """Return a call that answers all prompts with one of our engines."""

    def call() -> list[str]:
        found = generate(model, tokenizer, prompts, decoding, batch_size=batch_size, batching=batching)
        return [answer.text for answer in sorted(found, key=lambda answer: answer.index)]

    return call


def harness(
    model: Any, tokenizer: Any, texts: list[str], decoding: Decoding, batch_size: int
) -> Callable[[], list[str]]:
    """Return a call that answers all prompts with lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))
    options = {"until": list(decoding.stop), "max_gen_toks": decoding.max_new_tokens, "do_sample": False}

    def call() -> list[str]:
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(text, dict(options)), idx=index)
            for index, text in enumerate(texts)
        ]
        return backend.generate_until(requests, disable_tqdm=True)

    return call


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model's directory or hub id")
    parser.add_argument("--data", required=True, help="questions: a file, gsm8k, ...")
    parser.add_argument("--split", help="by default test, or the only one")
    parser.add_argument("--prompt", default="metamath", choices=[*PRESETS])
    parser.add_argument("--limit", type=positive, default=128, help="questions")
    parser.add_argument("--max_new_tokens", type=positive, default=256)
    parser.add_argument("--batch_size", type=positive, default=16)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--engines", nargs="+", default=["continuous", "bucketed"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", type=device_argument, default=torch.device("cpu"))
    parser.add_argument("--threads", type=positive, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_model_and_tokenizer(options.model, options.dtype, options.device)
    template = preset_template(options.prompt, "gsm8k")
    questions = load_examples(options.data, split=options.split, default_split="test", limit=options.limit)[
        "question"
    ]
    prompts = [template.encode_prompt(tokenizer, question, evaluation=True) for question in questions]
    texts = [template.evaluation_prompt(question) for question in questions]
    decoding = Decoding(max_new_tokens=options.max_new_tokens, stop=template.stop)

    calls = {
        name: ours(model, tokenizer, prompts, decoding, options.batch_size, choose_batching(model, name))
        for name in options.engines
    }
    if find_spec("lm_eval"):
        calls[HARNESS] = harness(model, tokenizer, texts, decoding, options.batch_size)
    else:
        print(f"{HARNESS} is not installed (pip install lm-eval): only our engines are measured")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, list[str]] = {}
    for repeat in range(options.repeats):
        for name, call in calls.items():
            progress(f"repeat {repeat + 1}/{options.repeats}: {name}")
            begin = time.perf_counter()
            answers[name] = call()
            seconds[name].append(time.perf_counter() - begin)
            print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    progress("")
    lengths = [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers[options.engines[0]]
    ]
    base = seconds.get(HARNESS)
    rows = []
    for name, times in seconds.items():
        ratios = sorted(other / own for other, own in zip(base or times, times, strict=True))
        same = sum(
            a.strip() == b.strip() for a, b in zip(answers[name], answers[options.engines[0]], strict=True)
        )
        rows.append(
            [
                name,
                f"{min(times):.1f}",
                f"{sum(lengths) / min(times):.0f}",
                f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})" if base else "–",
                f"{same} of {len(questions)}",
            ]
        )
    if options.json:
        print(json.dumps({"machine": machine(options.device), "seconds": seconds, "new_tokens": lengths}))
        return
    print(
        f"{len(questions)} questions, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, answers of "
        f"{min(lengths)} to {max(lengths)} (mean {sum(lengths) / len(lengths):.0f}), batch {options.batch_size}, "
        f"{options.dtype}, {machine(options.device)}"
    )
    print(table(["engine", "best s", "tokens/s", "× harness, median (range)", "same text"], rows))


if __name__ == "__main__":
    main()
