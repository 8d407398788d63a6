"""Which causal language models of the installed transformers can be trained: the table of docs/architectures.md.

    python benchmarks/architectures.py --output docs/architectures.md

Every class that AutoModelForCausalLM knows is made from its own default configuration on the meta device, and goes
through the check that trainers make (`mce_llm.lm.check_model`). It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from mce_llm.lm import UnsupportedModelError, examine_model

# What default configurations lack: some cannot be made at all, and some have no layer of the kind they are known for.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2, 5]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"] * 8},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
# Classes for pictures and text, given text alone; those that AutoModelForCausalLM loads are in the other table.
MULTIMODAL = ("llama4", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe")

_REASONS = {  # what a refusal says → how the table says it
    "does not shift the labels": "does not shift the labels",
    "attends in both directions": "attends in both directions",
    "depend on tokens that come after": "sees later tokens",
    "its own forward": "its own forward fails on text",
    "not a plain floating-point": "head of a class of its own",
    "no separate backbone": "no separate backbone",
    "does not make its logits": "logits not of its own backbone and head",
    "could not find out": "treatment of the logits unknown",
    "neither a scale nor a softcap": "treatment of the logits neither scale nor softcap",
    "encoder-decoder": "encoder-decoder",
    "no output embeddings": "no output embeddings",
}


@dataclass(frozen=True)
class Row:
    """What was found out about one type of model.

    Attributes:
        model_type: As in its configuration.
        model_class: The class that is loaded for it.
        verdict: right, refused or not built.
        reason: Why, where it is not right.
        packing: Whether packed examples are kept apart; None where that was not looked at.
        seconds: CPU time of the check, with packing where it was looked at.
        problem: The whole message of a refusal.
    """

    model_type: str
    model_class: str
    verdict: str
    reason: str = ""
    packing: bool | None = None
    seconds: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        packing = {None: "–", True: "kept apart", False: "see each other"}[self.packing]
        verdict = f"{self.verdict}: {self.reason}" if self.reason else self.verdict
        return f"| `{self.model_type}` | {self.model_class} | {verdict} | {packing} |"


def walk(types: Iterable[str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) -> Iterator[Row]:
    """A row for each of these types of causal models, and one more for encoders that can be told to be decoders."""
    for model_type in types:
        settings = SETTINGS.get(model_type, {})
        row = _examined(model_type, AutoModelForCausalLM.from_config, settings)
        yield row
        if row.verdict == "refused" and row.reason in ("attends in both directions", "sees later tokens"):
            decoder = {**settings, "is_decoder": True}
            if hasattr(CONFIG_MAPPING[model_type](), "is_decoder") and "is_decoder" not in settings:
                again = _examined(model_type, AutoModelForCausalLM.from_config, decoder)
                if again.verdict != "refused":
                    yield Row(**{**vars(again), "model_type": f"{model_type}, is_decoder=True"})


def walk_multimodal(types: Iterable[str] = MULTIMODAL) -> Iterator[Row]:
    """A row for each of these types, in its class for pictures and text."""
    for model_type in types:
        model_class = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
        yield _examined(model_type, model_class, {})


def _examined(model_type: str, make: Any, settings: dict[str, Any]) -> Row:
    name = getattr(make, "__name__", "")
    if name == "from_config":
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    try:
        model: PreTrainedModel
        with torch.device("meta"):
            model = make(CONFIG_MAPPING[model_type](**settings))
    except Exception as error:  # as many types as there are architectures
        return Row(model_type, name, "not built", f"its default configuration: {_cell(error)}")
    name, begun = type(model).__name__, time.process_time()
    try:
        found = examine_model(model)
        packed = examine_model(model, packing=True) if found.problem is None else found
    except UnsupportedModelError as error:
        return Row(model_type, name, "refused", _reason(str(error)), problem=str(error))
    seconds = time.process_time() - begun
    if found.problem is not None:
        return Row(model_type, name, "refused", _reason(found.problem), None, seconds, found.problem)
    if found.unchecked:
        return Row(model_type, name, "not built", _cell(found.unchecked[0]), None, seconds)
    return Row(
        model_type,
        name,
        "right",
        packing=packed.problem is None,
        seconds=seconds,
        problem=packed.problem or "",
    )


def _reason(problem: str) -> str:
    return next((short for part, short in _REASONS.items() if part in problem), _cell(problem))


def _cell(text: object) -> str:
    """One short line for a cell of a table."""
    line = " ".join(str(text).split()).rpartition(" can be made: ")[2].replace("|", "/")
    return line if len(line) <= 90 else f"{line[:89]}…"


def page(rows: list[Row], multimodal: list[Row]) -> str:
    """The page as Markdown."""
    own = [row for row in rows if "is_decoder" not in row.model_type]
    counts = Counter(row.verdict for row in own)
    leaks = sum(row.packing is False for row in own)
    taken = sorted(row.seconds for row in own if row.verdict == "right")
    median, ninety, most = (taken[int(share * (len(taken) - 1))] for share in (0.5, 0.9, 1.0))
    return f"""# Architectures

Every type of model that `AutoModelForCausalLM` knows, made small from its default configuration and put through the
check that trainers make before they train ([what is checked](finetuning.md#the-model-check)). Made by
`python benchmarks/architectures.py --output docs/architectures.md` with transformers {transformers.__version__} and
torch {torch.__version__.partition("+")[0]}; a model's own configuration is checked again, whatever stands here.

Of {len(own)} types {counts["right"]} are right, {counts["refused"]} are refused, and {counts["not built"]} could not be made
here. In {leaks} of the {counts["right"]} packed examples would see each other, and `packing: true` is refused.

For those that are right the check took {median:.1f} s in the median, at most {ninety:.1f} s in nine of ten and {most:.1f} s
in the slowest: CPU time on one core, packing included.

- **right**: loss and gradients at weight 0 are those of the model's own loss, and no logit depends on a later token.
- **refused**: it ends in one message that says why, before data and weights are read.
- **not built**: no small model could be made of the default configuration. Such a model is trained with a warning that
  says what was not checked.

| type | class | loss | packed examples |
|---|---|---|---|
{chr(10).join(map(str, rows))}

## Multimodal models, given text

`AutoModelForCausalLM` loads some of them as their text class, others whole; recipes take what it loads, and
`AutoModelForImageTextToText` where it knows none. What text does not reach is frozen.

| type | class | loss | packed examples |
|---|---|---|---|
{chr(10).join(map(str, multimodal))}
"""


def main() -> None:
    """Print the rows as they come, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, help="the page to write; by default the rows are printed alone"
    )
    parser.add_argument("types", nargs="*", help="types of models; by default all")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")

    def shown(row: Row) -> Row:
        print(row, f"{row.seconds:.1f} s", flush=True)
        return row

    rows = [shown(row) for row in walk(arguments.types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    if arguments.types and arguments.output is None:
        return
    multimodal = [shown(row) for row in walk_multimodal()]
    if arguments.output is not None:
        arguments.output.write_text(page(rows, multimodal), encoding="utf-8")


if __name__ == "__main__":
    main()
