"""The figures. Each plot function draws on given or new axes, and returns them."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History

BLUE = "#0072B2"
ORANGE = "#D55E00"
GREY = "#999999"

CAPTION_CHARACTERS = 12  # of a line that is as wide as an image of `sample_grid`


def use_style() -> None:
    """Draw all figures of this process in the project's style."""
    plt.style.use(Path(__file__).with_name("mnist_mlp.mplstyle"))


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of this size in inches."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def label_classes(ax: Axes, classes: Sequence[str]) -> None:
    """Write the names of the classes below the x axis, aslant if they are long."""
    ax.set_xticks(range(len(classes)), classes)
    if max(len(name) for name in classes) > 3:
        ax.tick_params(axis="x", labelrotation=40)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def wrapped(caption: str, characters: int = CAPTION_CHARACTERS) -> str:
    """Return a caption with its long lines broken, so that neighbouring captions do not overlap."""
    lines = []
    for line in caption.split("\n"):
        lines.append(textwrap.fill(line, characters))
    return "\n".join(lines)


def sample_grid(
    images: torch.Tensor, captions: Sequence[str], columns: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw images in rows, each under its caption; long captions are broken into lines.

    Args:
        images: uint8 or float of shape (N, 28, 28).
        captions: A text for each image.
        columns: The number of images in a row.
        ax: Where to draw.
    """
    rows = math.ceil(len(images) / columns)
    captions = [wrapped(caption) for caption in captions]
    caption_lines = 1 + max(caption.count("\n") for caption in captions)
    caption_height = 7 * caption_lines

    # The distance from one image to the next, in pixels of the images.
    column_width = 28 + 3
    row_height = 28 + 3 + caption_height
    ax = ax or new_axes(columns, rows * row_height / column_width)

    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = column_width * (i % columns)
        top = row_height * (i // columns)
        extent = (left, left + 28, top + 28, top)
        vmax = 255 if image.dtype == torch.uint8 else None
        ax.imshow(image.numpy(), cmap="gray_r", extent=extent, vmin=0, vmax=vmax)

        # A file's name may hold dollar signs, which are no formula.
        ax.text(
            left + 14, top - 1.5, caption, ha="center", va="bottom", fontsize=9, parse_math=False
        )

    ax.set_xlim(-1, column_width * columns - 2)
    ax.set_ylim(rows * row_height - caption_height - 2, -caption_height - 2)
    ax.set_axis_off()
    return ax


def class_balance(
    labels: Mapping[str, torch.Tensor], classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw which fraction of each split belongs to each class.

    Args:
        labels: The labels of each split by its name, int64 of shape (N,).
        classes: The name of each class.
        ax: Where to draw.
    """
    ax = ax or new_axes(9, 3.2)
    width = 0.8 / len(labels)
    tallest = 0.0

    for i, (name, labels_of_split) in enumerate(labels.items()):
        counts = torch.bincount(labels_of_split, minlength=len(classes))
        shares = counts / len(labels_of_split)
        tallest = max(tallest, float(shares.max()))

        # The bars of a class stand side by side, centred on its tick.
        offset = (i - (len(labels) - 1) / 2) * width
        x = np.arange(len(classes)) + offset
        ax.bar(x, shares.numpy(), width * 0.92, label=f"{name} ({len(labels_of_split):,})")

    ax.axhline(1 / len(classes), color=GREY, linestyle="--", linewidth=1)
    label_classes(ax, classes)
    ax.set(xlabel="class", ylabel="share of the images", ylim=(0, 1.45 * tallest))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(labels), loc="upper center")
    return ax


