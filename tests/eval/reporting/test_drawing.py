"""Pictures: text stays text, ids do not clash, and labels are readable."""

import re

import numpy as np
import pytest
from matplotlib import rcParams

from helpers.trainings import spectrum_record, write_training
from mce_llm.eval.reporting.collect import Training
from mce_llm.eval.reporting.drawing import COLOURS, draw, power_of_ten, short
from mce_llm.eval.reporting.sections import Look
from mce_llm.eval.reporting.training_charts import QUANTITIES, curve_chart, last_spectra_chart, spectra_chart

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
