"""vLLM as the engine, where it is installed: the same prompts, settings and ends of answers as with transformers.

Only the next token is vLLM's: prompts go in as token ids, ids come back after every step, and `decoding.Ends` says where an
answer ends. So stop strings, end ids and counts of tokens are those of the other engines, and each answer is there as soon as it
has ended. Starting the engine is in `vllm_engine`, adapters in `vllm_adapters`.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from mce_llm.data import load_tokenizer
from mce_llm.eval.engines.decoding import (
    Decoding,
    Ends,
    Request,
    wanted_requests,
)
from mce_llm.eval.engines.generation import check_prompts
from mce_llm.eval.engines.vllm_adapters import adapter_options
from mce_llm.eval.engines.vllm_engine import start_engine
from mce_llm.eval.errors import EvaluationError, GenerationError
from mce_llm.eval.fingerprints import files_fingerprint
from mce_llm.eval.items import Generation
from mce_llm.eval.loading import adapter_base, adapter_config, check_path, load_outline, refuse_revision
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.running.hub import at_revision
from mce_llm.running.messages import cause
from mce_llm.running.stop_ids import stop_ids

_ROOM_STEP = 512  # tokens; another length of sequence is compiled anew
_LEAST_TEMPERATURE = 0.01  # vLLM takes this for anything between 0 and it
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


class VllmBackend:
    """A model, or a LoRA adapter on its base model, in vLLM; the engine starts with the first answers.

    So a run of which everything is answered starts none, and its room for tokens is about what the prompts need,
    whatever length the model could take.

    Args:
        config: The options.

    Raises:
        EvaluationError: If the model is not there, or vLLM would not run it as transformers does.
    """

    def __init__(self, config: EvaluationConfig):
        adapter = adapter_config(config.model)
        revision = config.revision
        if adapter is None:
            base = config.model
            check_path(base, revision)
        else:
            refuse_revision(config.model, revision)
            base, revision = adapter_base(config.model, adapter)
        if 0 < config.temperature < _LEAST_TEMPERATURE:
            raise EvaluationError(
                f"temperature is {config.temperature}, and vllm would take {_LEAST_TEMPERATURE} for it; use that or more, 0 for "
                "greedy answers, or --backend hf"
            )
        self._name = config.model
        self._adapter = None if adapter is None else str(Path(config.model).expanduser().absolute())
        self._lora = {} if adapter is None else adapter_options(config.model, adapter)
        own_tokenizer = adapter is not None and Path(config.model, "tokenizer_config.json").is_file()
        self.tokenizer: PreTrainedTokenizerBase = (
            load_tokenizer(config.model) if own_tokenizer else load_tokenizer(base, revision=revision)
        )
        self._folder = _folder(base, revision)
        self._model_config = _model_config(base, self._folder)
        self._tensor_parallel_size = config.tensor_parallel_size
        self._engine: Any = None
        self._lora_request: Any = None
        self._room = (0, 0)  # tokens of a sequence, and sequences at a time
        self._rows, self.dtype = _outline(self._folder, self._model_config, config.dtype)
        self.batching = "vllm"
        self.start_seconds = 0.0
        self.end_token_ids = _end_token_ids(self._folder)

    def fingerprint(self) -> str:
        """Return the hash of the weight files."""
        return files_fingerprint([self._folder, *([Path(self._adapter)] if self._adapter else [])])

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
        """Answer prompts as `generation.generate` does; `batch_size` is the most sequences that vLLM runs at a time."""
        positions = getattr(self._model_config.get_text_config(), "max_position_embeddings", None)
        check_prompts(
            prompts,
            indices,
            rows=self._rows,
            longest=positions,
            max_new_tokens=decoding.max_new_tokens,
            batch_size=batch_size,
        )
        waiting = deque(wanted_requests(prompts, indices, decoding, done))
        if not waiting:
            return
        needed = max(len(request.prompt) for request in waiting) + decoding.max_new_tokens
        rounded = -(-needed // _ROOM_STEP) * _ROOM_STEP
        self._start(min(rounded, positions) if positions else needed, batch_size)
        running = _Running(
            self._engine, self._lora_request, Ends(self.tokenizer, end_token_ids, decoding), decoding
        )
        try:
            while waiting or running.requests:
                while waiting and len(running.requests) < batch_size:
                    running.add(waiting.popleft())
                yield from running.step()
        except GeneratorExit:
            running.drop()
            raise

    def _start(self, tokens: int, sequences: int) -> None:
        """Have an engine with room for so many tokens a sequence, and so many sequences at a time."""
        if self._engine is not None and tokens <= self._room[0] and sequences <= self._room[1]:
            return
        if self._engine is not None:
            self._engine.engine_core.shutdown()
        options = {
            "model": str(self._folder),
            "dtype": self.dtype,
            "max_model_len": tokens,
            "max_num_seqs": sequences,
            "tensor_parallel_size": self._tensor_parallel_size,
            "skip_tokenizer_init": True,  # ids go in and come out
            "generation_config": "vllm",  # the checkpoint's own sampling settings do not count
            "disable_log_stats": True,
            **self._lora,
        }
        started = time.perf_counter()
        self._engine, self._lora_request = start_engine(self._name, options, self._adapter)
        self.start_seconds += time.perf_counter() - started
        self._room = tokens, sequences


class _Running:
    """The requests that an engine works on, and their new tokens so far."""

    def __init__(self, engine: Any, lora_request: Any, ends: Ends, decoding: Decoding):
        self.engine = engine
        self.lora_request = lora_request
        self.ends = ends
        self.decoding = decoding
        self.requests: dict[str, tuple[Request, list[int]]] = {}

    def add(self, request: Request) -> None:
        name = f"{request.index}/{request.sample}"
        try:
            self.engine.add_request(
                name,
                # With a type, newer versions take it as it is; older ones do not look at that.
                {"type": "token", "prompt_token_ids": list(request.prompt)},
                _sampling(self.decoding, request, sorted(self.ends.end_token_ids)),
                lora_request=self.lora_request,
            )
        except ValueError as error:
            raise GenerationError(f"vllm does not take prompt {request.index}: {cause(error)}") from error
        self.requests[name] = request, []

    def step(self) -> Iterator[Generation]:
        """One more token, mostly, for every request that runs; gives those that ended."""
        try:
            outputs = self.engine.step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the engine's, a worker's and CUDA's errors have no common type
            raise GenerationError(f"vllm failed while it answered: {cause(error)}") from error
        ended = []
        for output in outputs:
            if output.request_id not in self.requests:  # a token that was on its way when the answer ended
                continue
            request, new_ids = self.requests[output.request_id]
            completion = output.outputs[0]
            if math.isnan(completion.cumulative_logprob or 0.0):
                raise GenerationError(
                    f"the model's logits are NaN or infinite for prompt {request.index}; its weights may hold NaN after a "
                    "diverged training, or float16 overflowed: look at the training loss, or use --dtype float32"
                )
            for token in completion.token_ids:
                new_ids.append(token)
                if self.ends.reached(new_ids):
                    break
            else:
                if output.finished:
                    raise GenerationError(
                        f"vllm ended the answer to prompt {request.index} by itself ({completion.finish_reason})"
                    )
                continue
            del self.requests[output.request_id]
            if not output.finished:  # a stop string, which vLLM was not told of
                ended.append(output.request_id)
            yield self.ends.finish(request, new_ids)
        if ended:
            self.engine.abort_request(ended)

    def drop(self) -> None:
        """Have the engine forget what it works on."""
        self.engine.abort_request(list(self.requests))


def _sampling(decoding: Decoding, request: Request, end_token_ids: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    seed = random.Random(f"{decoding.seed}/{request.index}/{request.sample}").getrandbits(32)
    return SamplingParams(
        n=1,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        seed=seed if decoding.temperature else None,
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=list(end_token_ids),
        ignore_eos=True,  # those of `end_token_ids` alone, as in the other engines
        logprobs=0,  # of the chosen token, which tells whether the logits were numbers
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _folder(name: str, revision: str | None) -> Path:
    """The directory of a model; of a hub id what it needs is downloaded, pickled weights only where there are no others."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=[*_SMALL_FILES, "*.safetensors"])
        )
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    except Exception as error:  # the hub's, the network's and the disk's errors have no common type
        raise EvaluationError(
            f"the model {name}{at_revision(revision)} cannot be downloaded: {cause(error)}"
        ) from error
    return folder


def _model_config(name: str, folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # unknown architectures and damaged files have no common type
        raise EvaluationError(f"the model {name} cannot be loaded: {cause(error)}") from error


def _outline(folder: Path, config: Any, dtype: str) -> tuple[int, str]:
    """Token ids that a model knows, and the precision of its weights; refuses a checkpoint that lacks some of them.

    Of projections that vLLM fuses it notices no missing part, and its own `auto` makes 16 bits of 32. Quantised checkpoints, which
    transformers may not be able to load here, are left to vLLM.
    """
    if getattr(config, "quantization_config", None) is None:
        outline = load_outline(str(folder), dtype)
        weights = outline.get_input_embeddings().weight
        return int(weights.shape[0]), str(next(outline.parameters()).dtype).removeprefix("torch.")
    text_config = config.get_text_config()
    if dtype == "auto":
        dtype = str(text_config.dtype or config.dtype).removeprefix("torch.")
    return int(text_config.vocab_size), dtype


def _end_token_ids(folder: Path) -> list[int]:
    try:
        return stop_ids(GenerationConfig.from_pretrained(folder))
    except OSError:  # a model without generation_config.json
        return []
