"""Further figures of the notebooks: pictures with their inputs, probabilities, a heat map."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnist_mlp.plots import BLUE, ORANGE, new_axes


def input_pairs(
    pictures: Sequence[np.ndarray], images: torch.Tensor, captions: Sequence[str], columns: int = 6
) -> Figure:
    """Draw each picture, under its caption, beside the image that the network sees of it.

    `pictures`: grey values of shape (H, W). `images`: of shape (N, 28, 28).
    """
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows, 2 * columns, figsize=(2 * columns, 1.3 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for left, right, picture, image, caption in zip(
        axes[:, ::2].flat, axes[:, 1::2].flat, pictures, images, captions, strict=False
    ):
        left.imshow(picture, cmap="gray", vmin=0, vmax=255)
        left.set_title(caption, fontsize=9, loc="left", pad=3)
        right.imshow(image.numpy(), cmap="gray_r", vmin=0)
    return figure


def probabilities(
    image: torch.Tensor, probability: torch.Tensor, classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw one image, of shape (28, 28), beside the probability of each class."""
    ax = ax or new_axes(7.5, 3.2)
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


def heat_map(
    shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw shares, from 0 to 1 and of shape (rows, columns), as percentages on colours."""
    ax = ax or new_axes(0.72 * len(columns) + 2, 0.42 * len(rows) + 1.6)
    shades = np.sqrt(shares)  # makes small shares distinguishable
    ax.imshow(shades, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        words = f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
        ax.text(column, row, words, ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def picture_rows(
    rows: Mapping[str, torch.Tensor], captions: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Draw named rows of pictures, each of shape (N, 28, 28), under the captions of the columns.

    Grey from 0 on; a row with values below 0 is blue below and red above, each picture on a scale
    of its own.
    """
    ax = ax or new_axes(0.95 * max(map(len, rows.values())) + 1, 0.95 * len(rows) + 0.5)
    for row, (name, pictures) in enumerate(rows.items()):
        signed = bool((pictures < 0).any())
        for column, picture in enumerate(pictures.numpy()):
            limit, left, top = abs(picture).max(), 31 * column, 31 * row
            style = {"cmap": "RdBu_r", "vmin": -limit} if signed else {"cmap": "gray_r", "vmin": 0}
            ax.imshow(picture, vmax=limit, extent=(left, left + 28, top + 28, top), **style)
        ax.text(-3, 31 * row + 14, name, ha="right", va="center", fontsize=10)
    for column, caption in enumerate(captions):
        ax.text(31 * column + 14, -2, caption, ha="center", va="bottom", fontsize=9)
    columns = max(map(len, rows.values()))
    ax.set(xlim=(-1, 31 * columns - 2), ylim=(31 * len(rows) - 2, -1))
    ax.set_axis_off()
    return ax


def projections(points: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Draw each named projection, of shape (N, 2), coloured by label, the label at its median."""
    figure, axes = plt.subplots(2, -(-len(points) // 2), figsize=(11, 7.2), layout="constrained")
    for ax, (name, xy) in zip(axes.flat, points.items(), strict=True):
        ax.scatter(*xy.T, s=3, c=labels, cmap="tab10", alpha=0.6, linewidths=0)
        for label in np.unique(labels):
            middle = np.median(xy[labels == label], axis=0)
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0}
            ax.text(*middle, str(label), ha="center", va="center", weight="bold", bbox=box)
        ax.set(title=name, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure


def accuracy_curves(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    style: str = "o-",
    ax: Axes | None = None,
) -> Axes:
    """Draw named accuracies, from 0 to 1, against `x`."""
    ax = ax or new_axes(9, 4)
    for i, (name, accuracies) in enumerate(curves.items()):
        ax.plot(x, accuracies, style, color=f"C{i}", label=name)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    ax.legend()
    return ax
