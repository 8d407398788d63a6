"""A small model and questions with reference solutions for it to be scored on."""

from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data import train_tokenizer, write_jsonl


def small_model(folder):
    """A directory with a model and its tokenizer, and a file of questions with reference solutions."""
    rows = [{"question": f"What is {n} + 2?", "answer": f"It is {n + 2}.\n#### {n + 2}"} for n in range(10)]
    data = write_jsonl(rows, folder / "test.jsonl")
    tokenizer = train_tokenizer([row["question"] + row["answer"] for row in rows], vocab_size=300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model", data
