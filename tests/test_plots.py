"""Each figure shows the numbers and pictures that it was given."""

import math
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import CLASSES, texts
from matplotlib.colors import to_hex

from mnist_mlp import plots
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History, Recipe

CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def overlapping(texts) -> list[tuple[str, str]]:
    """The pairs of drawn texts that overlap. All are upright, or all have the same slant."""
    figure = texts[0].figure
    figure.canvas.draw()
    slant = math.radians(texts[0].get_rotation())

    pairs = []
    for one, other in combinations(texts, 2):
        if slant:
            # Parallel lines that begin side by side: their distance must be a line's height.
            x, other_x = (
                text.get_transform().transform(text.get_position())[0] for text in (one, other)
            )
            is_overlapping = abs(x - other_x) * math.sin(slant) < one.get_size() * figure.dpi / 72
        else:
            is_overlapping = one.get_window_extent().overlaps(other.get_window_extent())
        if is_overlapping:
            pairs.append((one.get_text(), other.get_text()))
    return pairs


@pytest.fixture
def style():
    with plt.style.context("default"):
        plots.use_style()
        yield


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


@pytest.mark.parametrize("n_more", [0, 7, 100])
def test_class_balance_labels_each_tick_with_its_value(n_more, style):
    labels = {"train": torch.cat([torch.arange(10).repeat(50), torch.zeros(n_more).long()])}

    ax = plots.class_balance(labels, [*"0123456789"])
    ax.figure.canvas.draw()

    values = [100 * tick for tick in ax.get_yticks()]
    written = [float(label.get_text().removesuffix("%")) for label in ax.get_yticklabels()]
    assert written == pytest.approx(values, abs=1e-6)


def test_long_class_names_do_not_overlap(style):
    labels = {"train": torch.arange(10)}
    logits = torch.eye(10)
    evaluation = Evaluation(logits, torch.arange(10).roll(1), CLOTHES)

    balance = plots.class_balance(labels, CLOTHES)
    matrix = plots.confusion_matrix(evaluation.confusion, CLOTHES)
    bars = plots.probabilities(torch.zeros(28, 28), logits[0], CLOTHES)
    gallery = plots.misclassified_gallery(evaluation, torch.zeros(10, 28, 28))

    for ax in (balance, matrix, bars):
        assert [label.get_text() for label in ax.get_xticklabels()] == list(CLOTHES)
        assert overlapping(ax.get_xticklabels()) == []
    assert overlapping(gallery.texts) == []
    words = gallery.texts[0].get_text().split()
    assert words[:-1] == f"{CLOTHES[evaluation.labels[0]]} → {CLOTHES[0]}".split()


def test_training_metrics_shows_a_single_epoch_and_those_to_come():
    epoch = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}

    axes = plots.training_metrics({"a": History(Recipe(epochs=9), epochs=[epoch])})

    for ax in axes:
        drawn = [line for line in ax.lines if len(line.get_xdata())]
        assert len(drawn) == 2
        assert "None" not in [line.get_marker() for line in drawn]
        left, right = ax.get_xlim()
        assert left < 1 < 9 < right


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


def test_figures_refuse_numbers_of_other_classes_or_images(evaluation):
    with pytest.raises(ValueError, match="confusion"):
        plots.confusion_matrix(np.zeros((2, 2), int), CLASSES)
    with pytest.raises(ValueError, match="images"):
        plots.misclassified_gallery(evaluation, torch.zeros(1, 28, 28))


def test_captions_may_hold_dollar_signs():
    plots.sample_grid(torch.zeros(1, 28, 28), ["0$5_$6"])
    plt.gcf().canvas.draw()


def test_each_of_many_runs_has_a_colour_and_a_name():
    epochs = [{"loss": 1, "validation_loss": 1, "accuracy": 0.5, "validation_accuracy": 0.5}]
    runs = {f"_run {i}": History(Recipe(epochs=1), epochs=epochs) for i in range(8)}

    _, accuracy_axes = plots.training_metrics(runs)

    validation_lines = accuracy_axes.lines[1:-2:2]
    assert len({to_hex(line.get_color()) for line in validation_lines}) == 8
    names = [text.get_text() for text in accuracy_axes.get_legend().get_texts()]
    assert "run 7" in names
