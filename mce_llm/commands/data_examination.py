"""What the examples of a recipe look like once they are tokens: lengths, labels, what is cut or twice there.

Examples are tokenised by the very code that training uses, without its limit on length, so that the lengths before
truncation are known; the limit is then applied here to the counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import date
from hashlib import blake2b
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mce_llm.data import (
    IGNORE_INDEX,
    PackingReport,
    pack_examples,
    tokenize_examples,
)
from mce_llm.data.conversations import conversation_of
from mce_llm.data.lost_text import LostText
from mce_llm.data.sources import read_examples
from mce_llm.finetuning.rows import source_of
from mce_llm.finetuning.settings import DataArguments

PERCENTILES = (50, 90, 95, 99, 100)
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class DataExamination:
    """Counts over the examples that were looked at. Lengths are in tokens.

    Attributes:
        source: Where they are from.
        format: What their records were read as.
        unused: Columns of theirs that play no part.
        ignored: Those of them that are filled, under a name that means something to training.
        lost: Texts that the chat template leaves out.
        day: What stands where the chat template would write today's date; None where it writes none.
        records: Records that were looked at.
        examples: Examples that these make: as many, or one for each trained turn.
        limited: There may be more of them.
        duplicates: Examples that are there before, word for word.
        truncated: Kept, and cut to `max_length`.
        dropped_overlong: Left out because they are longer (`overlong: drop`).
        dropped_untrained: Left out because truncation leaves nothing to train.
        kept: Rows that are trained on, before packing.
        tokens: Tokens of these.
        trained_tokens: Of these, trained.
        ends_trained: Rows whose last trained token is one at which generation will stop.
        ends: The tokens at which training ends an answer, the one that is taught first.
        lengths: Percentile → length before truncation.
        packing: What packing achieves, or None.
        rows: The rows themselves.
        keys: A fingerprint of each example, to compare data sets with.
    """

    source: str
    format: str
    unused: tuple[str, ...]
    ignored: tuple[str, ...]
    lost: tuple[LostText, ...]
    day: date | None
    records: int
    examples: int
    limited: bool
    duplicates: int
    truncated: int
    dropped_overlong: int
    dropped_untrained: int
    kept: int
    tokens: int
    trained_tokens: int
    ends_trained: int
    ends: list[int]
    lengths: dict[int, int]
    packing: PackingReport | None
    rows: datasets.Dataset
    keys: frozenset[bytes]

    @property
    def label_share(self) -> float:
        """Share of the tokens that are trained."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def record(self) -> dict[str, Any]:
        """The counts, for JSON."""
        found = {name: value for name, value in vars(self).items() if name not in ("rows", "keys", "packing")}
        found["lost"] = [asdict(text) for text in self.lost]
        found["day"] = None if self.day is None else str(self.day)
        return {**found, "label_share": self.label_share, "packed_rows": self.packing and self.packing.rows}


def examine_data(
    settings: DataArguments, tokenizer: PreTrainedTokenizerBase, *, role: str, most: int
) -> DataExamination:
    """Load, tokenise and count the examples of a recipe.

    Args:
        settings: Those of the data.
        tokenizer: The model's.
        role: train or eval.
        most: Look at this many examples at most.

    Raises:
        DataError: They cannot be loaded or used; empty questions and answers are among what cannot.
    """
    source, request = source_of(settings, role)
    wanted = request.limit
    examples, reading = read_examples(
        source, replace(request, limit=most if wanted is None else min(wanted, most))
    )
    prompt = settings.prompt_template
    encoded, report = tokenize_examples(
        examples, tokenizer, prompt, max_length=_NO_LIMIT, turns=settings.turns, place=reading.place
    )
    lengths, trained, last = _columns(encoded, settings.max_length)
    too_long = lengths > settings.max_length
    dropped = too_long if settings.overlong == "drop" else np.zeros_like(too_long)
    untrained = (trained == 0) & ~dropped
    keep = ~dropped & ~untrained
    rows = encoded.select(np.flatnonzero(keep)).map(
        lambda row: {name: row[name][: settings.max_length] for name in ("input_ids", "labels")},
        desc="Cutting to max_length",
    )
    packing = None
    if settings.packing and len(rows):
        rows, packing = pack_examples(rows, settings.max_length)
    ends = prompt.end_token_ids(tokenizer)
    keys = [blake2b("\0".join(_texts(example)).encode(), digest_size=16).digest() for example in examples]
    return DataExamination(
        source=source,
        format=reading.layout.name,
        unused=reading.unused,
        ignored=reading.ignored,
        lost=report.lost,
        day=report.day,
        records=len(examples),
        examples=report.examples,
        limited=len(examples) == most and (wanted is None or wanted > most),
        duplicates=len(keys) - len(set(keys)),
        truncated=int((too_long & keep).sum()),
        dropped_overlong=int(dropped.sum()),
        dropped_untrained=int(untrained.sum()),
        kept=int(keep.sum()),
        tokens=int(np.minimum(lengths, settings.max_length)[keep].sum()),
        trained_tokens=int(trained[keep].sum()),
        ends_trained=int(np.isin(last[keep], ends).sum()),
        ends=ends,
        lengths={q: int(np.percentile(lengths, q, method="higher")) for q in PERCENTILES},
        packing=packing,
        rows=rows,
        keys=frozenset(keys),
    )


def _columns(encoded: datasets.Dataset, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row: length before truncation, trained tokens after it, and the last label after it."""
    lengths, trained, last = [], [], []
    for labels in encoded.with_format("numpy")["labels"]:
        lengths.append(len(labels))
        kept = labels[:max_length]
        trained.append(int((kept[1:] != IGNORE_INDEX).sum()))  # the first label is never used
        last.append(int(kept[-1]))
    return np.array(lengths), np.array(trained), np.array(last)


def _texts(example: dict[str, Any]) -> tuple[str, str]:
    """(what is asked, what is answered)."""
    if "messages" not in example:
        return str(example["question"]), str(example["response"])
    sides = {True: [], False: []}  # type: dict[bool, list[str]]
    for message in conversation_of(example).messages:
        said = {name: value for name, value in message.items() if name != "role" and value}
        sides[message["role"] == "assistant"].append(
            str(message["content"]) if list(said) == ["content"] else json.dumps(said, sort_keys=True)
        )
    return "\n".join(sides[False]), "\n".join(sides[True])
