"""Names of settings in other tools (axolotl, LLaMA-Factory, TRL, torchtune, earlier transformers), and what to set here.

For the message about a name that is no setting here; nothing is translated in silence.
"""

from __future__ import annotations

# Ours → what others call it.
_RENAMED = {
    "model_name_or_path": "base_model model_name model checkpointer",
    "model_revision": "revision_of_model",
    "tokenizer_name_or_path": "tokenizer tokenizer_name tokenizer_config tokenizer_path",
    "dtype": "torch_dtype model_dtype",
    "attn_implementation": "flash_attn flash_attention sdp_attention xformers_attention use_flash_attention_2",
    "quantization": "quantization_bit",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_target target_modules lora_attn_modules",
    "lora_modules_to_save": "additional_target modules_to_save",
    "resize_embeddings": "resize_vocab resize_token_embeddings resize_token_embeddings_to_32x",
    "chat_template": "chat_template_path chat_template_jinja",
    "dataset": "datasets dataset_path data_path train_file",
    "dataset_name": "dataset_config dataset_config_name",
    "dataset_split": "dataset_train_split",
    "eval_dataset": "test_datasets validation_file",
    "eval_split": "dataset_test_split",
    "dataset_num_proc": "preprocessing_num_workers dataset_processes",
    "system_prompt": "default_system system",
    "limit": "max_samples max_train_samples",
    "eval_limit": "max_eval_samples",
    "max_length": "cutoff_len sequence_len max_seq_length max_seq_len model_max_length block_size",
    "packing": "sample_packing neat_packing packed",
    "overlong": "truncation_mode excess_length_strategy",
    "per_device_train_batch_size": "micro_batch_size batch_size train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_checkpointing": "enable_activation_checkpointing",
    "num_train_epochs": "num_epochs epochs",
    "max_steps": "max_steps_per_epoch",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "optim": "optimizer",
    "max_grad_norm": "clip_grad_norm",
    "eval_strategy": "evaluation_strategy",
    "logging_steps": "log_every_n_steps",
    "report_to": "metric_logger",
    "torch_compile": "compile",
    "overwrite": "overwrite_output_dir",
    "use_cpu": "no_cuda",
}
# What has another form here: advice that follows "is no setting here: ".
_OTHERWISE = {
    "set model_revision for the model, dataset_revision for the data": "revision",
    "set quantization: 4bit": "load_in_4bit",
    "set quantization: 8bit": "load_in_8bit",
    "set lora_r to the rank of the adapters (16 is usual); 0 trains all the weights": (
        "use_peft finetuning_type adapter peft_type train_type tuner_type"
    ),
    "set lora_target_modules: all-linear, which is the default": "lora_target_linear",
    "merge the adapters first (mce-llm merge), and give the merged model as model_name_or_path": (
        "adapter_name_or_path lora_model_dir"
    ),
    "hold examples out with slices, such as dataset_split: train[:95%], eval_dataset: (the same), eval_split: train[95%:]": (
        "val_set_size val_size split_dataset_ratio"
    ),
    "set chat_template for the tokenizer's own form of chats, or prompt for a template of this package": (
        "template prompt_template conversation"
    ),
    "add the tokens in Python, save the tokenizer with save_pretrained, and give it as tokenizer_name_or_path, with "
    "resize_embeddings: true": "special_tokens tokens add_tokens add_special_tokens additional_special_tokens",
    "save a tokenizer that has it with save_pretrained, and give it as tokenizer_name_or_path": "eos_token pad_token",
    "leave it out: the completion is trained, and not the prompt": (
        "train_on_inputs train_on_prompt completion_only_loss assistant_only_loss roles_to_train train_on_eos"
    ),
    "map the columns, as in columns: {question: …, response: …}": "dataset_text_field",
    "leave it out: examples are packed by best fit": "packing_strategy",
    "mark turns in the data: weight: 0 leaves one out": "loss_scale",
    "leave it out: examples are tokenised when a run starts": (
        "overwrite_cache dataset_prepared_path tokenized_path"
    ),
    "set loss: label_smoothing, and smoothing to the share": "label_smoothing label_smoothing_epsilon",
    "set loss: ce, label_smoothing, emo or mce": "loss_type loss_function loss_fn",
    "set train_turns: last": "mask_history train_on_last_turn",
    "set chat_template_kwargs: {enable_thinking: false} (or true)": "enable_thinking",
    "set warmup_steps, which below 1 is a share of all steps, such as 0.03": "warmup_ratio",
    "set eval_strategy: steps and eval_steps, which below 1 is a share of all steps": "evals_per_epoch",
    "set save_strategy: steps and save_steps, which below 1 is a share of all steps": "saves_per_epoch",
    "set train_sampling_strategy: group_by_length": "group_by_length",
    "set report_to: wandb, and WANDB_PROJECT in the environment": "wandb_project wandb_entity",
    "set report_to: wandb, and run_name": "wandb_name wandb_run_name",
    "leave it out: weights are saved as safetensors": "save_safetensors",
    "leave it out: curves of TensorBoard are in runs/ in output_dir": "logging_dir",
    "leave it out: this recipe does supervised fine-tuning": "stage",
}
FOREIGN: dict[str, str] = {
    **{name: f"set {ours}" for ours, names in _RENAMED.items() for name in names.split()},
    **{name: advice for advice, names in _OTHERWISE.items() for name in names.split()},
}
