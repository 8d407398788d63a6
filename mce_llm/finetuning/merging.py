"""Merge adapters into their base model and save the result: a stock model that needs neither peft nor this package.

The base is read again in full precision, so that this serves adapters of any run: one that was sharded over GPUs, and
one that was trained on quantised weights. Nothing is written to the output folder before everything is.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import GENERATION_CONFIG_NAME

from mce_llm.errors import MceLlmError
from mce_llm.finetuning.adapters import has_adapters, tied_embeddings
from mce_llm.finetuning.merged_card import merged_card
from mce_llm.finetuning.settings import ModelArguments
from mce_llm.lm.training.card_facts import FILE as CARD
from mce_llm.lm.training.run_settings import FILE as RUN_SETTINGS
from mce_llm.running.folder import LOCK, RECIPE, VERSIONS, folder_held
from mce_llm.running.hub import at_revision, revision_option
from mce_llm.running.messages import cause, counted, model_path_problem, nearest_hint, raise_all
from mce_llm.running.model_classes import auto_class
from mce_llm.running.processes import say
from mce_llm.running.vocabulary import embedding_rows, with_rows_for

DTYPES = ("auto", "float32", "bfloat16", "float16")
_WEIGHTS = "adapter_model.safetensors"
# The merged weights are those of the adapted model but for one rounding to their dtype; this is the largest share of
# the largest logit by which that may move any.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class MergeError(MceLlmError, RuntimeError):
    """Adapters cannot be merged; the message says why and what to do."""


@dataclass(frozen=True)
class Merged:
    """What was merged.

    Attributes:
        output: The folder of the merged model.
        base: Its base model.
        dtype: The dtype of its weights.
        parameters: How many they are.
        deviation: Largest difference between a logit of the merged and of the adapted model on a short text, as a
            share of the largest logit.
    """

    output: Path
    base: str
    dtype: torch.dtype
    parameters: int
    deviation: float

    def __str__(self) -> str:
        gigabytes = self.parameters * self.dtype.itemsize / 1e9
        return (
            f"merged into {self.base}: {self.parameters:,} weights, {gigabytes:.2f} GB in {str(self.dtype)[6:]}, in "
            f"{self.output}; logits within {self.deviation:.0e} of the adapted model's"
        )


def merge_adapters(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Merged:
    """Add the adapters' part to the base model's weights, and save the model with its tokenizer.

    Takes memory for the weights of the base model, on the CPU.

    Args:
        adapter: The folder with adapter_config.json and adapter_model.safetensors.
        output: A folder that does not exist yet.
        base: The base model, in place of the one that the adapter names.
        revision: A branch, tag or commit of a base model from the hub; by default the one that the adapter was trained
            on, where it names both.
        dtype: One of `DTYPES`; `auto` is the one that the base model is stored in.
        trust_remote_code: Run the Python code that the base model brings.

    Returns:
        What was merged.

    Raises:
        MergeError: Missing, damaged or unsuitable files, no space, a merged model that is not the adapted one, or an
            output inside the folder of a run that is at work.
    """
    adapter, output = Path(adapter).expanduser(), Path(output).expanduser()
    with _run_held(output):
        return _merge(adapter, output, base, revision, dtype, trust_remote_code)


def _merge(
    adapter: Path,
    output: Path,
    base: str | None,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
) -> Merged:
    config = _adapter_config(adapter)
    if base in (None, config.get("base_model_name_or_path")):
        base = config.get("base_model_name_or_path")
        revision = revision or config.get("revision")
    raise_all(_problems(adapter, output, base, revision, dtype), MergeError)
    base = str(base)
    model = _load_base(base, revision, dtype, trust_remote_code)
    parameters, width = model.num_parameters(), model.dtype.itemsize
    _check_space(output, parameters * width)
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer_source = str(adapter) if own else base
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            tokenizer_source,
            trust_remote_code=trust_remote_code,
            **revision_option(None if own else revision),
        )
    except Exception as error:  # hub and tokenizer errors have no common type
        raise MergeError(f"no usable tokenizer in {tokenizer_source}: {cause(error)}") from error
    with_rows_for(model, tokenizer, draw=False)  # as training did, whose values come with the adapter
    merged, deviation = _merged(model, adapter, base)
    if (adapter / GENERATION_CONFIG_NAME).is_file():  # training may have taught another end of an answer
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        merged.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        card = merged_card(adapter, base, model=merged, deviation=deviation)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        for record in (RECIPE, RUN_SETTINGS):  # an evaluation asks as the model was trained
            if (adapter / record).is_file():
                shutil.copy(adapter / record, unfinished)
        unfinished.rename(output)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise MergeError(f"cannot write to {output}: {cause(error)}") from error
    return Merged(output, base, merged.dtype, merged.num_parameters(), deviation)


def merge_trained(output: Path, settings: ModelArguments) -> None:
    """Merge what a run of the recipe saved in `output`, into `output/merged`; one process does it.

    Raises:
        MergeError: See `merge_adapters`; the adapters themselves are saved whatever happens here.
    """
    if PartialState().is_main_process:
        unset_hf_deepspeed_config()  # otherwise the base would be sharded as it was for training
        say(
            str(
                merge_adapters(
                    output,
                    output / "merged",
                    base=settings.model_name_or_path,
                    revision=settings.model_revision,
                    dtype=settings.dtype,
                    trust_remote_code=settings.trust_remote_code,
                )
            )
        )


@contextmanager
def _run_held(output: Path) -> Iterator[None]:
    """Hold the folder of the run that the output lies in, if it lies in one."""
    run = next(
        (
            place
            for place in output.absolute().parents
            if (place / LOCK).exists() or ((place / RECIPE).exists() and (place / VERSIONS).exists())
        ),
        None,
    )
    with nullcontext() if run is None else folder_held(run, error=MergeError):
        yield


def _adapter_config(adapter: Path) -> dict[str, Any]:
    path = adapter / "adapter_config.json"
    if not path.is_file():
        inside = (
            ", ".join(sorted(item.name for item in adapter.iterdir())[:6])
            if adapter.is_dir()
            else "no folder"
        )
        raise MergeError(
            f"{adapter} is no adapter: it has no adapter_config.json (found: {inside or 'nothing'})"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MergeError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(config, dict):
        raise MergeError(f"{path} is not the configuration of an adapter: expected a JSON object")
    return config


def _problems(adapter: Path, output: Path, base: str | None, revision: str | None, dtype: str) -> list[str]:
    """What can be said before anything is loaded."""
    problems = []
    if not (adapter / _WEIGHTS).is_file():
        pickled = (
            " (adapter_model.bin is a pickle, which can run code; convert it)"
            * (adapter / "adapter_model.bin").is_file()
        )
        problems.append(f"{adapter} has no {_WEIGHTS}{pickled}")
    if output.exists():
        problems.append(f"{output} exists; name a folder that does not, or remove it")
    if not base:
        problems.append("the adapter does not name its base model; give it with --base")
    elif problem := model_path_problem(base, revision):
        problems.append(f"the base model: {problem}; give its place with --base")
    if dtype not in DTYPES:
        problems.append(
            f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}{nearest_hint(dtype, DTYPES)}"
        )
    return problems


def _load_base(base: str, revision: str | None, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(
            base, trust_remote_code=trust_remote_code, **revision_option(revision)
        )
        if getattr(config, "quantization_config", None) is not None:
            raise MergeError(
                f"the base model {base} is quantised, and merging would round the adapters away; give the model that it "
                "was made from with --base"
            )
        loaded: Any = auto_class(config).from_pretrained(
            base,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **revision_option(revision),
        )
    except MergeError:
        raise
    except Exception as error:  # hub, safetensors and configuration errors have no common type
        raise MergeError(
            f"the base model {base}{at_revision(revision)} cannot be loaded: {cause(error)}"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise MergeError(
            f"the base model {base} lacks {counted(len(missing), 'weight')} (first: {missing[0]})"
        )
    return model.eval()


def _check_space(output: Path, needed: int) -> None:
    existing = next(folder for folder in output.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MergeError(
            f"the merged model takes {needed / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free; make space, or "
            "name a folder on another disk"
        )


def _merged(model: PreTrainedModel, adapter: Path, base: str) -> tuple[PreTrainedModel, float]:
    """The merged model, and by how much its logits differ from the adapted model's."""
    from peft import PeftModel

    tied = tied_embeddings(model)
    text = torch.arange(min(16, embedding_rows(model)))[None]
    try:
        with warnings.catch_warnings():
            # peft only warns where weights are missing, and goes on with random ones.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
        if tied and has_adapters(adapted.get_base_model().get_input_embeddings()):
            raise MergeError(
                f"the adapter {adapter} is on embeddings that the output head shares: merged, it would change the head "
                "too; use it unmerged"
            )
        with torch.no_grad():
            expected = adapted(input_ids=text).logits.cpu().double()
            merged = adapted.merge_and_unload(safe_merge=True)
            logits = merged(input_ids=text).logits.cpu().double()
    except MergeError:
        raise
    except (
        Exception
    ) as error:  # shapes that do not fit, unknown methods and damaged files have no common type
        raise MergeError(f"the adapter {adapter} cannot be merged into {base}: {cause(error)}") from error
    deviation = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not deviation <= _TOLERANCE.get(merged.dtype, 1e-3):
        raise MergeError(
            f"the merged model would not be the adapted one: its logits differ by {deviation:.1e} of the largest"
        )
    return merged, deviation
