"""Figures that only the notebooks of the lab draw."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from mnist_lab.handwriting.pictures import Picture
from mnist_lab.handwriting.preprocess import analyse, thicken_and_centre
from mnist_mlp.plots import BLUE, ORANGE, new_axes, wrapped

# The colours of web/page.html: orange pixels speak against an answer, blue ones for it.
AGAINST_AND_FOR = LinearSegmentedColormap.from_list("against and for", [ORANGE, "white", BLUE])


def input_pairs(
    pictures: Sequence[np.ndarray], images: torch.Tensor, captions: Sequence[str]
) -> Figure:
    """Draw each picture, under its caption, beside the image that the network sees.

    A row has six pairs. Long captions are broken into lines.

    Args:
        pictures: Grey values from 0 to 255, of shape (H, W).
        images: What the network sees, of shape (N, 28, 28).
        captions: A text for each picture.
    """
    rows = math.ceil(len(pictures) / 6)
    figure, axes = plt.subplots(
        rows, 12, figsize=(12, 1.3 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()

    # The last row may have more axes than pictures.
    axes_pairs = axes.reshape(-1, 2)
    for (left, right), picture, image, caption in zip(
        axes_pairs, pictures, images, captions, strict=False
    ):
        left.imshow(picture, cmap="gray", vmin=0, vmax=255)
        title = wrapped(caption, 20)  # as wide as the pair
        left.set_title(title, fontsize=9, loc="left", pad=3, parse_math=False)  # "$" is no formula
        right.imshow(image.numpy(), cmap="gray_r", vmin=0)
    return figure


def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Axes:
    """Draw a table of coloured percentages.

    Args:
        shares: Values from 0 to 1, of shape (rows, columns).
        rows: A label for each row.
        columns: A label for each column.
    """
    ax = new_axes(0.72 * len(columns) + 2, 0.42 * len(rows) + 1.6)
    shades = np.sqrt(shares)  # makes small shares distinguishable
    ax.imshow(shades, cmap="Oranges", vmin=0, vmax=1, aspect="auto")

    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        percent = f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
        ax.text(column, row, percent, ha="center", va="center", color=colour, fontsize=9)

    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows, parse_math=False)  # a "$" in a name is no formula
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def picture_rows(rows: Mapping[str, torch.Tensor]) -> Axes:
    """Draw rows of images, each row beside its name and each image on its own scale.

    Images are grey. In a row that has values below 0, negative values are orange and positive ones
    are blue.

    Args:
        rows: The images of each row, of shape (N, 28, 28).
    """
    columns = max(len(images) for images in rows.values())
    ax = new_axes(0.95 * columns + 1, 0.95 * len(rows) + 0.5)
    gap = 3  # between two images, in their pixels, as all lengths below
    spacing = 28 + gap  # from the edge of an image to that of the next

    for row, (name, images) in enumerate(rows.items()):
        is_signed = bool((images < 0).any())
        top = spacing * row
        for column, image in enumerate(images.numpy()):
            left = spacing * column
            limit = np.abs(image).max()
            ax.imshow(
                image,
                cmap=AGAINST_AND_FOR if is_signed else "gray_r",
                vmin=-limit if is_signed else 0,
                vmax=limit,
                extent=(left, left + 28, top + 28, top),
            )
        ax.text(-3, top + 14, name, ha="right", va="center", fontsize=10)

    # A margin of one pixel on all sides; the vertical axis points down.
    right_edge = spacing * columns - gap
    bottom_edge = spacing * len(rows) - gap
    ax.set_xlim(-1, right_edge + 1)
    ax.set_ylim(bottom_edge + 1, -1)
    ax.set_axis_off()
    return ax


def projections(points: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Draw projections to the plane, each point in the colour of its label.

    The label itself stands at the median of its points.

    Args:
        points: The points of each projection by its name, of shape (N, 2).
        labels: The label of each point, of shape (N,).
    """
    columns = math.ceil(len(points) / 2)
    figure, axes = plt.subplots(2, columns, figsize=(11, 7.2), layout="constrained")
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0}

    for ax in axes.flat[len(points) :]:  # one is left over if the number of projections is odd
        ax.set_axis_off()

    for ax, (name, xy) in zip(axes.flat, points.items(), strict=False):
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
    fmt: str = "o-",
    ax: Axes | None = None,
) -> Axes:
    """Draw curves of accuracies.

    Args:
        x: The positions of the points.
        curves: The accuracies of each curve by its name, from 0 to 1.
        fmt: The format of lines and markers, as in `Axes.plot`.
        ax: Where to draw.
    """
    ax = ax or new_axes(9, 4)
    for i, (name, accuracies) in enumerate(curves.items()):
        ax.plot(x, accuracies, fmt, color=f"C{i}", label=name)

    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    ax.legend()
    return ax


def explain(picture: Picture) -> Figure:
    """Draw what happens to a picture before the network sees it, one stage beside the other.

    The stages are the picture, its paper without ink, the ink and what was dropped (blue: printed
    lines; orange: things at the edge), the boxes of the digits, and the 28x28 images. The reasons
    to doubt the result stand below.

    Args:
        picture: A picture as for `mnist_lab.handwriting.preprocess.to_mnist`.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.
    """
    page = analyse(picture)
    ink = page.ink
    height, width = page.grey.shape
    figure_height = min(5, 0.9 + 2.3 * height / width)  # inches; each picture is 2.3 wide
    figure, axes = plt.subplots(1, 5, figsize=(12, figure_height), layout="constrained")
    titles = ["The picture", "Its paper", "The ink", "The digits", "What the network sees"]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_axis_off()
        ax.set_title(title, fontsize=10)
    picture_ax, paper_ax, ink_ax, digits_ax, images_ax = axes

    picture_ax.imshow(page.grey, cmap="gray", vmin=0, vmax=1)
    paper_ax.imshow(ink.paper.brightness, cmap="gray", vmin=0, vmax=1)

    coloured = np.repeat(1 - ink.strength[:, :, None], 3, axis=2)
    coloured[ink.lines] = to_rgb(BLUE)
    coloured[ink.edge] = to_rgb(ORANGE)
    ink_ax.imshow(coloured)

    digits_ax.imshow(ink.strength, cmap="gray_r", vmin=0, vmax=1)
    for row_number, row in enumerate(page.rows):
        for digit in row:
            corner = (digit.left - 0.5, digit.top - 0.5)
            colour = BLUE if row_number % 2 == 0 else ORANGE  # tells two rows apart
            box = Rectangle(corner, digit.width, digit.height, fill=False, edgecolor=colour)
            digits_ax.add_patch(box)

    longest_row = max(len(row) for row in page.rows)
    images = np.zeros((28 * len(page.rows), 28 * longest_row), np.uint8)
    for y, row in enumerate(page.rows):
        for x, digit in enumerate(row):
            image = thicken_and_centre(digit.strength).numpy()
            images[28 * y : 28 * (y + 1), 28 * x : 28 * (x + 1)] = image
    images_ax.imshow(images, cmap="gray_r", vmin=0)

    if page.warnings:
        figure.supxlabel("\n".join(page.warnings), fontsize=9)
    return figure
