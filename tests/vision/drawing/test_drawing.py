"""Figures from numbers: what is in them, and that something is to be seen."""

import io
import math
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from mce_llm.vision.drawing import (
    DPI,
    EpochSpectrum,
    Journal,
    TsneUnavailableError,
    ViewRow,
    draw_curves,
    draw_projection,
    draw_spectra,
    draw_views,
    principal_components,
    tsne,
    write_png,
)
from mce_llm.vision.drawing.projections import Projection
from mce_llm.vision.drawing.spectra import normalised
from mce_llm.vision.drawing.style import COLOURS, MARKERS

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def pixels(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=50)
    return np.asarray(Image.open(content).convert("RGB"))


def normalise(image):
    """uint8 to a view as `vision.data` makes it."""
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (image.float() / 255 - shift) / scale


def noise(size, seed):
    return torch.randint(
        0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_views_are_shown_as_they_were_before_normalisation():
    rows = [
        ViewRow(noise(20, n), [[normalise(noise(16, 10 * n + 2 * d + v)) for v in range(2)] for d in range(3)], f"class {n}")
        for n in range(2)
    ]  # fmt: skip
    figure = draw_views(rows, MEAN, STD)
    axes = figure.axes
    assert len(axes) == 2 * (1 + 3 * 2)
    assert [ax.get_title() for ax in axes[:7]] == ["original", *["view 1", "view 2"] * 3]
    for n in range(2):
        shown = [ax.images[0].get_array() for ax in axes[7 * n : 7 * n + 7]]
        np.testing.assert_array_equal(shown[0], rows[n].original.permute(1, 2, 0))
        for place, image in enumerate(shown[1:]):
            draw, view = divmod(place, 2)
            np.testing.assert_array_equal(image, noise(16, 10 * n + 2 * draw + view).permute(1, 2, 0))
    assert pixels(figure).std() > 20


def test_views_that_leave_the_range_are_clipped_and_uneven_rows_refused():
    bright = torch.full((3, 8, 8), 100.0)
    figure = draw_views([ViewRow(noise(8, 0), [[bright]])], MEAN, STD)
    assert figure.axes[1].images[0].get_array().min() == 255
    with pytest.raises(ValueError, match="must be alike and not empty"):
        draw_views([ViewRow(noise(8, 0), [[bright]]), ViewRow(noise(8, 0), [[bright, bright]])], MEAN, STD)
    with pytest.raises(ValueError, match="must be alike and not empty"):
        draw_views([], MEAN, STD)


def spectrum(epoch, decay, width=40, rank=None):
    return EpochSpectrum(epoch, [3 * decay**i for i in range(width)], [2.0] * width, rank, None)


def test_spectra_are_over_their_largest_value_with_ranks_in_the_legend():
    figure = draw_spectra([spectrum(1, 0.8, rank=5.12), spectrum(9, 0.9, rank=12.0)])
    left, right = figure.axes
    assert left.get_yscale() == right.get_yscale() == "log"
    np.testing.assert_allclose(left.lines[1].get_ydata(), [0.9**i for i in range(40)])
    np.testing.assert_allclose(right.lines[0].get_ydata(), 1.0)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["1  (5.1)", "9  (12.0)"]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["1", "9"]
    assert left.lines[0].get_color() != left.lines[1].get_color()
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in left.get_yticklabels()]
    assert {"1", "0.1", "10⁻²"} <= set(ticks)
    assert pixels(figure).std() > 5


def test_of_many_epochs_eight_are_drawn_with_the_first_and_the_last():
    figure = draw_spectra([spectrum(epoch, 0.9) for epoch in range(1, 101)])
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert (len(shown), shown[0], shown[-1]) == (8, "1", "100")
    gaps = np.diff([int(text) for text in shown])
    assert gaps.max() - gaps.min() <= 1


def test_a_collapsed_spectrum_is_drawn():
    figure = draw_spectra([EpochSpectrum(1, [1.0] + [0.0] * 9, [0.0] * 10)])
    values = figure.axes[0].lines[0].get_ydata()
    assert values[0] == 1
    assert all(math.isnan(value) for value in values[1:])
    pixels(figure)
    assert normalised([0.0, 0.0]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="no spectra"):
        draw_spectra([])


