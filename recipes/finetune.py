"""Fine-tune a causal language model with matrix cross-entropy beside cross-entropy.

    accelerate launch recipes/finetune.py --config recipes/quickstart_mce.yaml --output_dir runs/mce

Every setting of the YAML file can be overridden on the command line; --help lists them. The same command, started
again after an interruption, goes on from the last whole checkpoint; exit code 143 asks for that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from mce_llm.data import CompletionCollator
from mce_llm.finetuning.adapters import check_adapters, with_lora
from mce_llm.finetuning.checks import check_losses, check_tokenizer, say_warnings
from mce_llm.finetuning.configuration import parse_recipe
from mce_llm.finetuning.ending import add_stop_ids, names_of_ids
from mce_llm.finetuning.merging import merge_trained
from mce_llm.finetuning.models import load_model, tokenizer_of, whole_size, without_weights
from mce_llm.finetuning.next_steps import evaluation_command
from mce_llm.finetuning.optimization import check_optimization
from mce_llm.finetuning.outputs import FolderCallback, compared, mark_finished, prepare_output
from mce_llm.finetuning.resuming import (
    check_base,
    check_data,
    facts_of_base,
    facts_of_data,
    settings_of_recipe,
)
from mce_llm.finetuning.rows import tokenized
from mce_llm.lm import GeometryError, MatrixLossConfigError, MatrixTrainer, check_model
from mce_llm.lm.training.checkpoints import engine_of
from mce_llm.lm.training.publishing import HubError
from mce_llm.running.launching import run_script
from mce_llm.running.processes import check_engine, check_processes, say
from mce_llm.running.settings import ConfigurationError


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and save, as the configuration says."""
    recipe = parse_recipe(sys.argv[1:] if argv is None else argv)
    model_settings, data_settings, training = recipe.model, recipe.data, recipe.training
    training.device  # noqa: B018 - joins the other processes
    check_processes(training.world_size, tensor_parallel=True)
    output = Path(str(training.output_dir))  # never None: Hugging Face puts a default
    checkpoint, stale = prepare_output(
        output,
        resume=data_settings.resume,
        overwrite=data_settings.overwrite,
        engine=engine_of(training),
    )
    continuation = compared(checkpoint, recipe)
    check_losses(training)
    set_seed(training.seed)

    # 1. Tokenizer and data.
    tokenizer = tokenizer_of(model_settings)
    bare = without_weights(model_settings, tokenizer)
    positions = check_tokenizer(model_settings, tokenizer, bare)
    check_adapters(model_settings, tokenizer, embeddings=training.matrix_embeddings)
    check_optimization(training, bare)
    if training.model_check and bare is not None:  # one whose code comes with its weights, the trainer checks
        check_model(bare, packing=data_settings.packing, attention=model_settings.attn_implementation)
    train_rows, train_record = tokenized(tokenizer, data_settings, "train", positions=positions)
    check_data(continuation, train_record)
    records, eval_rows = [train_record], None
    if data_settings.eval_dataset is not None:
        eval_rows, eval_record = tokenized(tokenizer, data_settings, "eval", positions=positions)
        records.append(eval_record)
    elif training.eval_strategy != "no":
        raise ConfigurationError("eval_strategy needs eval_dataset")

    # 2. Model, and adapters on it.
    base = load_model(model_settings, tokenizer)
    if added := add_stop_ids(base, tokenizer, data_settings.prompt_template):
        say(
            f"answers end in {names_of_ids(tokenizer, added)}: added to generation_config.json, where generation stops"
        )
    base_facts = facts_of_base(base) if model_settings.lora_r else {}
    if base_facts:
        check_base(continuation, base_facts, model_settings.model_name_or_path)
    model = with_lora(base, model_settings) if model_settings.lora_r else base
    trained = sum(whole_size(p) for p in model.parameters() if p.requires_grad)
    # Adapters included. Hugging Face's count knows that two 4-bit weights lie in a byte, and nothing of ZeRO-3's shards.
    total = base.num_parameters() or sum(map(whole_size, base.parameters()))
    say(f"model: {type(model).__name__}, {total:,} parameters, {trained:,} of them trained")
    say(f"loss: {training.matrix_loss}")
    if recipe.precision_note:
        say(recipe.precision_note)
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    say(
        f"batch: {training.world_size * rows * steps} rows an optimizer step = {training.world_size} processes × "
        f"{rows} rows × {steps} accumulation steps"
    )
    say_warnings(model, training, rows=len(train_rows))

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
    trainer.all_settings = settings_of_recipe(recipe) | facts_of_data(train_record) | base_facts
    trainer.continuation = continuation
    trainer.add_callback(FolderCallback(trainer, recipe.given, stale))
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
    say(f"accuracy on GSM8K: {evaluation_command(output, data_settings)}")
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


def run(argv: list[str] | None = None) -> int:
    """Run `main`, with problems as one message instead of a traceback; the exit codes are those of `run_script`."""
    return run_script(
        main,
        argv,
        goes_on_from="the last complete checkpoint",
        needs_less_memory="lower per_device_train_batch_size (total_batch_size keeps the batch as it is), or set "
        "gradient_checkpointing: true",
        fewer_workers="dataloader_num_workers",
    )


if __name__ == "__main__":
    sys.exit(run())
