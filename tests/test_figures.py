import numpy as np
import pytest
from helpers import texts

from mnist_lab.research.ablation import ablation_plot
from mnist_lab.research.calibration import calibration, reliability_curve
from mnist_lab.research.tuning import learning_rates_plot


def test_learning_rates_are_drawn_and_the_best_of_each_is_named():
    ax = learning_rates_plot({"a": {0.1: 0.5, 0.001: 0.8, 0.01: 0.925}, "b": {0.1: 1.0}})
    assert ax.lines[0].get_xydata().tolist() == [[0.001, 0.8], [0.01, 0.925], [0.1, 0.5]]
    assert [text.get_text() for text in ax.get_legend().texts] == [
        "a: 92.50% at 0.01",
        "b: 100.00% at 0.1",
    ]


def test_a_reliability_curve_is_that_of_the_calibration(evaluation):
    ax = reliability_curve(evaluation)
    curve = calibration(evaluation)
    points = ax.collections[1].get_offsets()  # after the intervals
    assert np.array_equal(points, np.stack([curve["confidence"], curve["accuracy"]], 1))
    assert texts(ax) == [str(count) for count in curve["count"]]


def test_the_ablation_shows_every_seed_and_their_mean():
    accuracies = {"a": [0.98, 0.97], "b": [0.99, 0.992]}
    ax = ablation_plot(accuracies, {"others": 0.995})
    dots, bars = ax.lines[0:4:2], ax.lines[1:4:2]
    for y, (line, bar, of_seeds) in enumerate(zip(dots, bars, accuracies.values(), strict=True)):
        assert line.get_xdata() == pytest.approx(100 * (1 - np.array(of_seeds)))
        assert bar.get_xdata() == pytest.approx([100 * (1 - np.mean(of_seeds))])
        assert set(line.get_ydata()) == {y}
    assert texts(ax) == ["97.50% ± 0.71", "99.10% ± 0.14", "others"]
    assert ax.lines[4].get_xdata() == pytest.approx([0.5, 0.5])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    left, right = ax.get_xlim()
    assert left > 3 > 0.8 > right  # the better, the further to the right
