"""Fine-tune a causal language model with matrix cross-entropy beside cross-entropy.

    accelerate launch recipes/finetune.py --config recipes/quickstart_mce.yaml --output_dir runs/mce

Every setting of the YAML file can be overridden on the command line; --help lists them. The same command, started
again after an interruption, goes on from the last whole checkpoint; exit code 143 asks for that.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, set_seed

from mce_llm.configuration import ConfigurationError
from mce_llm.data import (
    KNOWN_SOURCES,
    CompletionCollator,
    DataError,
    get_prompt,
    load_examples,
    pack_examples,
    tokenize_examples,
)
from mce_llm.lm import (
    GeometryError,
    MatrixLossConfigError,
    MatrixTrainer,
    NonFiniteLossError,
    UnsupportedModelError,
)
from mce_llm.lm.training.card_facts import DataRecord
from mce_llm.lm.training.checkpoints import CheckpointError, engine_of
from mce_llm.lm.training.pickles import UnsafeCheckpointError
from mce_llm.lm.training.publishing import HubError
from mce_llm.messages import cause
from mce_llm.preemption import EXIT_CODE, PreemptedError, handle_signals
from mce_llm.processes import LaunchError, check_engine, check_processes, leave_processes, say
from mce_llm.recipes.adapters import check_adapters, with_lora
from mce_llm.recipes.configuration import parse_recipe
from mce_llm.recipes.merging import MergeError, merge_trained
from mce_llm.recipes.models import load_model, tokenizer_of
from mce_llm.recipes.outputs import OutputError, mark_finished, prepare_output, remove_earlier, write_record
from mce_llm.recipes.settings import DataArguments, ModelSourceError

# How the writers of weights (safetensors) and of optimizer states (torch) say it.
_DISK_FULL = ("No space left on device", "file write failed", "unexpected pos")


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and save, as the configuration says."""
    recipe = parse_recipe(sys.argv[1:] if argv is None else argv)
    model_settings, data_settings, training = recipe.model, recipe.data, recipe.training
    training.device  # noqa: B018 - joins the other processes
    check_processes(training.world_size)
    output = Path(str(training.output_dir))  # never None: Hugging Face puts a default
    checkpoint, stale = prepare_output(
        output,
        recipe.given,
        resume=data_settings.resume,
        overwrite=data_settings.overwrite,
        engine=engine_of(training),
    )
    set_seed(training.seed)

    # 1. Tokenizer and data.
    tokenizer = tokenizer_of(model_settings)
    check_adapters(model_settings, tokenizer, embeddings=training.matrix_embeddings)
    train_rows, train_record = tokenized(
        tokenizer, data_settings, data_settings.dataset, data_settings.dataset_split, "train"
    )
    records, eval_rows = [train_record], None
    if data_settings.eval_dataset is not None:
        eval_rows, eval_record = tokenized(
            tokenizer, data_settings, data_settings.eval_dataset, data_settings.eval_split, "eval"
        )
        records.append(eval_record)
    elif training.eval_strategy != "no":
        raise ConfigurationError("eval_strategy needs eval_dataset")

    # 2. Model, and adapters on it.
    base = load_model(model_settings, tokenizer)
    model = with_lora(base, model_settings) if model_settings.lora_r else base
    trained = sum(whole_size(p) for p in model.parameters() if p.requires_grad)
    # Adapters included. Hugging Face's count knows that two 4-bit weights lie in a byte, and nothing of ZeRO-3's shards.
    total = base.num_parameters() or sum(map(whole_size, base.parameters()))
    say(f"model: {type(model).__name__}, {total:,} parameters, {trained:,} of them trained")
    say(f"matrix loss: {training.matrix_loss}")
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    say(
        f"batch: {training.world_size * rows * steps} rows an optimizer step = {training.world_size} processes × "
        f"{rows} rows × {steps} accumulation steps"
    )

    # 3. Train. The trainer patches the model, so that its own forward computes both losses.
    try:
        trainer = MatrixTrainer(
            model=model,
            args=training,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            data_collator=CompletionCollator(tokenizer),
            processing_class=tokenizer,
        )
    except (GeometryError, MatrixLossConfigError):
        raise
    except (ValueError, ImportError) as error:  # settings that each by itself is fine
        raise ConfigurationError(" ".join(str(error).split())) from error
    check_engine(trainer.accelerator)
    trainer.data_records = records
    if PartialState().is_main_process:
        remove_earlier(stale)
        write_record(output, recipe.given)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_metrics("train", result.metrics)

    # 4. Evaluate and save: a stock checkpoint, loadable without this package.
    if eval_rows is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        say(
            json.dumps({name: round(value, 4) for name, value in metrics.items() if isinstance(value, float)})
        )
    trainer.save_state()
    if trainer.is_fsdp_enabled:  # whatever the checkpoints hold; in shards, nothing would be saved here
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(_internal_call=True)  # to the hub only when everything is here
    trainer.create_model_card()
    say(f"saved to {output}")
    if model_settings.merge_adapters:
        merge_trained(output, model_settings)
    refused = None
    if training.push_to_hub:
        try:
            trainer.push_to_hub()
            say(f"pushed to {trainer.hub_model_id}")
        except HubError as error:  # the run is none the worse for it
            refused = error
    if PartialState().is_main_process:
        mark_finished(output)
    if refused is not None:
        raise refused


