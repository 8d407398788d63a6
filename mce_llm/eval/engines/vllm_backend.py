"""vLLM as the engine, where it is installed: the same prompts, settings and ends of answers as with transformers."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedTokenizerBase
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from mce_llm.data import load_tokenizer
from mce_llm.eval.engines.decoding import (
    Decoding,
    Ends,
    Generation,
    Request,
    wanted_requests,
)
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import files_fingerprint
from mce_llm.eval.loading import adapter_config, check_path, refuse_revision
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.running.hub import revision_option
from mce_llm.running.messages import cause
from mce_llm.running.stop_ids import stop_ids

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
_CHUNK = 512  # answers between two moments at which they are kept; enough to fill the engine


class VllmBackend:
    """A model, or a LoRA adapter on its base model, in vLLM.

    Args:
        config: The options.

    Raises:
        EvaluationError: If it cannot be loaded.
    """

    def __init__(self, config: EvaluationConfig):
        adapter = adapter_config(config.model)
        base = config.model if adapter is None else str(adapter.get("base_model_name_or_path") or "")
        revision = config.revision
        if adapter is not None:
            refuse_revision(config.model, revision)
            revision = adapter.get("revision")
        check_path(base, revision)
        own_tokenizer = adapter is not None and Path(config.model, "tokenizer_config.json").is_file()
        self.tokenizer: PreTrainedTokenizerBase = (
            load_tokenizer(config.model) if own_tokenizer else load_tokenizer(base, revision=revision)
        )
        self.folders = [_folder(base, revision)]
        if adapter is not None:
            self.folders.append(Path(config.model))
        lora = {} if adapter is None else _lora_options(config.model, adapter)
        try:
            self.engine = LLM(
                model=base,
                revision=revision,
                tokenizer_revision=revision,
                dtype=config.dtype,
                tensor_parallel_size=config.tensor_parallel_size,
                generation_config="vllm",  # the checkpoint's own sampling settings do not count
                **lora,
            )
        except Exception as error:  # engine, CUDA, configuration and hub errors have no common type
            raise EvaluationError(f"vllm cannot load {config.model}: {cause(error)}") from error
        self.adapter = (
            None if adapter is None else LoRARequest("evaluated", 1, str(Path(config.model).absolute()))
        )
        self.dtype = str(self.engine.llm_engine.model_config.dtype).removeprefix("torch.")
        self.batching = "vllm"
        self.end_token_ids = _end_token_ids(base, revision)

    def fingerprint(self) -> str:
        """Return the hash of the weight files."""
        return files_fingerprint(self.folders)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        indices: Sequence[int],
        done: Collection[tuple[int, int]],
        end_token_ids: Sequence[int],
        batch_size: int,
    ) -> Iterator[Generation]:
        """Answer prompts as `generation.generate` does; vLLM decides itself how many at a time."""
        ends = Ends(self.tokenizer, end_token_ids, decoding)
        wanted = wanted_requests(prompts, indices, decoding, done)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            outputs = self.engine.generate(
                [{"prompt_token_ids": list(request.prompt)} for request in chunk],
                [_sampling(decoding, request, end_token_ids) for request in chunk],
                lora_request=self.adapter,
                use_tqdm=False,
            )
            for request, output in zip(chunk, outputs, strict=True):
                yield ends.finish(request, list(output.outputs[0].token_ids))


def _lora_options(name: str, adapter: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's options for an adapter; refuse what vLLM would leave out or stop at later."""
    rank = int(adapter.get("r") or 8)
    odd = [
        what
        for what, present in (
            (f"peft_type {adapter.get('peft_type')}", adapter.get("peft_type") != "LORA"),
            ("use_dora", adapter.get("use_dora")),
            ("modules_to_save", adapter.get("modules_to_save")),
            (f"rank {rank}", rank > _LORA_RANKS[-1]),
        )
        if present
    ]
    if odd:
        raise EvaluationError(
            f"vllm cannot run the adapter {name} ({', '.join(odd)}); merge it first (mce-llm merge), or use --backend hf"
        )
    return {"enable_lora": True, "max_lora_rank": next(most for most in _LORA_RANKS if most >= rank)}


def _sampling(decoding: Decoding, request: Request, end_token_ids: Sequence[int]) -> Any:
    seed = random.Random(f"{decoding.seed}/{request.index}/{request.sample}").getrandbits(32)
    return SamplingParams(
        n=1,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        seed=seed if decoding.temperature else None,
        max_tokens=decoding.max_new_tokens,
        stop=list(decoding.stop),
        stop_token_ids=list(end_token_ids),
    )


def _folder(name: str, revision: str | None) -> Path:
    return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, revision=revision))


def _end_token_ids(name: str, revision: str | None) -> list[int]:
    try:
        return stop_ids(GenerationConfig.from_pretrained(name, **revision_option(revision)))
    except OSError:  # a model without generation_config.json
        return []
