"""Reports that several tests look at, and what a page holds, read as a browser would."""

import json
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from helpers.evaluations import write_run
from helpers.trainings import write_training
from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.page import make_page
from mce_llm.eval.reporting.sections import arrange

N = 40
HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "]]> \u2028 \u2029 \ud800 \x00 \u202e &amp; $x$ {{ 7 * 7 }}",
)


class Tags(HTMLParser):
    """All tags with their attributes, and the text of scripts by id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text = [], {}, []
        self._open = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._open = dict(attributes).get("id", "code")
            self.scripts[self._open] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text.append(data)
        else:
            self.scripts[self._open] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def answers(self):
        return json.loads(self.scripts["answers"])


def page_of(folders, command="mce-llm report", **options):
    """The page of these runs, and their sections."""
    sources = read_sources(folders)
    sections = arrange(sources, **options)
    return make_page(sources, sections, command=command, written=datetime(2026, 1, 2, tzinfo=UTC)), sections


@pytest.fixture(scope="session")
def read():
    return Tags


@pytest.fixture(scope="session")
def make():
    return page_of


@pytest.fixture(scope="session")
def two_pairs(tmp_path_factory):
    """Folders of two pairs with hostile answers; the trainings of the second are not known."""
    place = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(5)
    folders = []
    for number, name in enumerate(("ce-1", "mce-1", "ce-2", "mce-2")):
        right = random.random(N) < (0.75 if name.startswith("mce") else 0.6)
        model = place / "models" / name
        if name.endswith("1"):
            write_training(model, weight=0.3 if name.startswith("mce") else 0.0, start=0.5 + 0.01 * number)
        folders.append(
            write_run(
                place / name,
                right,
                model=str(model),
                responses=[f"{HOSTILE[k % 4]}\nStep {k} of {name}." for k in range(N)],
                questions=[f"Question {HOSTILE[k % 4]} {k}?" for k in range(N)],
                found_by=["last_number" if k % 9 == 0 else "answer_is" for k in range(N)],
                finished=["length" if k % 11 == 0 else "eos" for k in range(N)],
            )
        )
    return folders


@pytest.fixture(scope="session")
def report(two_pairs):
    """Page and sections of the two pairs."""
    return page_of(two_pairs, groups=([0, 2], [(None, [1, 3])]))
