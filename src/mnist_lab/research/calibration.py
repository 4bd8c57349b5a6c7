"""Calibration: how far one can trust the probabilities that a network predicts."""

import math
import warnings
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

    The confidence is the highest probability of an image. It falls into one of `bins` bins of
    equal width between 0 and 1; the curve leaves out empty bins.

    Returns:
        `confidence` and `accuracy`: the means of each bin, float64 from 0 to 1.
        `count`: the number of images in each bin.
        `ece`: the mean of |accuracy - confidence|, weighted by `count`.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    confidence = evaluation.probabilities.amax(dim=1).double().numpy()
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    nonempty = count > 0
    count = count[nonempty]

    def mean_per_bin(values: np.ndarray) -> np.ndarray:
        return np.bincount(bin_index, weights=values, minlength=bins)[nonempty] / count

    mean_confidence = mean_per_bin(confidence)
    accuracy = mean_per_bin(evaluation.correct.numpy())
    ece = float((np.abs(accuracy - mean_confidence) * count).sum() / count.sum())
    return {"confidence": mean_confidence, "accuracy": accuracy, "count": count, "ece": ece}


def fit_temperature(evaluation: Evaluation) -> float:
    """Return the temperature that minimises the loss; above 1, the model is overconfident.

    Fit it on validation images, never on test images. The search covers temperatures from 1/20
    to 20. Warns if the best one lies at an end, as it does if no image is misclassified: then the
    images do not tell the temperature. Source: Guo et al., as for `calibration`.
    """

    def loss(log_temperature: float) -> float:
        return with_temperature(evaluation, math.exp(log_temperature)).loss

    log_temperature = minimize_scalar(loss, bounds=(-3, 3)).x
    if abs(log_temperature) > 2.99:
        warnings.warn(
            f"these {len(evaluation.labels):,} images, {evaluation.n_correct:,} of them correct, "
            "do not tell the temperature: use more images, or leave the logits as they are.",
            stacklevel=2,
        )
    return math.exp(log_temperature)


def with_temperature(evaluation: Evaluation, temperature: float) -> Evaluation:
    """Return the evaluation with its logits divided by `temperature`; no prediction changes.

    Raises ValueError if the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature!r}.")
    return replace(evaluation, logits=evaluation.logits / temperature)


def reliability_curve(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence; each bin is labelled with its number of images.

    The vertical lines are the 95% intervals of the accuracy.
    """
    ax = ax or new_axes(6.4, 4.6)
    curve = calibration(evaluation)
    confidence = curve["confidence"]
    accuracy = curve["accuracy"]
    count = curve["count"]

    intervals = []
    for bin_accuracy, n in zip(accuracy, count, strict=True):
        intervals.append(wilson_interval(round(bin_accuracy * n), int(n)))
    lows = [low for low, _ in intervals]
    highs = [high for _, high in intervals]

    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    ax.vlines(confidence, lows, highs, color=BLUE, alpha=0.4)
    ax.scatter(confidence, accuracy, s=20 + 40 * np.log10(count), color=BLUE, label="this model")

    for x, high, n in zip(confidence, highs, count, strict=True):
        # The largest bin lies in the upper right corner, where only the space beside it is free.
        if n == count.max():
            ax.text(x + 0.025, 0.95, f"{n:,}", ha="left", fontsize=9)
        else:
            ax.text(x, high + 0.015, f"{n:,}", ha="center", fontsize=9)

    ax.set(
        xlabel="confidence (highest probability)",
        ylabel="accuracy",
        xlim=(0, 1.12),
        ylim=(-0.03, 1.08),
    )
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)  # below, on no point
    return ax