def test_curves_have_a_panel_for_each_measure_there_is():
    series = {
        "train/loss": [(1, 300.25), (2, 300.125), (3, 300.0)],
        "monitor/knn_top1": [(2, 0.5), (3, 0.75)],
        "train/probe_top1": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "something/else": [(1, 1.0)],
    }
    figure = draw_curves(Journal("epoch", series))
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["loss", "accuracy"]
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [300.25, 300.125, 300.0])
    np.testing.assert_array_equal(accuracy.lines[0].get_xdata(), [2, 3])
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["kNN", "online probe"]
    figure.canvas.draw()
    assert all(label.get_text().endswith("%") for label in accuracy.get_yticklabels())
    assert loss.yaxis.get_offset_text().get_text() == ""
    assert accuracy.get_xlabel() == "epoch"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves(Journal("epoch", {"something/else": [(1, 1.0)]}))


def test_principal_components_against_an_exact_decomposition():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([9.0, 5.0, *[0.5] * 30])
    features = torch.randn(200, 32, generator=generator) * scales + 7
    before = torch.get_rng_state()
    found = principal_components(features)
    assert torch.equal(torch.get_rng_state(), before)
    centred = features.double() - features.double().mean(dim=0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    exact = centred @ directions[:2].T
    for column in range(2):
        a, b = found.points[:, column].double(), exact[:, column]
        assert min(float((a - b).abs().max()), float((a + b).abs().max())) < 1e-4 * float(b.abs().max())
    share = float(values[0] ** 2 / values.square().sum())
    assert found.axes[0] == f"component 1 ({share:.0%})"
    for shape in ((2, 5), (5, 1)):
        with pytest.raises(ValueError, match="at least 3 rows"):
            principal_components(torch.zeros(shape))


def test_features_that_are_all_equal_are_drawn():
    found = principal_components(torch.ones(10, 4))
    assert found.axes[0] == "component 1 (0%)"
    pixels(draw_projection(found, [0] * 10, ["one"]))


def test_classes_have_colours_shapes_and_names():
    points = torch.cat([torch.tensor([[10.0 * k, 10.0 * (k % 3)]]).repeat(5, 1) for k in range(4)])
    labels = [k for k in range(3) for _ in range(5)] + [-1] * 5
    figure = draw_projection(Projection(points, ("a", "b")), labels, ["x", "y", "z"], "what")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["no label", "x", "y", "z"]
    assert {text.get_text() for text in axes.texts} == {"x", "y", "z"}
    assert pixels(figure).std() > 5
    mixed = torch.arange(5.0).repeat(4).unsqueeze(1).repeat(1, 2)
    near = draw_projection(Projection(mixed, ("a", "b")), labels, ["x", "y", "z"])
    assert not near.axes[0].texts  # names that would cover each other are left to the legend
    with pytest.raises(ValueError, match="20 points and 3 labels"):
        draw_projection(Projection(points, ("a", "b")), [0, 1, 2], ["x", "y", "z"])


def test_twenty_classes_look_different():
    assert len({(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) for k in range(20)}) == 20


def test_tsne_without_scikit_learn_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TsneUnavailableError, match="pip install scikit-learn"):
        tsne(torch.zeros(5, 3))


@pytest.mark.ci
def test_tsne_separates_clusters():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, 60, generator=generator)
    features = centres.repeat_interleave(20, dim=0) + torch.randn(60, 60, generator=generator)
    points = tsne(features).points
    clusters = points.view(3, 20, 2)
    spread = (clusters - clusters.mean(dim=1, keepdim=True)).norm(dim=2).mean()
    apart = torch.pdist(clusters.mean(dim=1)).min()
    assert apart > 2 * spread


def test_nothing_is_left_in_pyplot_and_the_users_style_does_not_matter(tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        write_png(draw_spectra([spectrum(1, 0.8)]), tmp_path / "a" / "styled.png")
    write_png(draw_spectra([spectrum(1, 0.8)]), tmp_path / "a" / "plain.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["plain.png", "styled.png"]
    with (
        Image.open(tmp_path / "a" / "styled.png") as styled,
        Image.open(tmp_path / "a" / "plain.png") as plain,
    ):
        assert plain.size == (8 * DPI, 4.4 * DPI)
        np.testing.assert_array_equal(np.asarray(styled), np.asarray(plain))
