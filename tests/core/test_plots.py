import matplotlib.pyplot as plt
import numpy as np
import torch
from helpers import CLASSES, texts

from mnist_mlp import plots
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History, Recipe


def test_a_sample_grid_shows_each_image_under_its_caption():
    images = torch.arange(12 * 784).view(12, 28, 28)
    ax = plots.sample_grid(images, list("abcdefghijkl"), columns=5)
    assert texts(ax) == list("abcdefghijkl")
    for picture, image, caption in zip(ax.images, images, ax.texts, strict=True):
        assert np.array_equal(picture.get_array(), image)
        left, right, bottom, top = picture.get_extent()
        x, y = caption.get_position()
        assert x == (left + right) / 2
        assert top - 5 < y < top < bottom


def test_class_balance_shows_shares():
    ax = plots.class_balance({"train": torch.tensor([0, 0, 1, 2])}, CLASSES)
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.25, 0.25]


def test_training_metrics_draw_every_run_on_both_axes():
    runs = {}
    for name, shift in (("first", 0.0), ("second", 0.01)):
        keys = ("loss", "accuracy", "validation_loss", "validation_accuracy")
        epochs = [
            {key: 0.5 + e / 10 + shift + i / 100 for i, key in enumerate(keys)} for e in (0, 1, 2)
        ]
        runs[name] = History(Recipe(), epochs)
    for ax, metric in zip(plots.training_metrics(runs), ("loss", "accuracy"), strict=True):
        drawn = [line.get_ydata().tolist() for line in ax.lines]
        for history in runs.values():
            assert [record[metric] for record in history.epochs] in drawn
            assert [record[f"validation_{metric}"] for record in history.epochs] in drawn


def test_a_confusion_matrix_counts_true_rows_and_predicted_columns(evaluation):
    ax = plots.confusion_matrix(evaluation.confusion, CLASSES)
    found = {text.get_position(): text.get_text() for text in ax.texts}  # (column, row)
    assert found == {(0, 0): "1", (1, 0): "1", (1, 1): "1", (0, 2): "1", (2, 2): "1"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    errors = plots.confusion_matrix(evaluation.confusion, CLASSES, errors_only=True)
    assert {text.get_position() for text in errors.texts} == {(1, 0), (0, 2)}


def test_the_gallery_shows_true_and_predicted_class_and_probability(evaluation):
    images = torch.arange(5 * 784).view(5, 28, 28)
    ax = plots.misclassified_gallery(evaluation, images)
    confidence = evaluation.probabilities.amax(1)
    assert texts(ax) == [f"c → a\n{confidence[1]:.0%}", f"a → b\n{confidence[3]:.0%}"]
    assert np.array_equal(ax.images[0].get_array(), images[1])


def test_a_gallery_without_errors_says_so(evaluation):
    perfect = Evaluation(evaluation.logits, evaluation.predicted, CLASSES)
    assert texts(plots.misclassified_gallery(perfect, torch.zeros(5, 28, 28))) == ["no errors"]


def test_an_axes_that_is_given_is_drawn_on_and_returned(evaluation):
    figure, axes = plt.subplots(1, 4)
    images = torch.zeros(5, 28, 28)
    assert plots.sample_grid(images[:1], ["a"], ax=axes[0]) is axes[0]
    assert plots.class_balance({"a": torch.tensor([0, 1, 2])}, CLASSES, axes[1]) is axes[1]
    assert plots.confusion_matrix(evaluation.confusion, CLASSES, ax=axes[2]) is axes[2]
    assert plots.misclassified_gallery(evaluation, images, ax=axes[3]) is axes[3]
    assert plt.get_fignums() == [figure.number]
