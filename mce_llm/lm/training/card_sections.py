"""The sections of the model card as Markdown, from the facts of one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.training.card_facts import METRICS, DataRecord, base_commit, shown
from mce_llm.lm.training.card_text import (
    LOSS_TEXT,
    NAMES,
    SETTING_MEANINGS,
    code,
    fenced,
    listed,
    number,
    table,
)

_ENGINES = {
    "NO": "one process",
    "MULTI_CPU": "DDP on CPUs",
    "MULTI_GPU": "DDP",
    "FSDP": "FSDP",
    "DEEPSPEED": "DeepSpeed",
}


def what_it_is(source: str | None, *, adapters: bool, trainer: Any) -> str:
    """One sentence: the base model, its architecture and the loss."""
    architecture = trainer.matrix_patch.model.config.model_type
    kind = "Adapters for" if adapters else "A fine-tuned version of"
    subject = (
        f"{kind} {code(shown(source))}" if source else "A language model that was not loaded from a named one"
    )
    if (commit := base_commit(trainer)) is not None:
        subject += f" at commit {code(commit)}"
    loss = NAMES[trainer.matrix_patch.config.objective]
    return f"{subject} (architecture {code(architecture)}), trained with {loss} by mce-llm."


def loss_text(config: MatrixLossConfig) -> str:
    """The formula of the loss, and every setting as a table."""
    rows = [
        (code(name), code(json.dumps(value)), SETTING_MEANINGS[name])
        for name, value in config.to_dict().items()
    ]
    head = LOSS_TEXT[config.kind if config.objective == "mce" else config.objective]
    return f"{head}\n\n{table(('setting', 'value', 'meaning'), rows)}"


def training_text(trainer: Any) -> str:
    """The settings of the training, as a table."""
    args, state = trainer.args, trainer.state
    engine = trainer.accelerator.distributed_type.value
    processes, rows, steps = (
        args.world_size,
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
    )
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "off"
    facts = [
        ("optimizer steps", f"{state.global_step} of {state.max_steps}"),
        ("epochs", number(state.epoch or 0.0)),
        (
            "batch of an optimizer step",
            f"{processes * rows * steps} rows = {processes} processes × {rows} rows × {steps} accumulation steps",
        ),
        ("engine", _ENGINES.get(engine, engine)),
        ("optimizer", f"{getattr(args.optim, 'value', args.optim)} {args.optim_args or ''}".strip()),
        (
            "learning rate",
            f"{number(args.learning_rate)}, schedule {schedule}, warm-up {args.get_warmup_steps(state.max_steps)} steps",
        ),
        ("weight decay", number(args.weight_decay)),
        ("gradient norm limited to", number(args.max_grad_norm) if args.max_grad_norm else "no limit"),
        ("dtype of the weights", str(next(trainer.model.parameters()).dtype).removeprefix("torch.")),
        ("mixed precision", precision),
        ("seed", str(args.seed)),
    ]
    if hasattr(trainer.model, "peft_config"):
        adapter = next(iter(trainer.model.peft_config.values()))
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        facts.append(("adapters", f"{kind}, rank {getattr(adapter, 'r', '–')}"))
        facts.append(("lora_alpha", str(getattr(adapter, "lora_alpha", "–"))))
    text = table(("", ""), [(name, code(value)) for name, value in facts])
    if trainer.run_settings is None or not (earlier := trainer.run_settings.history()):
        return text
    return (
        f"{text}\n\nThe settings here are the last ones; before, they were:\n\n{listed(map(code, earlier))}"
    )


def data_text(records: Sequence[DataRecord]) -> str:
    """The data sets, as a table."""
    if not records:
        return "Not recorded."
    head = ("use", "source", "split", "examples", "trained tokens", "prompt")
    return table(
        head,
        [
            (
                record.role,
                code(shown(record.source)),
                code(record.split) if record.split else "–",
                "–" if record.examples is None else f"{record.examples:,}",
                "–" if record.trained_tokens is None else f"{record.trained_tokens:,}",
                code(record.prompt) if record.prompt else "–",
            )
            for record in records
        ],
    )


def results_text(trainer: Any, measured: dict[str, Any], records: Sequence[DataRecord]) -> str:
    """The last training losses and the evaluation of the saved weights."""
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), None)
    texts = []
    if last is not None:
        seen = {name: last[name] for name in METRICS if name in last and name.endswith("loss")}
        texts.append(
            f"Training, mean over the logging window that ended at step {last.get('step')}: "
            + ", ".join(f"{name} {number(value)}" for name, value in seen.items())
            + "."
        )
    if not measured:
        return "\n\n".join([*texts, "The saved weights were not evaluated in this run."])
    on = next((record for record in records if record.role == "eval"), None)
    where = (
        "the evaluation data"
        if on is None
        else code(shown(on.source) + (f" ({on.split})" if on.split else ""))
    )
    rows = [
        (code(name), number(value), METRICS.get(name.split("_", 1)[1], ""))
        for name, value in measured.items()
        if name.startswith("eval_")
        and isinstance(value, (int, float))
        and not name.endswith(("_runtime", "_second"))
    ]
    texts.append(f"Evaluation on {where} after step {measured['step']}:")
    return "\n\n".join([*texts, table(("metric", "value", "what it is"), rows)])


def loading_text(trainer: Any, base: str | None, source: str | None, *, adapters: bool) -> str:
    """Code that loads it without this package."""
    place = json.dumps(trainer.args.hub_model_id or "path/to/this/folder")
    if not adapters:
        return loading_code(trainer.args.hub_model_id or "path/to/this/folder")
    root = json.dumps(base or f"path/to/{shown(source or '')}")
    if base is not None and (commit := base_commit(trainer)) is not None:
        root += f", revision={json.dumps(commit)}"
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({root})",
        f"model = PeftModel.from_pretrained(base, {place})",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
    ]
    return f"{fenced(chr(10).join(lines), 'python')}\n\nNothing of mce-llm is needed."


def loading_code(place: str) -> str:
    """Code that loads a whole model from a folder or the hub."""
    quoted = json.dumps(place)
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({quoted})",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
    ]
    return f"{fenced(chr(10).join(lines), 'python')}\n\nNothing of mce-llm is needed."
