"""What a loss changes inside a model: a line a model, added once, and the page that the lines make."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.scored import small_model
from helpers.scripts import load_script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def measure(*arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "loss_insides.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def insides(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script("benchmarks/loss_insides.py")


@pytest.fixture
def study(tmp_path):
    """A model before training, its questions, and a study of it: `ce` unchanged with two seeds, `other` with another head."""
    model, data = small_model(tmp_path)
    for seed in (1, 2):
        run = tmp_path / "study" / f"seed{seed}" / "ce"
        shutil.copytree(model, run)
        history = [{"step": step, "hidden_effective_rank": seed + step} for step in (1, 2)]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    other = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.lm_head.weight += torch.randn_like(other.lm_head.weight)
    other.save_pretrained(tmp_path / "study" / "seed1" / "other")
    shutil.copy(model / "tokenizer.json", tmp_path / "study" / "seed1" / "other")
    shutil.copy(model / "tokenizer_config.json", tmp_path / "study" / "seed1" / "other")
    common = ["--before", model, "--data", data, "--prompt", "plain", "--dtype", "float32"]
    return tmp_path / "study", [*common, "--output", tmp_path / "lines.jsonl"]


def test_every_model_has_its_line_once(study, tmp_path, insides, monkeypatch, capsys):
    runs, common = study
    result = measure(*common, "--model", f"ce={runs / 'seed1' / 'ce'}")
    assert result.returncode == 0, result.stderr
    first = (tmp_path / "lines.jsonl").read_text()
    result = measure(*common, "--study", runs)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "lines.jsonl").read_text()
    assert text.startswith(first)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["name"], line["seed"]) for line in lines] == [
        ("before", 0),
        ("ce", 1),
        ("other", 1),
        ("ce", 2),
    ]
    before, ce, other, second = lines
    assert before["positions"] == ce["positions"] == second["positions"]
    assert other["positions"]["all"]["nats"] != ce["positions"]["all"]["nats"]
    everywhere = before["positions"]["all"]
    assert everywhere["tempered nats"] < everywhere["nats"]  # initialised far too sure
    assert ce["geometry"] == pytest.approx({"mean distance": 0.0, "correlation": 1.0}, abs=1e-5)
    assert other["geometry"]["correlation"] < 0.99
    assert second["ranks"] == {"hidden_effective_rank": {"1": 3, "2": 4}}
    assert str(tmp_path) not in text
    monkeypatch.setattr("sys.argv", ["loss_insides.py", *map(str, (*common, "--study", runs))])
    assert insides.main() == 0
    assert "3 of 3 models have their line" in capsys.readouterr().err
    assert (tmp_path / "lines.jsonl").read_text() == text


def test_lines_of_other_solutions_and_no_model_are_refused(study, tmp_path, insides, monkeypatch, capsys):
    runs, common = study

    def refusal(*words):
        monkeypatch.setattr("sys.argv", ["loss_insides.py", *map(str, (*common, *words))])
        with pytest.raises(SystemExit) as ended:
            insides.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    ce = f"ce={runs / 'seed1' / 'ce'}"
    assert "there is no model" in refusal()
    assert "there is no model" in refusal("--study", tmp_path / "nowhere")
    assert "must be NAME=DIR, a directory that is there, got 'ce=nowhere'" in refusal("--model", "ce=nowhere")
    assert "cannot write" in refusal("--model", ce, "--output", tmp_path / "test.jsonl" / "x")
    line = {"name": "before", "seed": 0, "about": {"data": "other.jsonl"}}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    assert "holds lines of {'data': 'other.jsonl'}" in refusal("--model", ce)


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script("benchmarks/insides_page.py")


def line(name, seed, nats, **more):
    where = {
        "tokens": 10,
        "nats": nats,
        "top1": 0.5,
        "confidence": 0.5,
        "wrong": 0.4,
        "cosine": 0.1,
        "near": 0.2,
        "temperature": 1.1,
        "tempered nats": nats - 0.1,
    }
    positions = dict.fromkeys(("all", "numbers", "numbers 0–0.5", "words 0–0.5"), where)
    geometry = {"mean distance": 0.01, "correlation": 0.99}
    rank = {"hidden_effective_rank": {"1": 5.0, "2": 6.0}}
    told = {"positions": positions, "digits": {"distance": 2.0}, "geometry": geometry, "ranks": rank}
    return {"name": name, "seed": seed, "about": {}, **told, **more}


def test_the_page_holds_differences_on_the_same_seeds(page, tmp_path):
    lines = [line("before", 0, 2.0), line("ce", 1, 1.0), line("ce", 2, 1.5), line("ce", 3, 9.0)]
    lines += [line("token", 1, 0.9), line("token", 2, 1.3), line("emo", 3, 8.0)]
    (tmp_path / "small.insides.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    before = "# Page\n<!-- small_insides -->\nold\n<!-- end of small_insides -->\nwords\n"
    after = page.written(before, tmp_path, tmp_path)
    assert after.startswith("# Page\n<!-- small_insides -->\n\nTraining seeds: `ce` 3, `token` 2, `emo` 1.")
    assert after.endswith("<!-- end of small_insides -->\nwords\n")
    # Student's t with one degree of freedom: 12.706 · 0.0707 / √2; without seed 3, which `token` has not.
    assert "| numbers | 10 | 2.0000 | 3.8333 | −0.1500 ± 0.6353 | −1.0000 |" in after
    assert page.written(after, tmp_path, tmp_path) == after
    for name in ("study_insides_small.png", "study_ranks_small.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="no lines"):
        page.written("<!-- other_insides -->\n<!-- end of other_insides -->", tmp_path, tmp_path)
    others = "<!-- other -->\nmade by another script\n<!-- end of other -->"
    assert page.written(others, tmp_path, tmp_path) == others
    with pytest.raises(SystemExit, match="no page"):
        page.write_anew(tmp_path / "none.md", str)
    (tmp_path / "small.insides.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(SystemExit, match="'before' and one called 'ce'"):
        page.written(before, tmp_path, tmp_path)


def test_the_page_is_what_its_lines_make(page, tmp_path):
    text = page.PAGE.read_text(encoding="utf-8")
    assert "_insides -->" in text
    assert page.written(text, page.LINES, tmp_path) == text
    drawn = sorted(picture.name for picture in tmp_path.glob("*.png"))
    assert drawn
    for name in drawn:
        assert (page.PICTURES / name).is_file()
        assert f"({name})" in text


def test_intervals_over_seeds(page):
    mean, half = page.over_seeds([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(page.over_seeds([1.0])[1])
    assert page.signed((0.5, math.nan), 2) == "+0.50"
    assert page.signed((-0.0004, math.nan), 3) == "0.000"
