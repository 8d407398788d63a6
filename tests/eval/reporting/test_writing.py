"""What a report replaces, and what it leaves alone."""

import pytest

from helpers.evaluations import outcomes, write_run
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting import write_report
from mce_llm.eval.reporting.drawing import Chart
from mce_llm.eval.reporting.page import GENERATOR, Page
from mce_llm.eval.reporting.writing import write_page

A, B = outcomes(4, 1, 2, 3)


def page(*names):
    html = f'<meta name="generator" content="{GENERATOR}">\n<meta name="pictures" content="'
    html += " ".join(f"{name}.png" for name in names) + '">'
    return Page(html, tuple(Chart(name, "", "<svg/>", b"png") for name in names))


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_page_and_pictures(tmp_path):
    written = write_page(page("one", "two"), tmp_path / "deep" / "report", overwrite=False)
    assert written == tmp_path / "deep" / "report" / "index.html"
    assert files(written.parent) == {"index.html", "one.png", "two.png"}


def test_a_report_takes_the_place_of_an_earlier_one(tmp_path):
    write_page(page("one", "two"), tmp_path, overwrite=False)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "mine.png").write_text("mine")
    write_page(page("two", "three"), tmp_path, overwrite=False)
    assert files(tmp_path) == {"index.html", "two.png", "three.png", "notes.md", "mine.png"}


@pytest.mark.parametrize("named", ["../kept.png", "/kept.png", "a/../../kept.png", "kept.txt"])
def test_a_page_cannot_have_other_files_removed(tmp_path, named):
    (tmp_path / "kept.png").write_text("mine")
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "kept.txt").write_text("mine")
    html = f'<meta name="generator" content="{GENERATOR}">\n<meta name="pictures" content="{named}">'
    (folder / "index.html").write_text(html)
    write_page(page("one"), folder, overwrite=True)
    assert (tmp_path / "kept.png").exists()
    assert (folder / "kept.txt").exists()


def foreign_page(folder):
    (folder / "index.html").write_text("<title>Something else</title>")


def other_files(folder):
    (folder / "summary.json").write_text("{}")


@pytest.mark.parametrize("fill", [foreign_page, other_files])
def test_a_folder_of_something_else_is_left_alone(tmp_path, fill):
    fill(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(
        EvaluationError, match="no report of mce-llm; choose another --output, or use --overwrite"
    ):
        write_page(page("one"), tmp_path, overwrite=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    write_page(page("one"), tmp_path, overwrite=True)
    assert set(before) | {"index.html", "one.png"} == files(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report.html").write_text("")
    with pytest.raises(EvaluationError, match="is a file; give the name of a folder"):
        write_page(page("one"), tmp_path / "report.html", overwrite=True)


def test_where_nothing_can_be_written(unwritable):
    with pytest.raises(EvaluationError, match=r"cannot (write to|look into)"):
        write_page(page("one"), unwritable, overwrite=False)


def test_a_failure_leaves_the_earlier_page(tmp_path):
    write_page(page("one"), tmp_path, overwrite=False)
    before = (tmp_path / "index.html").read_text()
    (tmp_path / "two.png").mkdir()  # cannot be replaced by a file
    with pytest.raises(EvaluationError, match="cannot write"):
        write_page(page("two"), tmp_path, overwrite=False)
    assert (tmp_path / "index.html").read_text() == before
    assert files(tmp_path) == {"index.html", "one.png", "two.png"}


def test_the_folder_is_checked_before_any_run_is_read(tmp_path):
    other_files(tmp_path)
    with pytest.raises(EvaluationError, match="no report of mce-llm"):
        write_report([tmp_path / "absent"], tmp_path)


def test_a_whole_report(tmp_path):
    runs = [write_run(tmp_path / "a", A), write_run(tmp_path / "b", B, model="b")]
    written = write_report(runs, tmp_path / "report", command="as typed <here>")
    assert written.pictures == 3
    assert len(files(written.page.parent)) == 4
    html = written.page.read_text()
    assert "as typed &lt;here&gt;" in html
    assert written.sections[0].comparison.verdict in html
    assert write_report(runs, tmp_path / "report").page == written.page
