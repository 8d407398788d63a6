"""The page of the study is made of the lines beside it: small, of no machine, and the same tables as the study's own."""

import gzip
import json
from pathlib import Path

import pytest

from helpers.scripts import load_script
from helpers.studies import answers_outcome, likelihood_outcome, result_line, write_study
from mce_llm.studies.comparing import compare_study
from mce_llm.studies.reading import read_study
from mce_llm.studies.results import Results
from mce_llm.studies.tables import measure_table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PRIMARY = {"evaluation": "likely", "measure": "numbers.nats", "smallest_difference": 0.05}
EVALUATIONS = {
    "likely": {"script": "likelihood", "settings": {"data": "test.jsonl"}},
    "answers": {"script": "gsm8k", "settings": {"data": "test.jsonl", "prompt": "plain"}},
}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script("benchmarks/study_page.py")


@pytest.fixture
def finished(tmp_path):
    """A study file with the results of two arms and two seeds beside it."""
    path = write_study(tmp_path, evaluations=EVALUATIONS, primary=PRIMARY, name="small")
    lines = []
    for arm, less in (("ce", 0.0), ("mce", 1.0)):
        for seed in (1, 2):
            nats = [12.34567890123 + 0.1 * place + 0.01 * seed - less for place in range(20)]
            outcomes = {
                "likely": likelihood_outcome(nats, model=f"{arm}{seed}"),
                "answers": answers_outcome([seed % 2, 1] * 10, model=f"{arm}{seed}"),
            }
            outcomes["likely"]["options"] = {"data": str(tmp_path / "test.jsonl")}
            launch = {"training": ["--config_file", str(tmp_path / "zero3.yaml")], "evaluation": []}
            lines.append(result_line(arm, seed, outcomes, launch=launch))
    (tmp_path / "out").mkdir()
    results = tmp_path / "out" / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, results


def test_kept_lines_say_the_same_and_name_no_folder(page, finished, tmp_path):
    path, results = finished
    target = tmp_path / "kept" / "study.jsonl.gz"
    assert page.keep(results, target, ["numbers", "all"]) == 4
    first = target.read_bytes()
    text = gzip.decompress(first).decode()
    assert str(tmp_path) not in text
    assert "zero3.yaml" in text
    assert "12.355679" not in text
    assert "12.3557" in text
    page.keep(results, target, ["numbers", "all"])
    assert target.read_bytes() == first

    study = read_study(path)
    whole = compare_study(study, Results(results.parent, "small").read())
    small = compare_study(study, page.kept_results(study, [target]))
    a, b = (measure_table(found.evaluations[0], found.primary) for found in (whole, small))
    assert a == b
    assert {found.measure.group for found in small.evaluations[0].comparisons} == {"numbers", "all"}


def test_only_marked_tables_are_written_anew(page, finished, tmp_path):
    path, results = finished
    page.keep(results, tmp_path / "study.a.jsonl.gz", ["numbers", "all"])
    before = "# Page\n<!-- study -->\nold\n<!-- end of study -->\nwords\n<!-- a remark -->\n"
    after = page.written(before, tmp_path, path.parent)
    assert after.startswith("# Page\n<!-- study -->\n\n4 of 4 runs.")
    assert after.endswith("<!-- end of study -->\nwords\n<!-- a remark -->\n")
    assert "old" not in after
    assert "| ce (baseline) | 2 |" in after
    assert page.written(after, tmp_path, path.parent) == after
    short = page.written("<!-- study_in_short -->\n<!-- end of study_in_short -->", tmp_path, path.parent)
    assert (
        "tokens of numbers, nats per token | against `ce` of the same seeds, 95 % | p (Holm) | answers |"
        in short
    )
    assert "| `ce` | 2 | 1.3311 |  |  | 75.00 % |" in short
    assert "| `mce` | 2 | 1.2311 | −0.1000, " in short
    assert " points |" in short
    others = "<!-- study_insides -->\nmade by another script\n<!-- end of study_insides -->"
    assert page.written(others, tmp_path, path.parent) == others
    with pytest.raises(SystemExit, match="no kept lines"):
        page.written("<!-- other -->\n<!-- end of other -->", tmp_path, path.parent)


def test_the_page_is_what_its_lines_make(page, monkeypatch, capsys, tmp_path):
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    assert "<!-- smollm2_gsm8k_search -->" in texts[0]
    copies = [tmp_path / path.name for path in page.PAGES]
    for copy, text in zip(copies, texts, strict=True):
        copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(page, "PAGES", copies)
    monkeypatch.setattr("sys.argv", ["study_page.py", "tables"])
    assert page.main() == 0
    assert capsys.readouterr().out.count("as it was") == 3
    assert [copy.read_text(encoding="utf-8") for copy in copies] == texts
    monkeypatch.setattr(
        "sys.argv", ["study_page.py", "picture", "smollm2_gsm8k_search", str(tmp_path / "x.png")]
    )
    assert page.main() == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000
