"""Pictures: text stays text, ids do not clash, and labels are readable."""

import re

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from helpers.trainings import spectrum_record, write_training
from mce_llm.eval.reporting.collect import Training
from mce_llm.eval.reporting.drawing import COLOURS, draw, legend_below, power_of_ten, short
from mce_llm.eval.reporting.sections import Look
from mce_llm.eval.reporting.training_charts import (
    QUANTITIES,
    curve_chart,
    last_spectra_chart,
    quantities_of,
    spectra_chart,
)

LOOK = Look("A", "ce", "A", "arm-a", "-")


def line(label):
    def paint(axes):
        axes.plot([0, 1], [1, 2], color=COLOURS["arm-a"], label=label)
        axes.legend()

    return paint


def test_labels_are_text_as_they_are():
    chart = draw("one", 'about "this" & <that>', line("5 $ & $6 <b> 漢字"))
    assert "5 $ &amp; $6 &lt;b&gt; 漢字" in chart.svg
    assert (
        'aria-label="about &quot;this&quot; &amp; &lt;that&gt;"' in chart.svg or "&lt;that&gt;" in chart.svg
    )
    assert "font-family" not in chart.svg


def test_two_pictures_share_no_ids_and_one_picture_is_always_the_same():
    first, again, second = draw("one", "", line("x")), draw("one", "", line("x")), draw("two", "", line("x"))
    assert first == again
    ids = [set(re.findall(r'\bid="([^"]+)"', chart.svg)) for chart in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', first.svg))
    assert referred <= ids[0]


def test_drawing_changes_no_settings_of_matplotlib():
    before = dict(rcParams)
    draw("one", "", line("x"))
    assert dict(rcParams) == before


@pytest.mark.parametrize(("value", "label"), [(1, "10⁰"), (1e-3, "10⁻³"), (1e12, "10¹²")])
def test_powers_of_ten(value, label):
    assert power_of_ten(value) == label


def test_long_names_lose_their_middle():
    assert short("a" * 30) == "a" * 30
    assert short("start" + "x" * 40 + "end").startswith("start")
    assert short("start" + "x" * 40 + "end").endswith("end")
    assert len(short("x" * 100)) == 30


def test_a_quantity_that_nobody_logged_is_not_drawn(tmp_path):
    training = Training.read(write_training(tmp_path, weight=0, spectra=False))
    by_name = {quantity.name: quantity for quantity in QUANTITIES}
    assert curve_chart(by_name["mce"], [(LOOK, training)]) is not None  # held out it was
    assert curve_chart(by_name["ce"], [(LOOK, Training(tmp_path, (), ()))]) is None
    assert spectra_chart("hidden", 0, (LOOK, training)) is None
    assert last_spectra_chart("hidden", [(LOOK, training)]) is None


def test_quantities_of_some_losses_are_there_where_they_were_logged(tmp_path):
    plain = Training.read(write_training(tmp_path / "ce", weight=0))
    emo = Training(tmp_path, ({"step": 1, "emo_distance": 0.5, "eval_emo_distance": 0.6},), ())
    usual = {quantity.name for quantity in quantities_of([plain])}
    assert usual == {quantity.name for quantity in QUANTITIES if not quantity.optional}
    assert {quantity.name for quantity in quantities_of([plain, emo])} - usual == {"emo-distance"}


def test_values_that_are_no_numbers_are_told():
    history = ({"step": 1, "ce_loss": 2.0}, {"step": 2, "ce_loss": np.nan}, {"step": 3, "ce_loss": np.inf})
    chart = curve_chart(QUANTITIES[0], [(LOOK, Training(None, history, ()))])
    assert "2 values are not finite" in chart.description


def test_spectra_are_shares_at_few_steps(tmp_path):
    records = tuple(spectrum_record(step) for step in range(1, 101))
    chart = spectra_chart("density", 0, (LOOK, Training(tmp_path, (), records)))
    steps = re.findall(r">step (\d+): rank 1\.8<", chart.svg)
    assert steps[0] == "1"
    assert steps[-1] == "100"
    assert len(steps) == 5
    assert "of 8" in chart.description


def test_titles_fit_beside_long_names():
    """The axes of a picture with long names are narrow: its title begins at the edge and is broken where it is long."""
    title = f"{short('a-data-set-with-a-name-that-is-long')}: difference with 95 % intervals"

    def paint(axes):
        axes.barh([0, 1], [1, 2], color=COLOURS["arm-a"])
        axes.set_yticks([0, 1], ["a run whose name is very long", "another run of a name like it"])
        axes.set_title(title)

    lines = re.findall(r"<text[^>]*>([^<]*)</text>", draw("one", "", paint).svg)
    parts = [text for text in lines if text and text in title]
    assert " ".join(parts) == title
    assert all(len(text) <= 50 for text in parts)


def test_titles_keep_their_lines():
    def paint(axes):
        axes.set_title("A  ce\npredicted density matrices")

    lines = re.findall(r"<text[^>]*>([^<]*)</text>", draw("one", "", paint).svg)
    assert [text.split() for text in lines if "ce" in text.split() or "density" in text] == [
        ["A", "ce"],
        ["predicted", "density", "matrices"],
    ]


@pytest.mark.parametrize(("length", "columns"), [(3, 3), (30, 2), (60, 1)])
def test_a_legend_has_as_many_columns_as_there_is_room_for(length, columns):
    axes = Figure(figsize=(7.68, 4), layout="constrained").subplots()
    for letter in "ABCDEF":
        axes.plot([0, 1], [0, 1], label=letter * length)
    legend_below(axes, 3, fontsize=8)
    (legend,) = axes.figure.legends
    axes.figure.draw_without_rendering()
    assert legend._ncols == columns
    box, frame = legend.get_window_extent(), axes.figure.bbox
    assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
    assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
