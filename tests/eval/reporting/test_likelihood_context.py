"""The page about likelihoods: its tables, its pictures, and what hostile names become."""

import pytest

from helpers.likelihoods import likelihood_items, write_likelihood
from mce_llm.eval.reporting import write_report
from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.likelihood_charts import measures_chart, reliability_chart
from mce_llm.eval.reporting.likelihood_context import likelihood_context
from mce_llm.eval.reporting.likelihood_sections import arrange_likelihoods


@pytest.fixture
def folders(tmp_path):
    return [
        write_likelihood(
            tmp_path / name, likelihood_items(30, seed=place, shift=shift, sharpness=shift + 0.1), model=name
        )
        for place, (name, shift) in enumerate((("ce", 0.0), ("mce <b>$x$", -0.2), ("emo", 0.1)))
    ]


@pytest.fixture
def section(folders):
    groups = ([0], [("mce <b>$x$", [1]), ("emo", [2])])
    return arrange_likelihoods(read_sources(folders), groups=groups)[0]


def test_the_page_and_its_pictures(folders, tmp_path, read):
    written = write_report(folders[:2], tmp_path / "report")
    assert (written.pictures, len(written.sections), len(written.likelihoods)) == (3, 0, 1)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "index.html",
        *(f"gsm8k-likelihood-{name}.png" for name in ("nats", "points", "reliability")),
    }
    html = written.page.read_text()
    page = read(html)
    assert "GSM8K: A against B" in page.words
    assert "negative log-likelihood, tokens of numbers" in page.words
    assert "mce <b>$x$" in page.words  # as text
    assert {"gsm8k-likelihood", "training", "origins"} <= {tag.get("id") for tag in page.all("section")}
    assert "answers" not in page.scripts  # no questions to browse
    assert html.count("<svg") == 3


def test_rows_are_those_of_the_comparison(section):
    context = likelihood_context(section)
    assert [arm["letter"] for arm in context["arms"]] == ["B", "C"]
    row = next(row for row in context["arms"][0]["rows"] if row["name"] == "all.nats")
    outcome = next(each for each in section.comparison.measures if each.measure.name == "all.nats").arms[0]
    assert (row["a"], row["b"]) == (f"{outcome.baseline_value:.4f}", f"{outcome.value:.4f}")
    assert row["finding"] == outcome.finding == "better"
    assert row["p_holm"].startswith("p ")
    assert len(context["runs"]["rows"]) == 3
    assert len(context["runs"]["rows"][0]["cells"]) == len(context["runs"]["names"]) == 19
    assert context["several"]


def test_pictures_say_what_they_show(section):
    nats = measures_chart(section, section.comparison, "nats per token")
    points = measures_chart(section, section.comparison, "points")
    assert "negative log-likelihood, final answer, B (mce <b>$x$): −0." in nats.description
    assert "first choice right, final answer" in points.description
    assert "nats per token" not in points.description
    reliability = reliability_chart(section)
    assert "A (ce): " in reliability.description
    assert "% right at 97 %" in reliability.description
    for chart in (nats, points, reliability):
        assert chart.png.startswith(b"\x89PNG")
        assert "#" not in chart.svg.replace("url(#", "").replace('href="#', "")  # every colour is the page's


def test_runs_that_are_not_compared_have_a_table_and_a_reliability_diagram(folders):
    (section,) = arrange_likelihoods(read_sources(folders[:1]))
    context = likelihood_context(section)
    assert [chart.name for chart in context["charts"]] == ["gsm8k-likelihood-reliability"]
    assert (context["arms"], context["verdict"]) == ([], None)
    assert "run 1 · ce: " in context["charts"][0].description


def test_no_numbers_no_reliability_diagram(tmp_path):
    items = likelihood_items(5)
    for item in items:
        empty = {"tokens": 0, "nats": 0.0, "top1": 0, "entropy": 0.0}
        item["groups"] |= {"numbers": empty, "results": empty, "words": item["groups"]["all"]}
        item["calibration"]["numbers"] = {name: [0] * 15 for name in ("tokens", "confidence", "top1")}
    folder = write_likelihood(tmp_path / "ce", items)
    (section,) = arrange_likelihoods(read_sources([folder]))
    assert reliability_chart(section) is None
    assert "numbers.nats" not in likelihood_context(section)["runs"]["names"]
