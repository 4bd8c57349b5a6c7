"""One function per figure: it takes data, draws on `ax` or a new figure and returns the axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def use_style() -> None:
    """Use the project's style for all figures of this process."""
    plt.style.use(Path(__file__).with_name("mnist_mlp.mplstyle"))


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure, sized in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def sample_grid(
    images: torch.Tensor, captions: Sequence[str], columns: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw images in rows, each under its caption. `images`: of shape (N, 28, 28)."""
    rows = -(-len(images) // columns)
    lines = 1 + max(caption.count("\n") for caption in captions)
    pitch = 28 + 3 + 7 * lines  # pixels from one row of images to the next
    ax = ax or new_axes(columns, rows * pitch / 31)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = (i % columns) * 31, (i // columns) * pitch
        ax.imshow(image.numpy(), cmap="gray_r", extent=(left, left + 28, top + 28, top), vmin=0)
        ax.text(left + 14, top - 1.5, caption, ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(-1, columns * 31 - 2), ylim=(rows * pitch - 7 * lines - 2, -7 * lines - 2))
    ax.set_axis_off()
    return ax


def class_balance(
    labels: Mapping[str, torch.Tensor], classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw each class's share of each split. `labels`: name of the split -> int64 of shape (N,)."""
    ax = ax or new_axes(9, 3.2)
    width, tallest = 0.8 / len(labels), 0.0
    for i, (name, of_split) in enumerate(labels.items()):
        share = torch.bincount(of_split, minlength=len(classes)) / len(of_split)
        tallest = max(tallest, float(share.max()))
        x = np.arange(len(classes)) + (i - (len(labels) - 1) / 2) * width
        ax.bar(x, share.numpy(), width * 0.92, label=f"{name} ({len(of_split):,})")
    ax.axhline(1 / len(classes), color=GREY, linestyle="--", linewidth=1)
    ax.set_xticks(range(len(classes)), classes)
    ax.set(xlabel="class", ylabel="share of the images", ylim=(0, 1.45 * tallest))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(labels), loc="upper center")
    return ax


def training_metrics(runs: Mapping[str, History], axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw loss and accuracy per epoch for each run by name, on two axes, the last run on top."""
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")[1]
    for ax, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for i, (name, history) in enumerate(runs.items()):
            x, colour = range(1, len(history.epochs) + 1), f"C{i % 6}"
            training, validation = (
                [record[key] for record in history.epochs]
                for key in (metric, f"validation_{metric}")
            )
            ax.plot(x, training, "--", color=colour, linewidth=1.2)
            ax.plot(x, validation, "-", color=colour, linewidth=2, label=name)
        ax.plot([], [], "-", color=GREY, label="validation")
        ax.plot([], [], "--", color=GREY, linewidth=1.2, label="training")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel="cross-entropy (nats, log scale)", yscale="log")
    last = [record["accuracy"] for history in runs.values() for record in history.epochs[-1:]]
    worst = max(0.03, 1 - min(last, default=0))  # the lower half of the axis is for this error
    axes[1].set(ylabel="accuracy", ylim=(max(0, 1 - 3 * worst), 1.003))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    axes[1].legend(loc="lower right", fontsize=9)
    return np.asarray(axes)


def confusion_matrix(
    confusion: np.ndarray, classes: Sequence[str], errors_only: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw a confusion matrix with the true classes as rows; with `errors_only` no diagonal."""
    ax = ax or new_axes(5.6, 5.4)
    shown = np.where(np.eye(len(classes), dtype=bool) & errors_only, 0, confusion)
    ax.imshow(shown, cmap="Oranges" if errors_only else "Blues", vmin=0, vmax=max(1, shown.max()))
    for row, column in zip(*shown.nonzero(), strict=True):
        count = shown[row, column]
        colour = "white" if count > 0.6 * shown.max() else "black"
        ax.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(classes)), classes)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="predicted", ylabel="true")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def misclassified_gallery(
    evaluation: Evaluation, images: torch.Tensor, count: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the misclassified images, the most confident first: true -> predicted, probability.

    `images`: all images of the evaluation, of shape (N, 28, 28).
    """
    worst, names = evaluation.misclassified()[:count], evaluation.classes
    captions = [
        f"{names[evaluation.labels[i]]} → {names[evaluation.predicted[i]]}\n"
        f"{evaluation.probabilities[i].max():.0%}"
        for i in worst
    ]
    if not len(worst):
        images, worst, captions = torch.zeros(1, 28, 28), torch.tensor([0]), ["no errors"]
    return sample_grid(images[worst], captions, ax=ax)
