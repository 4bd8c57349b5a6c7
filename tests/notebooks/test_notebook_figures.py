import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import CLASSES

from mnist_mlp.notebook.figures import heat_map, input_pairs, probabilities


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
