"""One function a figure: it takes data, draws on `ax` or on a new figure, returns the axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_mlp.evaluate import Evaluation, wilson_interval
from mnist_mlp.train import History

# Okabe & Ito's palette, told apart by every common kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
CYCLE = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9"]
STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",  # stays legible on a dark page
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
}


def use_style() -> None:
    """Make the figures of this process look like those of the project."""
    plt.rcParams.update(STYLE)


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


def sample_grid(
    images: torch.Tensor,
    captions: Sequence[str],
    columns: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw images in rows, each under its caption. `images`: of shape (N, 28, 28)."""
    rows = -(-len(images) // columns)
    lines = 1 + max(caption.count("\n") for caption in captions)
    pitch = 28 + 3 + 7 * lines  # pixels from one row of images to the next
    ax = _axes(ax, columns, rows * pitch / 31)
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
    """Draw each class's share of each part. `labels`: name of the part -> int64 of shape (N,)."""
    ax = _axes(ax, 9, 3.2)
    width, tallest = 0.8 / len(labels), 0.0
    for i, (name, of_part) in enumerate(labels.items()):
        share = torch.bincount(of_part, minlength=len(classes)) / len(of_part)
        tallest = max(tallest, float(share.max()))
        x = np.arange(len(classes)) + (i - (len(labels) - 1) / 2) * width
        ax.bar(x, share.numpy(), width * 0.92, label=f"{name} ({len(of_part):,})")
    ax.axhline(1 / len(classes), color=GREY, linestyle="--", linewidth=1)
    ax.set_xticks(range(len(classes)), classes)
    ax.set(xlabel="class", ylabel="share of the images", ylim=(0, 1.45 * tallest))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(labels), loc="upper center")
    return ax


