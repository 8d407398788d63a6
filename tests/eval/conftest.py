"""Tiny random models with a trained tiny tokenizer, made on the spot and saved to disk."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mce_llm.data import train_tokenizer, write_jsonl

QUESTIONS = [
    {
        "question": f"Tom has {n} apples and {'very ' * (n % 5)}quickly buys {n + 2}. How many?",
        "answer": str(2 * n + 2),
    }
    for n in range(11)
]


@pytest.fixture(scope="session")
def tokenizer():
    texts = [row["question"] for row in QUESTIONS] + [
        "Question: Answer: #### ### Instruction: Response: The answer is"
    ]
    return train_tokenizer(texts * 3, vocab_size=320)


def random_model(kind, vocabulary):
    """Return a random model whose answer depends on the whole prompt: its weights are larger than is usual."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5
        )
        return GPT2LMHeadModel(config).eval()
    config_class, model_class, options = {
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    }[kind]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        **options,
    )
    return model_class(config).eval()


@pytest.fixture(scope="session")
def question_rows():
    return QUESTIONS


@pytest.fixture(scope="session")
def make_model():
    return random_model


@pytest.fixture(scope="session")
def llama(tokenizer):
    return random_model("llama", len(tokenizer))


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, llama, tokenizer):
    path = tmp_path_factory.mktemp("model")
    llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    return write_jsonl(
        [
            {"question": row["question"], "answer": f"It is <<1+1=2>>so.\n#### {row['answer']}"}
            for row in QUESTIONS
        ],
        tmp_path_factory.mktemp("data") / "questions.jsonl",
    )
