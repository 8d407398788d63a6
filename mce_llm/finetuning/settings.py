"""The settings of a recipe's model and data, checked when they are made.

How a file and a command line are read into them is in `mce_llm.running.settings`; the settings of training are
`MatrixTrainingArguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast

from mce_llm.data import PROMPTS, DataError, get_prompt
from mce_llm.data.chat import TURNS, Turns
from mce_llm.data.formats import FORMATS, ROLES
from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import ConfigurationError, mapping_of, raise_all


class ModelSourceError(MceLlmError, RuntimeError):
    """What should be the model cannot be used; the message says why and what to do."""


QUANTIZATIONS = ("4bit", "8bit")


@dataclass
class ModelArguments:
    """Which model is trained, and how much of it."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or directory of the model to fine-tune."}
    )
    model_revision: str | None = field(
        default=None,
        metadata={
            "help": "Branch, tag or commit of a model from the hub, and of its own tokenizer; default: main."
        },
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch: settings of a transformers config with its model_type, as a mapping in "
            "YAML or JSON on the command line; vocab_size defaults to the tokenizer's."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer, where it is not the model's own."}
    )
    tokenizer_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of tokenizer_name_or_path; default: main."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "Chat template in place of the tokenizer's, saved with it: a .jinja file, the text itself, or the name "
            "of one of several that the tokenizer has."
        },
    )
    resize_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Give the model rows for ids of the tokenizer that it has no embeddings for; they begin at the mean of "
            "the others. With lora_r, lora_modules_to_save must name embeddings and head."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the weights: float32, bfloat16, float16, or auto for the stored one."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, …; transformers chooses by default."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the Python code that a hub repository brings. Off unless asked for."},
    )
    quantization: str | None = field(
        default=None,
        metadata={
            "help": "4bit (nf4, double quantisation: QLoRA) or 8bit: keep the frozen weights under LoRA quantised by "
            "bitsandbytes; embeddings, output head and lora_modules_to_save stay in dtype."
        },
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all the weights."})
    lora_alpha: int = field(
        default=16, metadata={"help": "Scale of LoRA adapters: they count lora_alpha / lora_r times."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of LoRA adapters."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={
            "help": "Layers that get an adapter: all-linear (the output head left out), names separated by commas, or a "
            "list in YAML, or one regular expression that matches whole names."
        },
    )
    lora_modules_to_save: str | None = field(
        default=None,
        metadata={
            "help": "Layers that are trained whole beside the adapters and saved with them, such as lm_head, separated "
            "by commas, or a list in YAML."
        },
    )
    use_dora: bool = field(
        default=False,
        metadata={"help": "DoRA: train the length of each output's weight vector apart from its direction."},
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "rsLoRA: adapters count lora_alpha / √lora_r times."}
    )
    merge_adapters: bool = field(
        default=False,
        metadata={
            "help": "At the end, also save the stock model with the adapters merged into its weights, in "
            "output_dir/merged."
        },
    )

    def __post_init__(self) -> None:
        """Check the combination.

        Raises:
            ConfigurationError: Neither or both sources of a model, or unusable values.
        """
        problems = []
        if (self.model_name_or_path is None) == (self.model_config is None):
            problems.append(
                "give exactly one of model_name_or_path (fine-tune) and model_config (from scratch)"
            )
        if self.model_config is not None and self.tokenizer_name_or_path is None:
            problems.append("a model from scratch needs tokenizer_name_or_path")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            problems.append(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        problems += [*self._source_problems(), *self._adapter_problems()]
        self.config_settings = mapping_of("model_config", self.model_config, problems)
        if self.model_config is not None and not problems and "model_type" not in self.config_settings:
            problems.append("model_config must name its model_type, such as llama")
        raise_all(problems)

    def _source_problems(self) -> list[str]:
        """What is wrong with revisions, and with what is changed about the vocabulary."""
        problems = []
        if self.model_revision is not None and self.model_name_or_path is None:
            problems.append(
                "model_revision without model_name_or_path: it is a revision of a model from the hub"
            )
        if self.tokenizer_revision is not None and self.tokenizer_name_or_path is None:
            problems.append(
                "tokenizer_revision without tokenizer_name_or_path: the tokenizer is the model's own, at model_revision"
            )
        for source, revision in (
            (self.model_name_or_path, "model_revision"),
            (self.tokenizer_name_or_path, "tokenizer_revision"),
        ):
            asked = getattr(self, revision)
            if source is not None and asked is not None and Path(source).expanduser().exists():
                problems.append(
                    f"{revision} {asked!r}: {source} is on this machine, where there are no revisions; give a hub id, or "
                    f"leave {revision} out"
                )
        if self.resize_embeddings and self.model_config is not None:
            problems.append(
                "resize_embeddings with model_config: set vocab_size in model_config, or leave that out"
            )
        return problems

    def revision_of_tokenizer(self) -> str | None:
        """The branch, tag or commit that the tokenizer is read at; None for the main branch."""
        own = self.tokenizer_name_or_path in (None, self.model_name_or_path)
        return self.tokenizer_revision or (self.model_revision if own else None)

    def _adapter_problems(self) -> list[str]:
        """What is wrong with the adapters and the quantisation under them."""
        problems = []
        if self.lora_r < 0:
            problems.append(f"lora_r must be 0 (no adapters) or a rank, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            problems.append(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")
        if self.lora_alpha <= 0:
            problems.append(f"lora_alpha must be positive, got {self.lora_alpha}; twice lora_r is usual")
        if self.quantization not in (None, *QUANTIZATIONS):
            hint = nearest_hint(str(self.quantization), QUANTIZATIONS)
            problems.append(
                f"quantization must be 4bit or 8bit, or left out, got {self.quantization!r}{hint}"
            )
        elif self.quantization is not None and self.dtype == "auto":
            problems.append(
                "quantization needs a dtype for the products and for what stays unquantised: bfloat16 (float16 on a GPU "
                "that lacks it)"
            )
        if self.lora_r == 0:
            dependent = [
                item.name
                for item in fields(self)
                if (item.name.startswith("lora_") and item.name != "lora_r")
                or item.name in ("use_dora", "use_rslora", "quantization", "merge_adapters")
            ]
            idle = [name for name in dependent if getattr(self, name) != getattr(type(self), name)]
            if idle:
                problems.append(
                    f"{', '.join(idle)} without lora_r: set lora_r to the rank of the adapters (16 is usual), or leave "
                    f"{'it' if len(idle) == 1 else 'them'} out to train all the weights"
                )
        elif self.model_config is not None:
            problems.append(
                "lora_r with model_config: adapters would train beside random weights that are not saved; leave lora_r "
                "out, or give model_name_or_path"
            )
        return problems


@dataclass
class DataArguments:
    """What the model is trained on."""

    dataset: str = field(
        metadata={
            "help": "gsm8k, metamathqa, math, a hub id, a directory, a local json, jsonl, csv, tsv (or these as gz, bz2, xz), "
            "parquet or arrow file, or a pattern such as data/*.jsonl."
        }
    )
    dataset_split: str = field(
        default="train",
        metadata={"help": "Split to train on, or a slice of it: train[:75%%]; a file is train."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a hub data set."}
    )
    dataset_format: str = field(
        default="auto",
        metadata={"help": f"auto, or what the records look like: {', '.join(FORMATS)}."},
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "Mapping role → column for other records: {question: …, response: …}; null leaves a role out. Roles: "
            f"{', '.join(ROLES)}."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Train on this many examples at most."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Data for the held-out loss, read like the training data."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of eval_dataset, or a slice of it: train[75%%:]; by default test, or all where there is one split."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Configuration of eval_dataset; that of dataset where both are the same."},
    )
    eval_dataset_revision: str | None = field(
        default=None, metadata={"help": "Revision of eval_dataset; that of dataset where both are the same."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate on this many examples at most."})
    prompt: str = field(default="metamath", metadata={"help": f"Prompt template: {', '.join(PROMPTS)}."})
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "System message of the prompt chat, for conversations that have none of their own, and for pairs."
        },
    )
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "Mapping of what the chat template is given besides: {enable_thinking: false}."},
    )
    train_turns: str = field(
        default="all",
        metadata={
            "help": "What a conversation trains: all assistant turns in one example, the last alone, or each in an example of "
            "its own (for templates that rewrite earlier turns)."
        },
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise; one by default."}
    )
    max_length: int = field(default=512, metadata={"help": "The most tokens an example may have."})
    overlong: str = field(
        default="truncate", metadata={"help": "What happens to longer examples: truncate or drop."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Pack examples into rows of max_length; they cannot see each other."}
    )
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows in an optimizer step over all processes; gradient_accumulation_steps follows from it."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on from the last checkpoint in output_dir, if there is one."}
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Remove a finished run, or with resume false the checkpoints, that output_dir holds."
        },
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values.
        """
        problems: list[str] = []
        if self.prompt not in PROMPTS:
            problems.append(f"unknown prompt {self.prompt!r}{nearest_hint(self.prompt, PROMPTS)}")
        if self.overlong not in ("truncate", "drop"):
            problems.append(f"overlong must be truncate or drop, got {self.overlong!r}")
        if self.dataset_format not in ("auto", *FORMATS):
            problems.append(
                f"dataset_format must be auto or one of {', '.join(FORMATS)}, got {self.dataset_format!r}"
                f"{nearest_hint(self.dataset_format, FORMATS)}"
            )
        if self.train_turns not in TURNS:
            problems.append(f"train_turns must be one of {', '.join(TURNS)}, got {self.train_turns!r}")
        if self.eval_dataset is None:
            dependent = ("eval_split", "eval_dataset_name", "eval_dataset_revision", "eval_limit")
            problems += [
                f"{name} without eval_dataset" for name in dependent if getattr(self, name) is not None
            ]
        for name in ("max_length", "limit", "eval_limit", "total_batch_size", "dataset_num_proc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, got {value}")
        self.column_mapping = mapping_of("columns", self.columns, problems) or None
        template_arguments = mapping_of("chat_template_kwargs", self.chat_template_kwargs, problems)
        raise_all(problems)
        self.turns = cast(Turns, self.train_turns)
        try:
            self.prompt_template = replace(
                get_prompt(self.prompt), system=self.system_prompt, template_arguments=template_arguments
            )
        except DataError as error:
            raise ConfigurationError(str(error)) from error
