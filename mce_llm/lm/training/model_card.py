"""The model card (README.md) of a trained model: what it is, how it was trained, and what was measured in this run.

It states what the trainer knows. Results come from the log of this run; where nothing was measured, the card says so. A
card from elsewhere is left unchanged: cards of this package carry a comment. The hub is not contacted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mce_llm.lm.training.card_facts import (
    FILE,
    METRICS,
    DataRecord,
    base_commit,
    base_name,
    data_id,
    final_evaluation,
    hub_id,
    license_of,
    versions,
)
from mce_llm.lm.training.card_sections import (
    data_text,
    loading_text,
    loss_text,
    results_text,
    training_text,
    what_it_is,
)
from mce_llm.lm.training.card_text import CITATION, CITATION_OF_EMO, TAGS, code, fenced, listed, table
from mce_llm.running.files import write_text

# The placeholder of peft's template; a card with fewer of them has been filled in.
_BLANK, _BLANKS = "[More Information Needed]", 30
_FORMULATION = (
    "The paper's code for language models is not public: this loss is the formulation of mce-llm. Whether it helps a task "
    "is a question for a comparison with the same training at λ = 0, over several seeds."
)
MARKER = "<!-- Written by mce-llm on every save. Without this line, the file is left alone. -->"


def write_model_card(trainer: Any, folder: str | os.PathLike[str], **stated: Any) -> bool:
    """Write README.md into a folder on the main process, unless one from elsewhere is there.

    Args:
        trainer: A trainer with `MatrixLossMixin`; its `data_records` describe the data.
        folder: Where the model was saved.
        **stated: What the caller says of the model: `language`, `license`, `tags`, `tasks`, `model_name`,
            `finetuned_from` and `datasets` (hub ids), each as in `Trainer.create_model_card`.

    Returns:
        Whether it was written.
    """
    path = Path(folder) / FILE
    if not trainer.is_world_process_zero() or is_foreign(path):
        return False
    write_text(path, model_card(trainer, **stated))
    return True


def is_foreign(path: Path) -> bool:
    """Whether a file is a model card that neither this package has written nor peft from its unfilled template."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return MARKER not in text and text.count(_BLANK) < _BLANKS


@contextmanager
def kept(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Move a README.md from elsewhere aside during a save: peft would edit it, and fails where it cannot parse it."""
    path = Path(folder) / FILE
    aside = path.with_name(f"_{FILE}.kept")
    if aside.exists():  # the process was killed during a save
        aside.replace(path)
    if not is_foreign(path):
        yield
        return
    path.replace(aside)
    try:
        yield
    finally:
        aside.replace(path)


def model_card(
    trainer: Any,
    *,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    tasks: str | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    datasets: Iterable[str] = (),
) -> str:
    """The card as text, metadata first."""
    args, config = trainer.args, trainer.matrix_patch.config
    adapters = hasattr(trainer.model, "peft_config")
    source = finetuned_from or base_name(trainer)
    base = hub_id(source)
    name = model_name or (args.hub_model_id or Path(str(args.output_dir)).absolute().name).rpartition("/")[2]
    records: Sequence[DataRecord] = trainer.data_records
    measured = final_evaluation(trainer)
    given_tags = [tags] if isinstance(tags, str) else list(tags or ())
    own_tags = TAGS.get(config.objective, [])
    ids = [*datasets, *(record.source for record in records if record.role == "train")]
    data = ModelCardData(
        language=language,
        license=license or license_of(source, base_commit(trainer)),
        library_name="peft" if adapters else "transformers",
        pipeline_tag=tasks or "text-generation",
        base_model=base,
        base_model_relation=None if base is None else ("adapter" if adapters else "finetune"),
        datasets=list(dict.fromkeys(found for found in map(data_id, ids) if found)) or None,
        tags=list(dict.fromkeys(["generated_from_trainer", *own_tags, *given_tags])),
        model_name=name,
        eval_results=_index_entries(measured, records) or None,
    )
    if not data.eval_results:
        data.pop("model_name", None)  # huggingface_hub wants it for the results alone
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        MARKER,
        f"# {code(name)}",
        what_it_is(source, adapters=adapters, trainer=trainer),
        "## Loss",
        loss_text(config),
        "## Training",
        training_text(trainer),
        "## Data",
        data_text(records),
        "## Results",
        results_text(trainer, measured, records),
        "## How to load it",
        loading_text(trainer, base, source, adapters=adapters),
        "## Limits",
        listed(
            [
                *([_FORMULATION] if config.objective == "mce" else []),
                "Beyond what stands under Results, nothing was measured in this run: no accuracy on tasks, no bias, no "
                "safety. What holds for the base model and the data holds here too.",
            ]
        ),
        "## Versions",
        table(("package", "version"), versions(trainer)),
        "## Citation",
        fenced((CITATION_OF_EMO if config.objective == "emo" else "") + CITATION, "bibtex"),
    ]
    return "\n\n".join(parts) + "\n"


def _index_entries(measured: dict[str, Any], records: Sequence[DataRecord]) -> list[EvalResult]:
    """The results for the card's metadata, whose format requires a data set of the hub."""
    on = next((record for record in records if record.role == "eval"), None)
    data = None if on is None else data_id(on.source)
    if on is None or data is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split=on.split,
            metric_type=name,
            metric_name=METRICS[name],
            metric_value=measured[f"eval_{name}"],
        )
        for name in ("ce_loss", "mce_loss")
        if math.isfinite(measured.get(f"eval_{name}", math.nan))
    ]
