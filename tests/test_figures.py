"""The figures of the lab show the numbers that they are given."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import texts
from matplotlib.colors import to_hex
from matplotlib.text import Text

from mnist_lab.figures import accuracy_curves, heat_map, input_pairs, picture_rows, projections
from mnist_lab.research.ablation import ablation_plot, top_two
from mnist_lab.research.calibration import calibration, reliability_curve
from mnist_lab.research.tuning import learning_rates_plot
from mnist_mlp.plots import BLUE, ORANGE, use_style


def tick_texts(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_heat_map_writes_each_share_in_its_cell():
    shares = np.array([[0.012, 0.3], [0.9, 0.0999]])

    ax = heat_map(shares, ["a", "b"], ["x", "y"])

    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "1.2", (1, 0): "30", (0, 1): "90", (1, 1): "10.0"}
    assert tick_texts(ax.xaxis) == ["x", "y"]
    assert tick_texts(ax.yaxis) == ["a", "b"]


def test_input_pairs_draws_each_picture_beside_its_image():
    pictures = [np.full((40 + i, 30), 10 * i, np.uint8) for i in range(7)]
    images = torch.arange(7 * 784).view(7, 28, 28)

    figure = input_pairs(pictures, images, list("tuvwxyz"))

    axes_pairs = np.array(figure.axes).reshape(12, 2)
    for i, (left, right) in enumerate(axes_pairs[:7]):
        assert left.get_title(loc="left") == "tuvwxyz"[i]
        assert np.array_equal(left.images[0].get_array(), pictures[i])
        assert np.array_equal(right.images[0].get_array(), images[i])
    assert not any(ax.images for ax in axes_pairs[7:].flat)


def test_picture_rows_draws_each_picture_on_its_scale():
    rows = {"grey": torch.rand(3, 28, 28), "signed": torch.randn(2, 28, 28)}

    ax = picture_rows(rows)

    assert texts(ax) == ["grey", "signed"]
    cells = [("grey", 0, 0), ("grey", 0, 1), ("grey", 0, 2), ("signed", 1, 0), ("signed", 1, 1)]
    for drawn, (name, row, column) in zip(ax.images, cells, strict=True):
        picture = rows[name][column]
        limit = float(picture.abs().max())
        lowest = -limit if name == "signed" else 0
        assert np.array_equal(drawn.get_array(), picture)
        assert drawn.get_extent() == [31 * column, 31 * column + 28, 31 * row + 28, 31 * row]
        assert drawn.get_clim() == pytest.approx((lowest, limit))
        if name == "signed":  # the colours of web/page.html: blue for the answer, orange against
            assert to_hex(drawn.cmap(1.0)).upper() == BLUE
            assert to_hex(drawn.cmap(0.0)).upper() == ORANGE


def assert_titles_apart(names) -> None:
    figure = input_pairs([np.zeros((40, 40))] * 6, torch.zeros(6, 28, 28), names)
    figure.canvas.draw()

    boxes = []
    for ax in figure.axes[::2]:
        titles = [child for child in ax.get_children() if isinstance(child, Text)]
        boxes += [title.get_window_extent() for title in titles if title.get_text()]
    assert len(boxes) == 6
    for left, right in pairwise(boxes):
        assert not left.overlaps(right)


def test_input_pairs_captions_do_not_overlap():
    names = [f"IMG_20240101_12345{i}_very_long.jpg\n7, 99%" for i in range(6)]

    with plt.style.context("default"):
        use_style()  # which has bold titles
        assert_titles_apart(names)


def test_projections_writes_each_label_at_its_median():
    labels = np.array([0, 0, 0, 7, 7, 7])
    random = np.random.default_rng(0)
    points = {name: random.random((6, 2)) for name in "abc"}

    figure = projections(points, labels)

    *used_axes, spare_axes = figure.axes
    assert not spare_axes.axison
    for ax, (name, xy) in zip(used_axes, points.items(), strict=True):
        assert name in (ax.get_title(), ax.get_title(loc="left"))  # the style decides where
        assert np.array_equal(ax.collections[0].get_offsets(), xy)
        assert texts(ax) == ["0", "7"]
        assert ax.texts[1].get_position() == pytest.approx(tuple(np.median(xy[3:], axis=0)))


def test_accuracy_curves_draws_each_curve_under_its_name():
    ax = accuracy_curves([0, 0.1], {"a": [1.0, 0.5], "b": [0.9, 0.2]})

    first, second = ax.lines
    assert (first.get_label(), second.get_label()) == ("a", "b")
    assert first.get_xydata().tolist() == [[0, 1.0], [0.1, 0.5]]
    assert second.get_xydata().tolist() == [[0, 0.9], [0.1, 0.2]]
    assert first.get_color() != second.get_color()
    assert accuracy_curves([0], {"c": [1.0]}, ax=ax) is ax


def test_learning_rates_plot_names_the_best_rate_of_each_curve():
    ax = learning_rates_plot({"a": {0.1: 0.5, 0.001: 0.8, 0.01: 0.925}, "b": {0.1: 1.0}})

    assert ax.lines[0].get_xydata().tolist() == [[0.001, 0.8], [0.01, 0.925], [0.1, 0.5]]
    labels = [text.get_text() for text in ax.get_legend().texts]
    assert labels == ["a: 92.50% at 0.01", "b: 100.00% at 0.1"]
    assert tick_texts(ax.xaxis) == ["0.001", "0.01", "0.1"]


def test_reliability_curve_draws_the_bins_of_the_calibration(evaluation):
    ax = reliability_curve(evaluation)

    curve = calibration(evaluation)
    points = ax.collections[1].get_offsets()  # collections[0] has the intervals
    assert np.array_equal(points, np.stack([curve["confidence"], curve["accuracy"]], 1))
    assert texts(ax) == [str(count) for count in curve["count"]]


def test_reliability_curve_has_its_legend_outside(evaluation):
    ax = reliability_curve(evaluation)
    ax.figure.canvas.draw()

    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.get_window_extent())
    assert not legend.overlaps(ax.xaxis.label.get_window_extent())


def test_ablation_plot_shows_every_seed_and_their_mean():
    accuracies = {"a": [0.98, 0.97], "b": [0.99, 0.992]}

    ax = ablation_plot(accuracies, {"others": 0.995})

    dots_a, mean_a, dots_b, mean_b, others = ax.lines
    assert dots_a.get_xydata() == pytest.approx(np.array([[2, 0], [3, 0]]))
    assert mean_a.get_xydata() == pytest.approx(np.array([[2.5, 0]]))
    assert dots_b.get_xydata() == pytest.approx(np.array([[1, 1], [0.8, 1]]))
    assert mean_b.get_xydata() == pytest.approx(np.array([[0.9, 1]]))
    assert others.get_xdata() == pytest.approx([0.5, 0.5])
    assert texts(ax) == ["97.50% ± 0.71", "99.10% ± 0.14", "others"]
    assert tick_texts(ax.yaxis) == ["a", "b"]
    left, right = ax.get_xlim()
    assert left > 3 > 0.8 > right  # small errors are on the right


def test_top_two_names_the_most_probable_digits_of_each_model():
    first_model = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]).log()
    second_model = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]).log()

    captions = top_two(torch.tensor([2, 1]), [first_model, second_model])

    assert captions[0] == "label 2\n2:70 1:20\n0:60 1:30"
    assert captions[1].startswith("label 1\n0:50 1:30\n2:80 ")
