"""Tokenizers of the kinds in use, small and made on the spot."""

import json

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mce_llm.data.small_tokenizer import train_tokenizer
from mce_llm.data.synthetic import generate_problems

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2: BOS and EOS are in the template, and there is no end-of-turn token but EOS.
LLAMA_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def corpus():
    problems = generate_problems(200)
    texts = [f"Question: {p['question']}\nAnswer: {p['answer']}" for p in problems]
    return [*texts, "### Instruction:\n### Response: Let's think step by step. The answer is: 8"]


def sentencepiece_like(*, add_eos=False):
    """Llama 2's arrangement: a space put before every text, byte fallback, BOS in front."""
    specials = ["<unk>", "<s>", "</s>"]
    specials += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    # Word by word and without line ends: SentencePiece never merges across them.
    words = [word for text in corpus() for word in text.replace("\n", " ").split()]
    tokenizer.train_from_iterator(words, trainer=trainer)
    loaded = json.loads(tokenizer.to_str())
    # The bytes are ordinary tokens, found by byte fallback, never by their spelling.
    loaded["added_tokens"] = loaded["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(loaded))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if add_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level_with_bos():
    """Llama 3's arrangement: byte-level, BOS in front."""
    tokenizer = train_tokenizer(corpus(), 400)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def chatml():
    tokenizer = train_tokenizer(corpus(), 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


MAKERS = {
    "byte_level": lambda: train_tokenizer(corpus(), 400),
    "byte_level_bos": byte_level_with_bos,
    "sentencepiece": sentencepiece_like,
    "sentencepiece_eos": lambda: sentencepiece_like(add_eos=True),
}


@pytest.fixture(scope="session", params=list(MAKERS))
def any_tokenizer(request):
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def byte_level():
    return MAKERS["byte_level"]()


@pytest.fixture(scope="session")
def sentencepiece():
    return sentencepiece_like()


@pytest.fixture
def chat_tokenizer():
    return chatml()


@pytest.fixture
def llama_chat_tokenizer():
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = LLAMA_CHAT
    return tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Loaders write to a cache of their own, and draw no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
