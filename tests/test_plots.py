"""Each figure shows the numbers and pictures that it was given."""

import numpy as np
import pytest
import torch
from helpers import CLASSES, texts
from matplotlib.colors import to_hex

from mnist_mlp import plots
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History, Recipe


def test_sample_grid_draws_each_image_under_its_caption():
    images = torch.arange(12 * 784).view(12, 28, 28)

    ax = plots.sample_grid(images, list("abcdefghijkl"), columns=5)

    assert texts(ax) == list("abcdefghijkl")
    corners = []
    for picture, image, caption in zip(ax.images, images, ax.texts, strict=True):
        assert np.array_equal(picture.get_array(), image)
        left, right, bottom, top = picture.get_extent()
        x, y = caption.get_position()
        assert x == (left + right) / 2
        assert top - 5 < y < top < bottom
        corners.append((top, left))
    assert sorted(set(corners)) == corners  # row by row
    assert len({left for _, left in corners}) == 5


def test_class_balance_draws_the_share_of_each_class():
    labels = {"train": torch.tensor([0, 0, 1, 2]), "test": torch.tensor([1, 1])}

    ax = plots.class_balance(labels, CLASSES)

    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.25, 0.25, 0, 1, 0]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert [round(centre) for centre in centres] == [0, 1, 2, 0, 1, 2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train (4)", "test (2)"]


def test_training_metrics_draws_each_run_on_both_axes():
    runs = {}
    for name, offset in (("first", 0.0), ("second", 0.01)):
        runs[name] = History(Recipe(), epochs=[])
        for value in (0.5 + offset, 0.6 + offset, 0.7 + offset):
            epoch = {
                "loss": value,
                "accuracy": value + 0.001,
                "validation_loss": value + 0.002,
                "validation_accuracy": value + 0.003,
            }
            runs[name].epochs.append(epoch)

    loss_axes, accuracy_axes = plots.training_metrics(runs)

    for ax, metric in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        solid = [line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "-"]
        dashed = [line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "--"]
        for i, history in enumerate(runs.values()):
            assert solid[i] == [epoch[f"validation_{metric}"] for epoch in history.epochs]
            assert dashed[i] == [epoch[metric] for epoch in history.epochs]


def test_probabilities_are_the_heights_of_the_bars():
    ax = plots.probabilities(torch.zeros(28, 28), torch.tensor([0.25, 0.7, 0.05]), CLASSES)

    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.25, 0.7, 0.05])
    assert texts(ax) == ["25.0%", "70.0%", "5.0%"]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(CLASSES)
    colours = [to_hex(bar.get_facecolor(), keep_alpha=False).upper() for bar in ax.patches]
    assert colours == [plots.BLUE, plots.ORANGE, plots.BLUE]  # the highest bar stands out


def test_confusion_matrix_has_true_rows_and_predicted_columns(evaluation):
    ax = plots.confusion_matrix(evaluation.confusion, CLASSES)
    errors = plots.confusion_matrix(evaluation.confusion, CLASSES, errors_only=True)

    counts = {text.get_position(): text.get_text() for text in ax.texts}  # by (column, row)
    assert counts == {(0, 0): "1", (1, 0): "1", (1, 1): "1", (0, 2): "1", (2, 2): "1"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert {text.get_position() for text in errors.texts} == {(1, 0), (0, 2)}


def test_gallery_shows_true_and_predicted_class_and_probability(evaluation):
    images = torch.arange(5 * 784).view(5, 28, 28)
    ax = plots.misclassified_gallery(evaluation, images)

    confidence = evaluation.probabilities.amax(1)
    assert texts(ax) == [f"c → a\n{confidence[1]:.0%}", f"a → b\n{confidence[3]:.0%}"]
    assert np.array_equal(ax.images[0].get_array(), images[1])
    assert len(plots.misclassified_gallery(evaluation, images, count=1).images) == 1


def test_gallery_without_errors_says_so(evaluation):
    perfect = Evaluation(evaluation.logits, evaluation.predicted, CLASSES)
    ax = plots.misclassified_gallery(perfect, torch.ones(5, 28, 28))
    assert texts(ax) == ["no errors"]
