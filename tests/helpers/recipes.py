"""Ways to run the fine-tuning recipe, and to read what it left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers.scripts import ROOT
from helpers.waiting import HANG
from mce_llm.data import train_tokenizer

RECIPES = ROOT / "recipes"


def save_tiny_model(folder, rows):
    """A tokenizer trained on the rows (GSM8K's form) in tokenizer/, and with a model of 14,800 weights in model/."""
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)
    torch.manual_seed(0)
    config = LlamaConfig(
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
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for name in ("model", "tokenizer"):
        tokenizer.save_pretrained(folder / name)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_chat_model(folder, target):
    """The tiny model as a base model with ChatML: turns end in <|im_end|>, of which its settings know nothing."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def words(settings, **changed):
    merged = {**settings, **changed}
    return [word for name, value in merged.items() if value is not None for word in (f"--{name}", str(value))]


def logged(output, name):
    history = json.loads(Path(output, "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def contents(folder):
    """Every file below a folder and what is in it, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def run_script(arguments, launcher=(), script=RECIPES / "finetune.py", timeout=HANG, **environment):
    """`python [launcher] recipes/finetune.py arguments` in a process of its own."""
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        timeout=timeout,
        check=False,
    )