def whole_size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has cut into shards."""
    return getattr(parameter, "ds_numel", parameter.numel())


def tokenized(
    tokenizer: PreTrainedTokenizerBase, settings: DataArguments, source: str, split: str, role: str
) -> tuple[object, DataRecord]:
    """Examples of one source, tokenised for completion-only training, packed if asked for; and what they are."""
    # The main process of each machine fills the cache of `datasets`; the others then read it.
    with PartialState().local_main_process_first():
        examples = load_examples(
            source,
            split=split,
            name=settings.dataset_name if role == "train" else None,
            columns=settings.column_mapping,
            format=settings.dataset_format,
            limit=settings.limit if role == "train" else settings.eval_limit,
        )
        rows, report = tokenize_examples(
            examples,
            tokenizer,
            get_prompt(settings.prompt),
            max_length=settings.max_length,
            overlong="drop" if settings.overlong == "drop" else "truncate",
        )
        say(f"{role} data: {source}\n{report}")
        if settings.packing:
            rows, packing_report = pack_examples(rows, settings.max_length)
            say(str(packing_report))
    return rows, DataRecord(
        role=role,
        source=KNOWN_SOURCES.get(source, (source, None))[0],
        split=split,
        examples=report.kept,
        prompt=settings.prompt,
        trained_tokens=report.trained_tokens,
    )


def run(argv: list[str] | None = None) -> int:
    """Run `main`, with problems as one message instead of a traceback.

    Args:
        argv: The command line; by default that of the process.

    Returns:
        The exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
    """
    try:
        with handle_signals():
            main(argv)
    except PreemptedError as stop:
        if stop.checkpoint is not None:  # all the others have come this far too
            leave_processes()
        if os.environ.get("RANK", "0") == "0":
            print(stop.message, file=sys.stderr)
        return EXIT_CODE
    except (
        CheckpointError,
        ConfigurationError,
        DataError,
        GeometryError,
        HubError,
        LaunchError,
        MatrixLossConfigError,
        MergeError,
        ModelSourceError,
        NonFiniteLossError,
        OutputError,
        UnsafeCheckpointError,
        UnsupportedModelError,
    ) as error:
        message = str(error)
    except torch.OutOfMemoryError as error:
        message = (
            f"out of memory: {cause(error)}; lower per_device_train_batch_size (total_batch_size keeps the batch as it "
            "is), or set gradient_checkpointing: true"
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        if not any(sign in str(error) for sign in _DISK_FULL):
            raise
        message = f"the disk is full: {cause(error)}; with space, the same command goes on from the last complete checkpoint"
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last complete checkpoint", file=sys.stderr)
        return 130
    else:
        leave_processes()
        return 0
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run())
