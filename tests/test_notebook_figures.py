"""The figures that only the lab's notebooks draw."""

import numpy as np
import pytest
import torch

from mnist_lab.figures import accuracy_curves, heat_map, input_pairs, picture_rows, projections


def test_heat_map_writes_each_share_in_its_place():
    ax = heat_map(np.array([[0.012, 0.3], [0.9, 0.0999]]), ["a", "b"], ["x", "y"])
    written = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert written == {((0, 0), "1.2"), ((1, 0), "30"), ((0, 1), "90"), ((1, 1), "10.0")}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]


def test_input_pairs_draws_each_picture_beside_its_image():
    pictures = [np.full((40 + i, 30), 10 * i, np.uint8) for i in range(7)]
    images = torch.arange(7 * 784).view(7, 28, 28)
    figure = input_pairs(pictures, images, list("tuvwxyz"))

    pairs = np.array(figure.axes).reshape(12, 2)
    for i, (left, right) in enumerate(pairs[:7]):
        assert left.get_title(loc="left") == "tuvwxyz"[i]
        assert np.array_equal(left.images[0].get_array(), pictures[i])
        assert np.array_equal(right.images[0].get_array(), images[i])
    assert not any(ax.images for ax in pairs[7:].flat)


def test_picture_rows_draws_each_picture_in_its_place_and_scale():
    rows = {"grey": torch.rand(3, 28, 28), "signed": torch.randn(2, 28, 28)}
    ax = picture_rows(rows)
    assert [text.get_text() for text in ax.texts] == ["grey", "signed"]

    places = [("grey", 0, 0), ("grey", 0, 1), ("grey", 0, 2), ("signed", 1, 0), ("signed", 1, 1)]
    for drawn, (name, row, column) in zip(ax.images, places, strict=True):
        picture = rows[name][column]
        limit = float(picture.abs().max())
        assert np.array_equal(drawn.get_array(), picture)
        assert drawn.get_extent() == [31 * column, 31 * column + 28, 31 * row + 28, 31 * row]
        assert drawn.get_clim() == pytest.approx((-limit if name == "signed" else 0, limit))


def test_projections_write_each_label_at_its_median():
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
    first, second = ax.lines
    assert [first.get_label(), second.get_label()] == ["a", "b"]
    assert first.get_xydata().tolist() == [[0, 1.0], [0.1, 0.5]]
    assert second.get_xydata().tolist() == [[0, 0.9], [0.1, 0.2]]
    assert first.get_color() != second.get_color()
    assert accuracy_curves([0], {"c": [1.0]}, ax=ax) is ax
