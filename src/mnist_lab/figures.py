"""Figures that only the lab's notebooks draw."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnist_mlp.plots import new_axes


def input_pairs(
    pictures: Sequence[np.ndarray], images: torch.Tensor, captions: Sequence[str]
) -> Figure:
    """Draw each picture, under its caption, beside the image that the network sees: six in a row.

    Args:
        pictures: Grey values of shape (H, W).
        images: Of shape (N, 28, 28).
        captions: One for each picture.
    """
    rows = math.ceil(len(pictures) / 6)
    figure, axes = plt.subplots(
        rows, 12, figsize=(12, 1.3 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()

    pairs = axes.reshape(-1, 2)  # the axes of a picture and of its image
    for (left, right), picture, image, caption in zip(
        pairs, pictures, images, captions, strict=False
    ):
        left.imshow(picture, cmap="gray", vmin=0, vmax=255)
        left.set_title(caption, fontsize=9, loc="left", pad=3)
        right.imshow(image.numpy(), cmap="gray_r", vmin=0)
    return figure


def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Axes:
    """Draw shares, from 0 to 1 and of shape (rows, columns), as percentages on colours."""
    ax = new_axes(0.72 * len(columns) + 2, 0.42 * len(rows) + 1.6)
    shades = np.sqrt(shares)  # makes small shares distinguishable
    ax.imshow(shades, cmap="Oranges", vmin=0, vmax=1, aspect="auto")

    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        percent = f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
        ax.text(column, row, percent, ha="center", va="center", color=colour, fontsize=9)

    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def picture_rows(rows: Mapping[str, torch.Tensor]) -> Axes:
    """Draw named rows of pictures, each of shape (N, 28, 28).

    Pictures are grey. In a row with values below 0, these are blue and those above 0 red, each
    picture on a scale of its own.
    """
    columns = max(len(pictures) for pictures in rows.values())
    ax = new_axes(0.95 * columns + 1, 0.95 * len(rows) + 0.5)

    for row, (name, pictures) in enumerate(rows.items()):
        is_signed = bool((pictures < 0).any())
        top = 31 * row
        for column, picture in enumerate(pictures.numpy()):
            left = 31 * column
            limit = np.abs(picture).max()
            ax.imshow(
                picture,
                cmap="RdBu_r" if is_signed else "gray_r",
                vmin=-limit if is_signed else 0,
                vmax=limit,
                extent=(left, left + 28, top + 28, top),
            )
        ax.text(-3, top + 14, name, ha="right", va="center", fontsize=10)

    ax.set_xlim(-1, 31 * columns - 2)
    ax.set_ylim(31 * len(rows) - 2, -1)
    ax.set_axis_off()
    return ax


def projections(points: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Draw each named projection, of shape (N, 2), coloured by label, the label at its median."""
    columns = math.ceil(len(points) / 2)
    figure, axes = plt.subplots(2, columns, figsize=(11, 7.2), layout="constrained")
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0}

    for ax, (name, xy) in zip(axes.flat, points.items(), strict=True):
        ax.scatter(xy[:, 0], xy[:, 1], s=3, c=labels, cmap="tab10", alpha=0.6, linewidths=0)
        for label in np.unique(labels):
            x, y = np.median(xy[labels == label], axis=0)
            ax.text(x, y, str(label), ha="center", va="center", weight="bold", bbox=box)
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