def learning_rate_sweep(
    sweeps: Mapping[str, Mapping[float, float]], ax: Axes | None = None
) -> Axes:
    """Draw validation accuracy against the peak learning rate, the best of each sweep marked.

    `sweeps`: name -> {learning rate: accuracy}.
    """
    ax = _axes(ax, 9, 3.6)
    for (name, accuracy), colour in zip(sweeps.items(), CYCLE, strict=False):
        rates, best = sorted(accuracy), max(accuracy, key=lambda rate: accuracy[rate])
        label = f"{name}: {accuracy[best]:.2%} at {best:g}"
        ax.plot(rates, [accuracy[rate] for rate in rates], "o-", color=colour, label=label)
        ax.plot(best, accuracy[best], "o", color=colour, markersize=11)
    ax.set_xscale("log")
    every = sorted({rate for accuracy in sweeps.values() for rate in accuracy})
    ax.set_xticks(every, [f"{rate:g}" for rate in every])
    ax.minorticks_off()
    ax.set(xlabel="peak learning rate", ylabel="validation accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="lower right", title="best")
    return ax


def training_metrics(runs: Mapping[str, History], axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw loss and accuracy an epoch, training dashed and validation solid, for each run by name.

    `axes`: two of them. The last run is drawn over the earlier ones.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")[1]
    for ax, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for i, (name, history) in enumerate(runs.items()):
            x, colour = range(1, len(history.epochs) + 1), CYCLE[i % len(CYCLE)]
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
    worst = max(0.03, 1 - min(last, default=0))  # the error that the lower half is left to
    axes[1].set(ylabel="accuracy", ylim=(max(0, 1 - 3 * worst), 1.003))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    axes[1].legend(loc="lower right", fontsize=9)
    return np.asarray(axes)


def confusion_matrix(
    confusion: np.ndarray,
    classes: Sequence[str],
    errors_only: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw a confusion matrix, its rows the true classes; with `errors_only` no diagonal."""
    ax = _axes(ax, 5.6, 5.4)
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


def reliability_curve(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw accuracy, with its 95% interval, against confidence, and how many images lie there."""
    ax = _axes(ax, 6.4, 4.6)
    found: dict[str, Any] = evaluation.calibration()
    confidence, accuracy, count = (found[key] for key in ("confidence", "accuracy", "count"))
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    intervals = [wilson_interval(a * n, n) for a, n in zip(accuracy, count, strict=True)]
    ax.vlines(confidence, *zip(*intervals, strict=True), color=BLUE, alpha=0.4)
    ax.scatter(confidence, accuracy, s=20 + 40 * np.log10(count), color=BLUE, label="this model")
    for x, (_, high), n in zip(confidence, intervals, count, strict=True):
        place, height = ("left", 0.95) if n == count.max() else ("center", high + 0.015)
        ax.text(x + 0.025 * (place == "left"), height, f"{n:,}", ha=place, fontsize=9)
    ax.set(
        xlabel="confidence (highest probability)",
        ylabel="accuracy",
        xlim=(0, 1.12),
        ylim=(-0.03, 1.08),
    )
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="upper left")
    return ax


def seen(
    pictures: Sequence[np.ndarray],
    images: torch.Tensor,
    captions: Sequence[str],
    columns: int = 6,
) -> Figure:
    """Draw each picture, under its caption, beside the image that the network sees of it.

    `pictures`: greys of shape (H, W). `images`: of shape (N, 28, 28).
    """
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows, 2 * columns, figsize=(2 * columns, 1.3 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for left, right, *shown in zip(
        axes[:, ::2].flat, axes[:, 1::2].flat, pictures, images, captions, strict=False
    ):
        picture, image, caption = shown
        left.imshow(picture, cmap="gray", vmin=0, vmax=255)
        left.set_title(caption, fontsize=9, loc="left", pad=3)
        right.imshow(image.numpy(), cmap="gray_r", vmin=0)
    return figure


def mistakes_gallery(
    evaluation: Evaluation, images: torch.Tensor, count: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the wrongly classified images, the most confident first: true -> predicted, probability.

    `images`: all those of the evaluation, of shape (N, 28, 28).
    """
    worst, names = evaluation.mistakes()[:count], evaluation.classes
    captions = [
        f"{names[evaluation.labels[i]]} → {names[evaluation.predicted[i]]}\n"
        f"{evaluation.probabilities[i].max():.0%}"
        for i in worst
    ]
    if not len(worst):
        images, worst, captions = torch.zeros(1, 28, 28), torch.tensor([0]), ["no mistakes"]
    return sample_grid(images[worst], captions, ax=ax)


def probabilities(
    image: torch.Tensor, probability: torch.Tensor, classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw one image, of shape (28, 28), beside the probability of each class."""
    ax = _axes(ax, 7.5, 3.2)
    heights = probability.numpy()
    colours = [ORANGE if p == heights.max() else BLUE for p in heights]
    bars = ax.bar(range(len(classes)), heights, color=colours)
    ax.bar_label(bars, [f"{p:.1%}" if p >= 0.001 else "" for p in heights], fontsize=9)
    ax.set_xticks(range(len(classes)), classes)
    ax.set(xlabel="class", ylabel="probability", ylim=(0, 1.15 * heights.max()))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="x", visible=False)
    picture = ax.inset_axes((-0.62, 0.02, 0.45, 0.96))
    picture.imshow(image.numpy(), cmap="gray_r", vmin=0)
    picture.set_axis_off()
    return ax


def ladder(
    rungs: Mapping[str, Sequence[float]],
    published: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each rung's test errors, a dot a seed, with their mean and standard deviation.

    `rungs`: name -> test accuracies, from 0 to 1, from the top down. `published`: those of others,
    drawn as lines.
    """
    ax = _axes(ax, 9.5, 0.9 + 0.5 * len(rungs))
    low, high = min(map(min, rungs.values())), max(map(max, rungs.values()))
    for i, accuracies in enumerate(rungs.values()):
        errors = 100 * (1 - np.asarray(accuracies))
        ax.plot(errors, np.full(len(errors), i), "o", color=BLUE, alpha=0.45, markersize=6)
        ax.plot(errors.mean(), i, "|", color=BLUE, markersize=22, markeredgewidth=2.5)
        words = f"{100 - errors.mean():.2f}% ± {errors.std(ddof=1):.2f}"
        ax.text(1.02, i, words, transform=ax.get_yaxis_transform(), va="center", fontsize=10)
    for name, accuracy in (published or {}).items():
        ax.axvline(100 * (1 - accuracy), color=GREY, linestyle="--", linewidth=1, zorder=0)
        ax.text(100 * (1 - accuracy), -0.75, name, ha="center", va="bottom", fontsize=8.5)
    ax.set_xscale("log")
    ax.set(xlim=(130 * (1 - low), 70 * (1 - high)), ylim=(len(rungs) - 0.5, -0.6))
    ticks = [t for t in (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5) if 70 * (1 - high) < t]
    ax.set_xticks(ticks, [f"{t:g}%" for t in ticks])
    ax.minorticks_off()
    ax.set_xlim(130 * (1 - low), 70 * (1 - high))
    ax.set_yticks(range(len(rungs)), list(rungs))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("test error (log scale)")
    return ax


def heat_map(
    errors: np.ndarray, rows: Sequence[str], columns: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw shares, from 0 to 1 and of shape (rows, columns), as percentages on a colour each."""
    ax = _axes(ax, 0.72 * len(columns) + 2, 0.42 * len(rows) + 1.6)
    shades = np.sqrt(errors)  # tells the small ones apart
    ax.imshow(shades, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (row, column), error in np.ndenumerate(errors):
        colour = "white" if error > 0.5 else "black"
        words = f"{100 * error:.1f}" if error < 0.1 else f"{100 * error:.0f}"
        ax.text(column, row, words, ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
