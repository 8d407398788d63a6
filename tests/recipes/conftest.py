"""A tiny model, tokenizer and data on disk."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data import generate_problems, train_tokenizer, write_jsonl


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """data.jsonl (GSM8K's form), metamath.jsonl, held_out.jsonl, tokenizer/ and model/."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = generate_problems(60, max_number=10)
    write_jsonl(rows, folder / "data.jsonl")
    write_jsonl(generate_problems(10, split="test", max_number=10), folder / "held_out.jsonl")
    write_jsonl(
        [
            {
                "query": row["question"],
                "response": row["answer"].replace("####", "The answer is:"),
                "type": "GSM_Rephrased",
            }
            for row in rows
        ],
        folder / "metamath.jsonl",
    )
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def settings(folder, tmp_path):
    """The settings of a short run, by name; `helpers.recipes.words` turns them into a command line."""
    return {
        "model_name_or_path": folder / "model",
        "dataset": folder / "data.jsonl",
        "prompt": "plain",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "dataloader_pin_memory": "false",
    }
