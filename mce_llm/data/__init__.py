"""Data for fine-tuning: sources, prompts, tokenisation, packing, collation, and made-up arithmetic.

Training and evaluation share the prompt templates here. Losses and answer checking live elsewhere. Names are imported when
they are first asked for, so that `boxed` needs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mce_llm.running.lazy_names import lazy_names

if TYPE_CHECKING:
    from mce_llm.data.collation import CompletionCollator
    from mce_llm.data.errors import DataError
    from mce_llm.data.packing import PackingReport, pack_examples
    from mce_llm.data.prompts import IGNORE_INDEX, PROMPTS, PromptTemplate, get_prompt
    from mce_llm.data.records import write_jsonl
    from mce_llm.data.small_tokenizer import train_tokenizer
    from mce_llm.data.sources import KNOWN_SOURCES, load_examples
    from mce_llm.data.synthetic import ArithmeticProblems, generate_problems
    from mce_llm.data.tokenization import TokenizationReport, tokenize_examples
    from mce_llm.data.tokenizer_loading import load_tokenizer

_MODULES = {
    "ArithmeticProblems": "synthetic",
    "CompletionCollator": "collation",
    "DataError": "errors",
    "IGNORE_INDEX": "prompts",
    "KNOWN_SOURCES": "sources",
    "PROMPTS": "prompts",
    "PackingReport": "packing",
    "PromptTemplate": "prompts",
    "TokenizationReport": "tokenization",
    "generate_problems": "synthetic",
    "get_prompt": "prompts",
    "load_examples": "sources",
    "load_tokenizer": "tokenizer_loading",
    "pack_examples": "packing",
    "tokenize_examples": "tokenization",
    "train_tokenizer": "small_tokenizer",
    "write_jsonl": "records",
}

__all__ = [
    "IGNORE_INDEX",
    "KNOWN_SOURCES",
    "PROMPTS",
    "ArithmeticProblems",
    "CompletionCollator",
    "DataError",
    "PackingReport",
    "PromptTemplate",
    "TokenizationReport",
    "generate_problems",
    "get_prompt",
    "load_examples",
    "load_tokenizer",
    "pack_examples",
    "tokenize_examples",
    "train_tokenizer",
    "write_jsonl",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
