"""Confidence is binned as in Guo et al., and one temperature corrects an overconfident model."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist_lab.research.calibration import calibration, fit_temperature, with_temperature
from mnist_mlp.evaluation import Evaluation


def test_calibration_matches_loop_over_images(random_evaluation):
    images_per_bin: dict[int, list] = {}
    logits = random_evaluation.logits.double().numpy()
    for image_logits, label in zip(logits, random_evaluation.labels.tolist(), strict=True):
        probabilities = np.exp(image_logits) / np.exp(image_logits).sum()
        confidence = probabilities.max()
        is_correct = probabilities.argmax() == label
        images_per_bin.setdefault(int(confidence * 10), []).append((confidence, is_correct))
    bins = [np.mean(images_per_bin[index], axis=0) for index in sorted(images_per_bin)]
    counts = [len(images_per_bin[index]) for index in sorted(images_per_bin)]
    gaps = [abs(accuracy - confidence) for confidence, accuracy in bins]

    curve = calibration(random_evaluation, bins=10)

    assert curve["confidence"] == pytest.approx([confidence for confidence, _ in bins], abs=1e-6)
    assert curve["accuracy"] == pytest.approx([accuracy for _, accuracy in bins], abs=1e-6)
    assert curve["count"].tolist() == counts
    assert curve["ece"] == pytest.approx(np.average(gaps, weights=counts), abs=1e-6)


def test_calibration_puts_full_confidence_into_last_of_15_bins():
    logits = torch.tensor([[1000.0, 0], [4.0, 0], [0.0, 0.1]])  # confidences 1, 0.982014, 0.524979

    curve = calibration(Evaluation(logits, torch.tensor([0, 0, 0]), ("a", "b")))

    assert curve["count"].tolist() == [1, 2]
    assert curve["confidence"].tolist() == pytest.approx([0.524979, 0.991007])
    assert curve["accuracy"].tolist() == [0, 1]
    assert curve["ece"] == pytest.approx((0.524979 + 2 * (1 - 0.991007)) / 3)


def test_fit_temperature_corrects_overconfident_model():
    """The logits are three times too large for their labels; a grid search is the oracle."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    overconfident = Evaluation(3 * logits, labels, tuple("0123456789"))
    grid = torch.linspace(2.5, 3.5, 101)
    losses = [float(F.cross_entropy(3 * logits / temperature, labels)) for temperature in grid]

    temperature = fit_temperature(overconfident)
    scaled = with_temperature(overconfident, temperature)

    assert temperature == pytest.approx(float(grid[np.argmin(losses)]), abs=0.01)
    assert torch.equal(scaled.predicted, overconfident.predicted)
    assert calibration(overconfident)["ece"] > 0.2
    assert calibration(scaled)["ece"] < 0.03


@pytest.mark.parametrize(("label", "temperature"), [(0, math.exp(-3)), (1, math.exp(3))])
def test_fit_temperature_is_bounded_and_says_so(label, temperature):
    """Always right or always wrong: the loss would fall for ever."""
    logits = torch.tensor([[0.2, 0.0]] * 20)
    evaluation = Evaluation(logits, torch.full((20,), label), ("a", "b"))

    with pytest.warns(UserWarning, match="temperature"):
        assert fit_temperature(evaluation) == pytest.approx(temperature, rel=1e-2)


def test_temperature_must_be_positive(random_evaluation):
    with pytest.raises(ValueError, match="temperature"):
        with_temperature(random_evaluation, 0.0)
