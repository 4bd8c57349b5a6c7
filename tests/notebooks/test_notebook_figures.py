import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import CLASSES

from mnist_mlp.notebook.figures import (
    accuracy_curves,
    heat_map,
    input_pairs,
    picture_rows,
    probabilities,
    projections,
)


def test_probabilities_are_the_heights_of_the_bars():
    probability = torch.tensor([0.25, 0.7, 0.05])
    ax = probabilities(torch.zeros(28, 28), probability, CLASSES)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(probability.tolist())
    assert [label.get_text() for label in ax.get_xticklabels()] == list(CLASSES)


def test_a_heat_map_writes_each_share_in_its_place():
    ax = heat_map(np.array([[0.012, 0.3], [0.9, 0.0999]]), ["a", "b"], ["x", "y"])
    found = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert found == {((0, 0), "1.2"), ((1, 0), "30"), ((0, 1), "90"), ((1, 1), "10.0")}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]


def test_each_picture_is_drawn_beside_what_the_network_sees_of_it_under_its_caption():
    pictures = [np.full((40 + i, 30), 10 * i, np.uint8) for i in range(5)]
    images = torch.arange(5 * 784).view(5, 28, 28)
    figure = input_pairs(pictures, images, list("vwxyz"), columns=2)
    axes = np.array(figure.axes).reshape(3, 4)
    for i, (left, right) in enumerate(zip(axes[:, ::2].flat, axes[:, 1::2].flat, strict=True)):
        assert [len(left.images), len(right.images)] == ([1, 1] if i < 5 else [0, 0])
        if i < 5:
            assert left.get_title(loc="left") == "vwxyz"[i]
            assert np.array_equal(left.images[0].get_array(), pictures[i])
            assert np.array_equal(right.images[0].get_array(), images[i])


def test_an_axes_that_is_given_is_drawn_on_and_returned():
    figure, axes = plt.subplots(1, 2)
    assert probabilities(torch.zeros(28, 28), torch.ones(3) / 3, CLASSES, axes[0]) is axes[0]
    assert heat_map(np.ones((1, 1)), ["a"], ["x"], axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]


def test_each_picture_is_in_its_row_and_column_and_has_a_scale_of_its_own():
    rows = {"grey": torch.rand(3, 28, 28), "signed": torch.randn(2, 28, 28)}
    ax = picture_rows(rows, list("xyz"))
    assert len(ax.images) == 5
    for drawn, (row, column) in zip(
        ax.images, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], strict=True
    ):
        picture = rows[["grey", "signed"][row]][column]
        assert np.array_equal(drawn.get_array(), picture)
        assert drawn.get_extent() == [31 * column, 31 * column + 28, 31 * row + 28, 31 * row]
        limit = float(picture.abs().max())
        assert drawn.get_clim() == pytest.approx((-limit if row else 0, limit))
    assert [text.get_text() for text in ax.texts] == ["grey", "signed", "x", "y", "z"]


def test_a_projection_is_drawn_with_each_label_at_its_median():
    labels = np.array([0, 0, 0, 7, 7, 7])
    points = {name: np.random.default_rng(i).random((6, 2)) for i, name in enumerate("ab")}
    figure = projections(points, labels)
    for ax, (name, xy) in zip(figure.axes, points.items(), strict=True):
        assert name in (ax.get_title(), ax.get_title(loc="left"))  # as the style says
        assert np.array_equal(ax.collections[0].get_offsets(), xy)
        assert [text.get_text() for text in ax.texts] == ["0", "7"]
        assert ax.texts[1].get_position() == pytest.approx(tuple(np.median(xy[3:], axis=0)))


def test_accuracy_curves_are_the_numbers_under_their_names():
    ax = accuracy_curves([0, 0.1], {"a": [1.0, 0.5], "b": [0.9, 0.2]})
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[0, 1.0], [0.1, 0.5]],
        [[0, 0.9], [0.1, 0.2]],
    ]
    assert len({line.get_color() for line in ax.lines}) == 2


def test_an_axes_that_is_given_is_drawn_on_too():
    figure, axes = plt.subplots(1, 2)
    assert picture_rows({"a": torch.ones(1, 28, 28)}, ax=axes[0]) is axes[0]
    assert accuracy_curves([0], {"a": [1.0]}, ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
