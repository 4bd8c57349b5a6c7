"""Calibration: how far predicted probabilities can be trusted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from scipy.optimize import minimize_scalar

from mnist_mlp.evaluation import Evaluation, wilson_interval
from mnist_mlp.plots import BLUE, GREY, new_axes


def calibration(evaluation: Evaluation, bins: int = 15) -> dict[str, Any]:
    """Return the reliability curve and the expected calibration error (ECE).

    The confidences, from 0 to 1, are cut into `bins` of equal width. For the bins that are not
    empty: `confidence` and `accuracy`, their means, and `count`, their sizes; `ece`, the mean of
    |accuracy - confidence| weighted by size.
    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    confidence = evaluation.probabilities.amax(dim=1).double().numpy()
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    full = count > 0
    count = count[full]

    def mean_by_bin(values: np.ndarray) -> np.ndarray:
        return np.bincount(bin_of, weights=values, minlength=bins)[full] / count

    mean_confidence = mean_by_bin(confidence)
    accuracy = mean_by_bin(evaluation.correct.numpy())
    ece = float((np.abs(accuracy - mean_confidence) * count).sum() / count.sum())
    return {"confidence": mean_confidence, "accuracy": accuracy, "count": count, "ece": ece}


def fit_temperature(evaluation: Evaluation) -> float:
    """Return the temperature that minimises the loss: above 1 for an overconfident model.

    To be fitted on validation images. Source: Guo et al., as for `calibration`.
    """

    def loss(log_temperature: float) -> float:
        return with_temperature(evaluation, math.exp(log_temperature)).loss

    return math.exp(minimize_scalar(loss, bounds=(-3, 3)).x)


def with_temperature(evaluation: Evaluation, temperature: float) -> Evaluation:
    """Return the evaluation with the logits divided by `temperature`; no prediction changes."""
    return replace(evaluation, logits=evaluation.logits / temperature)


def reliability_curve(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw accuracy with its 95% interval against confidence; numbers count the images."""
    ax = ax or new_axes(6.4, 4.6)
    curve = calibration(evaluation)
    confidence = curve["confidence"]
    accuracy = curve["accuracy"]
    count = curve["count"]

    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    intervals = [
        wilson_interval(round(a * n), int(n)) for a, n in zip(accuracy, count, strict=True)
    ]
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
