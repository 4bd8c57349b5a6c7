"""Robustness: the errors on MNIST-C's corruptions in the record of `make ablation`."""

from collections.abc import Mapping
from statistics import mean

import numpy as np
from matplotlib.axes import Axes

from mnist_mlp.plots import BLUE, GREY, new_axes
from mnist_mlp.research.ablation import test_accuracies

# For each corruption, the disturbance of the robust network's training that is most like it.
RESEMBLES = {
    "shot_noise": "noise", "impulse_noise": "the same noise", "glass_blur": "random convolution",
    "motion_blur": "random convolution", "shear": "a wide warp", "scale": "a wide warp",
    "rotate": "a wide warp", "brightness": "contrast and black level", "translate": "a wide warp",
    "stripe": "inverted rectangles", "fog": "smooth fields", "spatter": "",
    "dotted_line": "straight strokes", "zigzag": "straight strokes",
    "canny_edges": "random convolution, threshold",
}  # fmt: skip


def robustness_table(record: dict) -> str:
    """Return the mean accuracy on each corruption of the best and the robust network, in Markdown.

    The last column says what in the robust network's training resembles the corruption.
    """
    errors, names = corruption_errors(record), (record["best"], record["robust"])
    clean = {name: mean(of_seeds) for name, of_seeds in test_accuracies(record).items()}
    means = [1 - mean(errors[name].values()) for name in names]
    rows = [("none", [clean[name] for name in names])]
    rows += [(c, [1 - errors[name][c] for name in names]) for c in RESEMBLES]
    rows += [("**mean of the fifteen**", means)]
    lines = [f"| corruption | {names[0]} | {names[1]} | seen in training |", "|:--|--:|--:|:--|"]
    for name, (best, robust) in rows:
        words = f"{name.replace('_', ' ')} | {best:.1%} | {robust:.1%} | {RESEMBLES.get(name, '')}"
        lines.append(f"| {words} |")
    return "\n".join(lines)


def corruption_errors(record: dict) -> dict[str, dict[str, float]]:
    """Return the mean test error, from 0 to 1, of each configuration on each corruption."""
    n = record["test_images"]
    return {
        name: {
            corruption: 1 - mean(run["corrupted"][corruption] for run in configuration["runs"]) / n
            for corruption in configuration["runs"][0]["corrupted"]
        }
        for name, configuration in record["configurations"].items()
    }


def pareto_plot(
    record: dict, published: Mapping[str, tuple[float, float]] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the mean error on the corruptions against the error on clean images, in percent.

    `published`: name -> accuracy on clean images and mean accuracy on the corruptions, of others.
    """
    ax = ax or new_axes(9, 5)
    clean, corrupted = test_accuracies(record), corruption_errors(record)
    points = {
        name: (1 - mean(clean[name]), mean(corrupted[name].values()), BLUE)
        for name in record["configurations"]
    }
    points |= {name: (1 - a, 1 - b, GREY) for name, (a, b) in (published or {}).items()}
    ax.set(xscale="log", yscale="log")
    drawn: list[np.ndarray] = []
    for name, (x, y, colour) in points.items():
        ax.plot(100 * x, 100 * y, "o", color=colour, markersize=8)
        here = np.log([x, y])
        close = sum(bool((abs(here - there) < (0.4, 0.05)).all()) for there in drawn)
        drawn.append(here)
        offset = (9, 4 - 15 * close)  # labels of points that lie close are below each other
        ax.annotate(name, (100 * x, 100 * y), offset, textcoords="offset points", fontsize=9)
    ax.margins(x=0.16, y=0.1)
    ax.set_xticks(ticks := (0.3, 0.4, 0.5, 0.7, 1, 1.5, 2), [f"{t:g}%" for t in ticks])
    ax.set_yticks(ticks := (3, 5, 7, 10, 15, 20, 30), [f"{t:g}%" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="error on clean digits", ylabel="mean error on the fifteen corruptions")
    return ax
