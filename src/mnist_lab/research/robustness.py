"""Robustness: the errors on MNIST-C's corruptions in the record of `make ablation`."""

from collections.abc import Mapping
from statistics import mean

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mnist_lab.research.ablation import test_accuracies
from mnist_lab.research.corruptions import CORRUPTIONS
from mnist_mlp.plots import BLUE, GREY, new_axes

# For each corruption, the strong augmentation that resembles it most.
SEEN_IN_TRAINING = {
    "shot_noise": "noise",
    "impulse_noise": "the same noise",
    "glass_blur": "random convolution",
    "motion_blur": "random convolution",
    "shear": "a wide warp",
    "scale": "a wide warp",
    "rotate": "a wide warp",
    "brightness": "contrast and black level",
    "translate": "a wide warp",
    "stripe": "inverted rectangles",
    "fog": "smooth fields",
    "spatter": "",
    "dotted_line": "straight strokes",
    "zigzag": "straight strokes",
    "canny_edges": "random convolution, threshold",
}


def corruption_errors(record: dict) -> dict[str, dict[str, float]]:
    """Return each configuration's mean test error on each corruption, from 0 to 1."""
    errors: dict[str, dict[str, float]] = {}
    for name, configuration in record["configurations"].items():
        errors[name] = {}
        for corruption in CORRUPTIONS:
            mean_correct = mean(run["corrupted"][corruption] for run in configuration["runs"])
            errors[name][corruption] = 1 - mean_correct / record["test_images"]
    return errors


def robustness_table(record: dict) -> pd.DataFrame:
    """Return the mean accuracy of the best and of the robust network on each corruption.

    The last column names what the robust network has seen in training that resembles the
    corruption.
    """
    clean = test_accuracies(record)
    errors = corruption_errors(record)
    columns = {}
    for name in (record["best"], record["robust"]):
        corrupted = [1 - errors[name][corruption] for corruption in CORRUPTIONS]
        accuracies = [mean(clean[name]), *corrupted, 1 - mean(errors[name].values())]
        columns[name] = [f"{accuracy:.1%}" for accuracy in accuracies]
    seen = [SEEN_IN_TRAINING[corruption] for corruption in CORRUPTIONS]
    columns["seen in training"] = ["", *seen, ""]

    corruptions = [name.replace("_", " ") for name in CORRUPTIONS]
    index = pd.Index(["none", *corruptions, "mean of the fifteen"], name="corruption")
    return pd.DataFrame(columns, index=index)


def pareto_plot(
    record: dict, published: Mapping[str, tuple[float, float]] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the mean error on the corruptions against the error on clean images, in percent.

    Args:
        record: The record of `make ablation`.
        published: For each published network, its accuracy on clean images and its mean accuracy
            on the corruptions, from 0 to 1.
        ax: Where to draw; None draws on new axes.
    """
    ax = ax or new_axes(9, 5)
    clean = test_accuracies(record)
    errors = corruption_errors(record)
    points = {}
    for name in record["configurations"]:
        points[name] = (1 - mean(clean[name]), mean(errors[name].values()), BLUE)
    for name, (clean_accuracy, corrupted_accuracy) in (published or {}).items():
        points[name] = (1 - clean_accuracy, 1 - corrupted_accuracy, GREY)

    ax.set(xscale="log", yscale="log")
    label_size = (0.4, 0.05)  # width and height, as natural logarithms of the errors
    drawn: list[np.ndarray] = []
    for name, (x, y, colour) in points.items():
        ax.plot(100 * x, 100 * y, "o", color=colour, markersize=8)

        # Labels of points that lie close together stand below each other.
        point = np.log([x, y])
        n_close = 0
        for other in drawn:
            labels_overlap = (abs(point - other) < label_size).all()  # in width and in height
            if labels_overlap:
                n_close += 1
        drawn.append(point)
        offset = (9, 4 - 15 * n_close)  # in points: right and up
        ax.annotate(name, (100 * x, 100 * y), offset, textcoords="offset points", fontsize=9)

    ax.margins(x=0.16, y=0.1)
    clean_ticks = (0.3, 0.4, 0.5, 0.7, 1, 1.5, 2)
    corrupted_ticks = (3, 5, 7, 10, 15, 20, 30)
    ax.set_xticks(clean_ticks, [f"{tick:g}%" for tick in clean_ticks])
    ax.set_yticks(corrupted_ticks, [f"{tick:g}%" for tick in corrupted_ticks])
    ax.minorticks_off()
    ax.set(xlabel="error on clean digits", ylabel="mean error on the fifteen corruptions")
    return ax
