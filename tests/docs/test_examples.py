"""The Python examples of the guides run as they stand, with a small model and data in place of the hub's."""

import re

from helpers.likelihoods import likelihood_items, write_likelihood
from helpers.recipes import logged, save_tiny_model
from helpers.scripts import ROOT
from mce_llm.data import generate_problems, write_jsonl


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def example(page):
    (code,) = examples(page)
    return code


def test_readme(tmp_path, monkeypatch):
    rows = generate_problems(12, max_number=10)
    save_tiny_model(tmp_path, rows)
    data = write_jsonl(rows, tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    code = example("README.md")
    for hub, here in (("Qwen/Qwen2.5-0.5B", tmp_path / "model"), ("gsm8k", data)):
        assert f'"{hub}"' in code
        code = code.replace(f'"{hub}"', repr(str(here)))
    code = code.replace("matrix_weight=0.3", "matrix_weight=0.3, use_cpu=True, logging_steps=1, max_steps=2")
    code = code.replace('"runs/mine"', '"runs/mine", save_strategy="steps", save_steps=2')
    exec(compile(code, "README.md", "exec"), {})
    checkpoint = tmp_path / "runs" / "mine" / "checkpoint-2"
    for name in ("loss", "ce_loss", "mce_loss"):
        assert len(logged(checkpoint, name)) == 2


def test_evaluation_guide(tmp_path, monkeypatch):
    answers, likelihoods = examples("eval/README.md")
    names = {}
    exec(compile(answers, "eval/README.md", "exec"), names)
    assert str(names["extract_answer"]("The answer is: $1,080.00.").value) == "1080"
    monkeypatch.chdir(tmp_path)
    write_likelihood(tmp_path / "runs" / "llemma7b-metamath-mce" / "likelihood", likelihood_items())
    exec(compile(likelihoods, "eval/README.md", "exec"), names)
    assert names["run"].summary["groups"]["results"]["nats_per_token"] > 0