def training_metrics(runs: Mapping[str, History], axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw the loss and the accuracy of each epoch, on two axes.

    The axes have room for all epochs of the recipes, also those that are not trained yet.

    Args:
        runs: The history of each run by its name. The last one is drawn on top.
        axes: Where to draw the loss and the accuracy.

    Returns:
        Both axes.
    """
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    loss_axes, accuracy_axes = axes
    longest = max(history.recipe.epochs for history in runs.values())

    for ax, metric in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        for i, (name, history) in enumerate(runs.items()):
            x = range(1, len(history.epochs) + 1)
            training = [epoch[metric] for epoch in history.epochs]
            validation = [epoch[f"validation_{metric}"] for epoch in history.epochs]
            colour = plt.get_cmap("tab20")(i % 20) if len(runs) > 6 else f"C{i}"
            label = name.lstrip("_")  # matplotlib leaves names out that begin with "_"
            # The markers show a single epoch, which has no line.
            ax.plot(x, training, "--", marker=".", color=colour, linewidth=1.2)
            ax.plot(x, validation, "-", marker=".", color=colour, linewidth=2, label=label)

        ax.plot([], [], "-", color=GREY, label="validation")
        ax.plot([], [], "--", color=GREY, linewidth=1.2, label="training")
        ax.set(xlabel="epoch", xlim=(0.5, longest + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))

    loss_axes.set(ylabel="cross-entropy (nats, log scale)", yscale="log")

    # An axis that showed the first epochs, which may be far below, would squeeze the later ones.
    nonempty = [history for history in runs.values() if history.epochs]
    final_accuracies = [history.epochs[-1]["accuracy"] for history in nonempty]
    largest_error = max(0.03, 1 - min(final_accuracies, default=0))
    accuracy_axes.set(ylabel="accuracy", ylim=(max(0, 1 - 3 * largest_error), 1.003))
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy_axes.legend(loc="lower right", fontsize=9)
    return np.asarray(axes)


def probabilities(
    image: torch.Tensor, probability: torch.Tensor, classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw an image beside a bar for the probability of each class.

    Args:
        image: uint8 or float of shape (28, 28).
        probability: float of shape (classes,).
        classes: The name of each class.
        ax: Where to draw.
    """
    ax = ax or new_axes(7.5, 3.2)
    heights = probability.numpy()
    tallest = heights.max()

    colours = [ORANGE if height == tallest else BLUE for height in heights]
    bars = ax.bar(range(len(classes)), heights, color=colours)
    bar_texts = [f"{height:.1%}" if height >= 0.001 else "" for height in heights]
    ax.bar_label(bars, bar_texts, fontsize=9)

    label_classes(ax, classes)
    ax.set(xlabel="class", ylabel="probability", ylim=(0, 1.15 * tallest))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="x", visible=False)

    picture = ax.inset_axes((-0.62, 0.02, 0.45, 0.96))
    picture.imshow(image.numpy(), cmap="gray_r", vmin=0)
    picture.set_axis_off()
    return ax


def confusion_matrix(
    confusion: np.ndarray, classes: Sequence[str], errors_only: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw a confusion matrix. Rows are true classes, columns predicted ones.

    Args:
        confusion: Counts of shape (classes, classes).
        classes: The name of each class.
        errors_only: Whether to leave out the diagonal, so that the colours show the errors.
        ax: Where to draw.

    Raises:
        ValueError: The matrix has another shape, for example because a class has no images.
    """
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(
            f"confusion must have a row and a column for each of the {len(classes)} classes, "
            f"found the shape {tuple(confusion.shape)}: use Evaluation.confusion."
        )
    ax = ax or new_axes(5.6, 5.4)
    shown = confusion.copy()
    colours = "Blues"
    if errors_only:
        np.fill_diagonal(shown, 0)
        colours = "Oranges"

    ax.imshow(shown, cmap=colours, vmin=0, vmax=max(1, shown.max()))
    for row, column in np.argwhere(shown):
        count = shown[row, column]
        colour = "white" if count > 0.6 * shown.max() else "black"
        ax.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=9)

    label_classes(ax, classes)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="predicted", ylabel="true")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def misclassified_gallery(
    evaluation: Evaluation, images: torch.Tensor, count: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the misclassified images, the most confident ones first.

    Each caption is the true class, an arrow, the predicted class and its probability.

    Args:
        evaluation: The evaluation of a model.
        images: All images of the evaluation, of shape (N, 28, 28).
        count: How many images are drawn at most.
        ax: Where to draw.

    Raises:
        ValueError: The number of images differs from that of the evaluation.
    """
    if len(images) != len(evaluation.labels):
        raise ValueError(
            f"images must be the {len(evaluation.labels):,} images of the evaluation, "
            f"found {len(images):,}."
        )
    shown = evaluation.misclassified()[:count]
    if len(shown) == 0:
        return sample_grid(torch.zeros(1, 28, 28), ["no errors"], ax=ax)

    captions = []
    for i in shown:
        true = evaluation.classes[evaluation.labels[i]]
        predicted = evaluation.classes[evaluation.predicted[i]]
        captions.append(f"{true} → {predicted}\n{evaluation.probabilities[i].max():.0%}")
    return sample_grid(images[shown], captions, ax=ax)
