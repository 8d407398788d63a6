"""The page in a real browser, where one is installed: the list is drawn, the address is followed, nothing is logged."""

import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browse(report, tmp_path_factory):
    """Open the page at an address and return the document as it then is, and what the console said."""
    place = tmp_path_factory.mktemp("browser")
    # The page may hold half a surrogate pair; --dump-dom dies of it when it writes the document.
    (place / "index.html").write_text(report[0].html.replace("\\ud800", "?"), encoding="utf-8")

    def run(address=""):
        command = [CHROMIUM, "--headless", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
        command += [
            f"--user-data-dir={place / 'profile'}",
            "--virtual-time-budget=5000",
            "--window-size=1280,900",
        ]
        command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        done = subprocess.run(
            [*command, f"{(place / 'index.html').as_uri()}{address}"],
            capture_output=True,
            timeout=120,
            check=True,
        )
        console = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line]
        return done.stdout.decode("utf-8"), console

    return run


def test_the_list_is_drawn_and_nothing_runs_that_should_not(browse, read):
    dom, console = browse()
    assert console == []
    assert 'data-ready="true"' in dom
    assert "<title>GSM8K: A against B" in dom  # hostile answers would have changed it
    tags = read(dom)
    assert not tags.all("img")
    rows = [attributes for attributes in tags.all("div") if attributes.get("role") == "option"]
    assert 5 < len(rows) < 40  # those that are visible, not all
    assert rows[0]["aria-setsize"] == "40"
    assert "</script><script>document.title = 'taken'</script>" in tags.words


def test_the_address_tells_what_is_shown(browse, read, report):
    counts = report[1][0].comparison.pairs[1].counts
    dom, console = browse("#q=1&pair=2&filter=only_b&sort=b_won")
    assert console == []
    tags = read(dom)
    assert f"{counts.only_b} of 40 questions" in tags.words
    assert re.search(rf"only A2 right {counts.only_a}\b", tags.words)
    rows = [attributes for attributes in tags.all("div") if attributes.get("role") == "option"]
    assert len(rows) == counts.only_b
    assert "<mark>ce</mark>" in dom  # ce-2 and mce-2 differ in this word
    assert "<mark>mce</mark>" in dom


def test_a_senseless_address_shows_the_first_question(browse, read):
    dom, console = browse("#q=-7&pair=99&filter=<b>&sort=%00&sample=x&task=none&search=no%20such%20text")
    assert console == []
    assert "0 of 40 questions" in read(dom).words
    assert 'data-ready="true"' in dom
