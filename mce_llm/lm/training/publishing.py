"""Model cards and pushes to the hub of a trainer with the matrix loss.

A model card is written on every save that a caller asked for, and on every push; the push itself is `Trainer`'s. Errors
of the hub become one message that says where the model is and how to push it later.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from mce_llm.errors import MceLlmError
from mce_llm.lm.heads import causal_model
from mce_llm.lm.training.card_facts import DataRecord
from mce_llm.lm.training.model_card import kept, write_model_card
from mce_llm.running.messages import cause

_logger = logging.get_logger(__name__)
# Refusals of the hub and connection errors, whose types depend on the HTTP library of the installed huggingface_hub.
_HUB_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)


class HubError(MceLlmError, RuntimeError):
    """The hub could not be reached, or refused; the message says what to do, and that the model is saved."""


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # a mixin for any class derived from Trainer


class PublishingMixin(_Trainer):
    """Mixin for `Trainer`: writes the model card, and explains errors of the hub.

    Attributes:
        data_records: The data that the model card describes; set them after the trainer is made.
    """

    data_records: Sequence[DataRecord] = ()
    _stated: dict[str, Any] | None = None

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | None = None,  # type: ignore[override]
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_name: str | list[str] | None = None,
    ) -> None:
        """Write README.md into the output folder, unless one from elsewhere is there.

        Args:
            language: Code of the language; left out by default.
            license: By default that of the base model, where its card is on this machine.
            tags: Beside those of this package.
            model_name: By default the repository's or the folder's.
            finetuned_from: By default what the model was loaded from.
            tasks: The pipeline tag, by default text-generation.
            dataset_tags: Hub ids of data sets, beside those in `data_records`.
            dataset: The same, under `Trainer`'s other name for it.
            dataset_name: The same, under TRL's name for it.
        """
        ids = [i for given in (dataset_tags, dataset, dataset_name) for i in _as_list(given)]
        stated = {
            "language": language,
            "license": license,
            "tags": tags,
            "model_name": model_name,
            "finetuned_from": finetuned_from,
            "tasks": tasks,
            "datasets": ids,
        }
        # What was said once holds for later saves too.
        self._stated = {**(self._stated or {}), **{name: value for name, value in stated.items() if value}}
        write_model_card(self, str(self.args.output_dir), **self._stated)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The stock save, and the model card beside it where a caller asked for the save."""
        folder = output_dir or str(self.args.output_dir)
        main = self.is_world_process_zero()
        with kept(folder) if main else nullcontext():
            super().save_model(output_dir, _internal_call)
        if not _internal_call:
            write_model_card(self, folder, **(self._stated or {}))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The stock save; beside adapters also where generation stops, which peft leaves to the base model."""
        model: Any = self.model
        with _embeddings_once(model):
            super()._save(output_dir, state_dict)
        if hasattr(model, "peft_config") and (settings := causal_model(model).generation_config) is not None:
            settings.save_pretrained(output_dir or str(self.args.output_dir))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """The stock call, which makes the repository.

        Raises:
            HubError: The hub could not be reached, or refused.
        """
        name = self.args.hub_model_id or os.path.basename(os.path.abspath(str(self.args.output_dir)))
        with _explained(f"cannot make the repository {name!r} on the hub"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """The stock push of the output folder.

        Raises:
            HubError: The hub could not be reached, or refused; what was saved stays where it is.
        """
        folder = self.args.output_dir
        with _explained(f"the model was not pushed to the hub; it is saved in {str(folder)!r}"):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The stock push during training, with an up-to-date model card."""
        self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        """The stock wait for a background push; logs a failure, which the stock method does not report."""
        super()._finish_current_push()
        progress = getattr(self, "push_in_progress", None)
        for job in progress.jobs if progress is not None else ():
            if job.done() and (error := job.exception()) is not None:
                _logger.warning(f"a push to the hub during training failed: {cause(error)}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except _HUB_ERRORS as error:
        raise HubError(
            f"{what}: {cause(error)}. Log in with `hf auth login` or set HF_TOKEN to a token that may write, check "
            "hub_model_id (OWNER/NAME) and that HF_HUB_OFFLINE is unset; or leave push_to_hub out, and upload the folder "
            "later with `hf upload`"
        ) from error


@contextmanager
def _embeddings_once(model: Any) -> Iterator[None]:
    """Have peft save embeddings that are trained whole beside adapters once; where rows were added, it would do so thrice."""
    if not hasattr(model, "peft_config"):
        yield
        return
    from peft.utils import ModulesToSaveWrapper

    base = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if not all(isinstance(end, ModulesToSaveWrapper) for end in ends):
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    try:
        yield
    finally:
        del model.save_pretrained


def _as_list(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
