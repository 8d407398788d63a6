"""The page: nothing from outside, nothing that a text could break out of, and the comparison's own numbers."""

import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.evaluations import outcomes, write_run
from helpers.trainings import write_training
from mce_llm.eval.reporting.browsing import browser_data, embedded_json
from mce_llm.eval.reporting.drawing import COLOURS, COLOURS_ON_DARK

A, B = outcomes(4, 1, 2, 3)
TEXTS = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    ["</script>", "<!--", "<script", "]]>", "&lt;", "\ud800", "\u2028"]
)


@pytest.fixture(scope="module")
def tags(report, read):
    return read(report[0].html)


def test_nothing_comes_from_outside(report, tags):
    for tag, attributes in tags.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", report[0].html, re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", report[0].html))
    assert not tags.all("link")


def test_the_policy_allows_no_network_and_no_script_but_the_page_s_own(tags):
    (policy,) = [
        meta["content"] for meta in tags.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(tags.scripts["code"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "http" not in policy


def test_nothing_but_the_template_makes_tags(report, tags):
    assert [script.get("type") for script in tags.all("script")] == ["application/json", None]
    assert not tags.all("img")
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert "innerHTML" not in report[0].html


def test_all_answers_are_in_the_page_as_they_were(report, tags):
    (section,) = tags.answers["sections"]
    for run, member in zip(section["runs"], report[1][0].members, strict=True):
        items = member.run.items
        assert [answers[0][0] for answers in run["answers"]] == [item["response"] for item in items]
        assert [answers[0][3] for answers in run["answers"]] == [item["correct"] for item in items]
        questions = section["sets"][run["set"]]
        assert questions == [[item["question"], item["gold"]] for item in items]
    assert len(section["sets"]) == 1
    assert section["views"] == [[0, 1], [2, 3]]


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8))
def test_embedded_json_holds_any_text_and_no_markup(content):
    text = embedded_json(content)
    assert json.loads(text) == content
    assert not set(text) & set("<>&\u2028\u2029")
    text.encode("utf-8")


def test_counts_are_those_of_the_comparison(report, tags):
    comparison = report[1][0].comparison
    assert comparison.verdict in tags.words
    for pair in comparison.pairs:
        counts = pair.counts
        cells = (counts.both, counts.only_a, counts.only_b, counts.neither)
        assert "".join(f"<td>{count}</td>" for count in cells) in report[0].html
    (section,) = tags.answers["sections"]
    for (a, b), pair in zip(section["views"], comparison.pairs, strict=True):
        right = [[answers[0][3] for answers in section["runs"][place]["answers"]] for place in (a, b)]
        assert sum(x and not y for x, y in zip(*right, strict=True)) == pair.counts.only_a
        assert sum(y and not x for x, y in zip(*right, strict=True)) == pair.counts.only_b


def test_accuracies_are_those_of_the_summaries(report, tags):
    for member in report[1][0].members:
        summary = member.run.summary
        assert f"{100 * summary['accuracy']:.2f} %" in tags.words
        assert f"{summary['correct']} of {summary['n']}" in tags.words


def test_what_is_missing_is_said(tags):
    assert "no training folder found for A2 · ce-2, B2 · mce-2" in tags.words
    assert "Matrix cross-entropy (MCE), training: not logged by A1 (mce_loss)" in tags.words


def test_numbers_can_be_read_without_javascript_and_without_eyes(tags):
    assert tags.all("noscript")
    assert len(tags.all("caption")) == len(tags.all("table"))
    assert all(head.get("scope") in ("col", "row") for head in tags.all("th"))
    pictures = tags.all("svg")
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    assert any("B1 · mce-1, held out: 0.255 at step 10" in picture["aria-label"] for picture in pictures)
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert tags.all("html") == [{"lang": "en"}]


def test_every_colour_of_a_picture_is_one_of_the_page(report):
    used = set()
    for chart in report[0].charts:
        assert not re.search(r'style="[^"]*#[0-9a-f]{6}', chart.svg)
        used |= set(re.findall(r"var\(--([a-z0-9-]+)\)", chart.svg))
    assert {"arm-a", "arm-b", "ink"} <= used <= set(COLOURS) == set(COLOURS_ON_DARK)
    for name in COLOURS:
        assert report[0].html.count(f"--{name}: #") == 2


def test_pictures_of_the_page_and_beside_it_are_the_same(report, tags):
    (named,) = [meta["content"].split() for meta in tags.all("meta") if meta.get("name") == "pictures"]
    assert named == [f"{chart.name}.png" for chart in report[0].charts]
    assert len(set(named)) == len(named) == len(tags.all("svg"))
    assert all(chart.png.startswith(b"\x89PNG") for chart in report[0].charts)
    assert {"gsm8k-accuracy", "gsm8k-difference", "gsm8k-outcomes", "training-ce", "spectra-hidden"} <= {
        chart.name for chart in report[0].charts
    }


def test_runs_that_cannot_be_compared_say_why(tmp_path, make, read):
    folders = [
        write_run(tmp_path / "a", A, model="a"),
        write_run(tmp_path / "b", B, model="b", prompt="plain", prompt_text="{question}"),
    ]
    page, _ = make(folders)
    words = read(page.html).words
    assert "Not compared: b cannot be compared with a: they differ in prompt" in words
    assert "run 1 a" in words
    assert [chart.name for chart in page.charts] == ["gsm8k-accuracy"]
    assert read(page.html).answers["sections"][0]["views"] == [[0, 1]]
    page, _ = make(folders, allow_differences=True)
    assert "differ in more than the model" in read(page.html).words
    assert "prompt" in read(page.html).words


def test_several_samples(tmp_path, make, read):
    rows = [[True, False], [True, True], [False, False], [True, True]]
    page, sections = make(
        [
            write_run(tmp_path / "a", rows, temperature=0.7),
            write_run(tmp_path / "b", rows[::-1], temperature=0.7, model="b"),
        ]
    )
    tags = read(page.html)
    assert sections[0].comparison.pairs[0].counts is None
    assert "pass@2" in tags.words
    assert "75.00 %" in tags.words
    assert [len(answers) for answers in tags.answers["sections"][0]["runs"][0]["answers"]] == [2] * 4


def test_a_majority_vote_is_shown(tmp_path, make, read):
    folder = write_run(tmp_path / "a", [[True, False], [True, True]], temperature=0.7)
    words = read(make([folder])[0].html).words
    assert "majority of the samples" in words
    assert "75.00 % (34.2 to 100.0 %)" in words


def test_a_training_alone(tmp_path, make, read):
    page, _ = make([write_training(tmp_path / "ce", spectra=False)])
    tags = read(page.html)
    assert "0.1250" in tags.words  # the last held-out CE
    assert not tags.scripts
    assert "there is no" in tags.words
    assert "spectra.jsonl: its training did not record spectra" in tags.words
    assert "training-ce" in {chart.name for chart in page.charts}


def test_names_of_folders_are_text(tmp_path, make, read):
    name = "<b>&\"'$x$ {{ 7 * 7 }} 漢字"
    page, _ = make([write_run(tmp_path / name, A), write_run(tmp_path / "b\udcff", B, model="b")])
    tags = read(page.html)
    assert not tags.all("b")
    assert name in tags.words
    assert tags.answers["sections"][0]["runs"][0]["name"] == name
    page.html.encode("utf-8")


def test_a_list_of_many_runs_stays_short(tmp_path, make, read):
    page, _ = make([write_run(tmp_path / f"run{n}", A, model=str(n)) for n in range(13)])
    views = read(page.html).answers["sections"][0]["views"]
    assert views == [[0, n] for n in range(1, 13)]


def test_runs_on_other_questions_stand_alone(tmp_path, make):
    _, sections = make([write_run(tmp_path / "a", A), write_run(tmp_path / "b", B[:-1], model="b")])
    (section,) = browser_data(sections)["sections"]
    assert [run["set"] for run in section["runs"]] == [0, 1]
    assert section["views"] == [[0], [1]]
