"""The real vLLM, on a CPU where there is no GPU, against transformers: ids, ends, samples, adapters, and runs that are killed.

vLLM wants an environment of its own; eval/README.md says how these are run there. Elsewhere they are skipped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.scripts import ROOT
from mce_llm.eval.engines.backends import TransformersBackend, open_backend
from mce_llm.eval.engines.decoding import Decoding
from mce_llm.eval.errors import EvaluationError, GenerationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
from mce_llm.eval.loading import load_model_and_tokenizer

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed, which wants an environment of its own", allow_module_level=True)

# Its own deprecations, and those of what it uses, are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_CI_ENV", "1")  # without minutes of compilation on a CPU

SCRIPT = ROOT / "eval" / "gsm8k.py"
TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A random model with heads of a size that vLLM has kernels for."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("vllm-model")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, folder):
    """An adapter that changes the answers, rank-stabilised and of a rank that vLLM has no kernel of its own for."""
    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(folder)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=12, lora_alpha=20, use_rslora=True, target_modules=layers))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    path = tmp_path_factory.mktemp("vllm-adapter")
    adapted.save_pretrained(path)
    return path


def opened(model, **options):
    config = Gsm8kConfig(model=str(model), output="unused", backend="vllm", dtype="float32", **options)
    return open_backend(config, PartialState())


@pytest.fixture(scope="module")
def engine(folder):
    return opened(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return TransformersBackend(*load_model_and_tokenizer(str(folder), "float32"), "auto")


@pytest.fixture(scope="module")
def prompts(tokenizer, question_rows):
    return [tokenizer(row["question"])["input_ids"] for row in question_rows]


def answered(backend, prompts, decoding, *, end_token_ids=(0,), batch_size=4, indices=None, done=()):
    found = backend.answers(
        prompts,
        decoding,
        indices=range(len(prompts)) if indices is None else indices,
        done=done,
        end_token_ids=list(end_token_ids),
        batch_size=batch_size,
    )
    return sorted(found, key=lambda answer: (answer.index, answer.sample))


def frequent(answers, tokenizer):
    """A token that ends some of the answers early, and two strings out of their middles."""
    texts = [answer.text for answer in answers]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return ids[0][5], (texts[1][7:12], texts[2][10:13])


def test_answers_are_those_of_transformers(engine, reference, prompts):
    decoding = Decoding(max_new_tokens=TOKENS)
    expected = answered(reference, prompts, decoding)
    assert answered(engine, prompts, decoding) == expected
    assert len({answer.text for answer in expected}) == len(prompts)


def test_end_ids_and_stop_strings_cut_at_the_same_place(engine, reference, prompts, tokenizer):
    whole = answered(reference, prompts, Decoding(max_new_tokens=TOKENS))
    token, strings = frequent(whole, tokenizer)
    decoding = Decoding(max_new_tokens=TOKENS, stop=strings)
    expected = answered(reference, prompts, decoding, end_token_ids=[0, token])
    assert answered(engine, prompts, decoding, end_token_ids=[0, token]) == expected
    assert {answer.finished for answer in expected} >= {"stop", "eos"}
    # Nothing is left in the engine of what was ended early.
    assert not engine._engine.has_unfinished_requests()


def test_a_stop_string_of_any_length_and_place(engine, reference, prompts):
    text = answered(reference, prompts[:1], Decoding(max_new_tokens=TOKENS))[0].text
    stops = [text[start : start + length] for start in range(1, 14, 4) for length in (1, 3, 8)]
    for stop in stops:
        decoding = Decoding(max_new_tokens=TOKENS, stop=(stop,))
        assert answered(engine, prompts[:1], decoding) == answered(reference, prompts[:1], decoding), stop


def test_the_models_own_end_ids_count_only_where_they_are_given(engine, reference, prompts, tokenizer):
    whole = answered(reference, prompts[:3], Decoding(max_new_tokens=TOKENS), end_token_ids=[1])
    assert answered(engine, prompts[:3], Decoding(max_new_tokens=TOKENS), end_token_ids=[1]) == whole


def test_samples_depend_on_nothing_but_their_own_number(engine, prompts):
    decoding = Decoding(max_new_tokens=TOKENS, temperature=1.0, top_p=0.95, num_samples=3, seed=5)
    whole = answered(engine, prompts, decoding)
    assert len({answer.text for answer in whole}) == len(whole)
    some = [(answer.index, answer.sample) for answer in whole[::2]]
    rest = answered(engine, prompts, decoding, done=some, batch_size=1)
    assert rest == whole[1::2]
    other = answered(engine, prompts, Decoding(**{**vars(decoding), "seed": 6}), batch_size=1)
    assert sum(a.text == b.text for a, b in zip(whole, other, strict=True)) == 0


def test_nothing_to_do_starts_nothing(folder, prompts):
    backend = opened(folder)
    assert answered(backend, [], Decoding()) == []
    assert answered(backend, prompts[:1], Decoding(max_new_tokens=TOKENS), done=[(0, 0)]) == []
    assert backend._engine is None


def test_answers_that_are_no_longer_wanted_are_dropped(engine, prompts):
    found = engine.answers(
        prompts,
        Decoding(max_new_tokens=TOKENS),
        indices=range(len(prompts)),
        done=(),
        end_token_ids=[0],
        batch_size=4,
    )
    next(found)
    found.close()
    assert not engine._engine.has_unfinished_requests()


def test_prompts_that_cannot_be_answered(engine, prompts):
    with pytest.raises(GenerationError, match=r"prompt 0 has 600 tokens .* leave the prompt out"):
        answered(engine, [[5] * 600], Decoding(max_new_tokens=8))
    with pytest.raises(GenerationError, match=r"prompt 0 has token id 99999, but the model knows ids below"):
        answered(engine, [[99999]], Decoding(max_new_tokens=8))
    with pytest.raises(GenerationError, match="prompt 1 has no tokens"):
        answered(engine, [[5], []], Decoding(max_new_tokens=8))


def test_a_small_temperature_is_refused(folder):
    with pytest.raises(EvaluationError, match=r"temperature is 0\.001, and vllm would take 0\.01"):
        opened(folder, temperature=0.001)


def test_an_adapter_is_that_of_peft(folder, adapter, prompts, reference):
    decoding = Decoding(max_new_tokens=TOKENS)
    theirs = TransformersBackend(*load_model_and_tokenizer(str(adapter), "float32"), "auto")
    expected = answered(theirs, prompts, decoding)
    assert answered(opened(adapter), prompts, decoding) == expected
    assert expected != answered(reference, prompts, decoding)


def test_logits_that_are_no_numbers(folder, prompts, tmp_path, tokenizer):
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(GenerationError, match="logits are NaN or infinite for prompt 0"):
        answered(opened(tmp_path), prompts[:1], Decoding(max_new_tokens=8))


def test_an_engine_that_does_not_start_says_why(folder, prompts, monkeypatch, capfd):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with pytest.raises(
        EvaluationError, match=r"less than requested memory.*; use a smaller batch_size"
    ) as failed:
        answered(opened(folder), prompts[:1], Decoding(max_new_tokens=8))
    log = Path(str(failed.value).rpartition(" is in ")[2])
    assert log.read_text()
    log.unlink()
    assert "INFO" not in "".join(capfd.readouterr())


def test_more_gpus_than_there_are(folder, prompts):
    with pytest.raises(EvaluationError, match="vllm cannot run"):
        answered(opened(folder, tensor_parallel_size=3), prompts[:1], Decoding(max_new_tokens=8))


@pytest.fixture
def options(folder, questions, tmp_path):
    return {
        "model": str(folder),
        "data": str(questions),
        "output": str(tmp_path / "out"),
        "prompt": "plain",
        "max_new_tokens": TOKENS,
        "dtype": "float32",
        "backend": "vllm",
    }


def lines(path):
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_an_evaluation_like_that_of_transformers(options, tmp_path):
    ours = evaluate_gsm8k(Gsm8kConfig(**{**options, "backend": "hf", "output": str(tmp_path / "hf")}))
    summary = evaluate_gsm8k(Gsm8kConfig(**options))
    assert lines(tmp_path / "out" / "items.jsonl") == lines(tmp_path / "hf" / "items.jsonl")
    assert (summary.accuracy, summary.new_tokens) == (ours.accuracy, ours.new_tokens)
    assert (summary.batching, summary.batch_size, ours.batch_size) == ("vllm", 256, 16)
    assert summary.versions["vllm"] not in ("not installed", "")
    again = evaluate_gsm8k(Gsm8kConfig(**options))
    assert again == summary


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_and_leaves_no_process(number, options, tmp_path):
    sampled = {**options, "temperature": 0.9, "num_samples": 9, "batch_size": 4, "seed": 1}
    words = [f"--{key}={value}" for key, value in sampled.items()]
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        start_new_session=True,
        # A shell that started these tests in the background has Ctrl-C ignored by all that comes of it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kept = tmp_path / "out" / "items.rank0.jsonl"
    deadline = time.monotonic() + 200
    while run.poll() is None and time.monotonic() < deadline:
        if kept.exists() and kept.read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.01)
    assert run.poll() is None, run.communicate()
    os.kill(run.pid, number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], errors
    assert "Traceback" not in errors
    time.sleep(1)
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(run.pid, 0)
    summary = evaluate_gsm8k(Gsm8kConfig(**sampled))
    assert 20 <= summary.continued < 99
    whole = evaluate_gsm8k(Gsm8kConfig(**{**sampled, "output": str(tmp_path / "whole"), "batch_size": 64}))
    assert whole.continued == 0
    assert lines(tmp_path / "out" / "items.jsonl") == lines(tmp_path / "whole" / "items.jsonl")


def test_the_benchmark(folder, questions):
    words = ["--model", folder, "--data", questions, "--prompt", "plain", "--max_new_tokens", TOKENS]
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "vllm_agreement.py"),
            *map(str, words),
            "--dtypes=float32",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["results"]
    assert (found["dtype"], found["questions"], found["apart"]) == ("float32", 11, [])
    assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in found["tokens_per_second"].values())
