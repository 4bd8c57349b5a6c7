import math

import numpy as np
import pytest
import torch

from mnist_lab.research.calibration import calibration, fit_temperature, with_temperature
from mnist_mlp.evaluation import Evaluation


def test_calibration_is_that_of_counting_by_hand(random_evaluation):
    e = random_evaluation
    found = calibration(e, bins=10)
    bins = {}
    for logits, label in zip(e.logits.double(), e.labels.tolist(), strict=True):
        p = torch.exp(logits) / torch.exp(logits).sum()
        bins.setdefault(int(float(p.max()) * 10), []).append(
            (float(p.max()), int(p.argmax()) == label)
        )
    means = [np.mean(bins[b], axis=0) for b in sorted(bins)]
    counts = [len(bins[b]) for b in sorted(bins)]
    np.testing.assert_allclose(
        np.stack([found["confidence"], found["accuracy"]], 1), means, atol=1e-6
    )
    assert found["count"].tolist() == counts
    assert found["ece"] == pytest.approx(
        sum(n * abs(c - a) for n, (c, a) in zip(counts, means, strict=True)) / 2003, abs=1e-6
    )


def test_a_model_that_is_always_sure_and_half_wrong_has_an_ece_of_a_half():
    logits = torch.tensor([[99.0, 0.0]] * 4)
    e = Evaluation(logits, torch.tensor([0, 1, 0, 1]), tuple("ab"))
    assert calibration(e)["ece"] == pytest.approx(0.5)


def test_the_temperature_undoes_a_too_sure_model():
    """Labels drawn from known probabilities, logits three times too large: found by a grid too."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    sure = Evaluation(3 * logits, labels, tuple("0123456789"))
    grid = torch.linspace(2, 4, 401)
    losses = [float(torch.nn.functional.cross_entropy(3 * logits / t, labels)) for t in grid]
    assert fit_temperature(sure) == pytest.approx(float(grid[np.argmin(losses)]), abs=0.01)
    scaled = with_temperature(sure, fit_temperature(sure))
    assert torch.equal(scaled.predicted, sure.predicted)
    assert calibration(scaled)["ece"] < 0.02 < 0.2 < calibration(sure)["ece"]


def test_a_certain_prediction_lies_in_the_last_of_15_bins():
    logits = torch.tensor([[1000.0, 0], [4.0, 0], [0.0, 0.1]])  # 0.982014 is in the last one too
    found = Evaluation(logits, torch.tensor([0, 0, 0]), ("a", "b"))
    curve = calibration(found)
    assert curve["count"].tolist() == [1, 2]
    assert curve["confidence"].tolist() == pytest.approx([0.524979, (1 + 0.982014) / 2])
    assert curve["accuracy"].tolist() == [0, 1]
    assert curve["ece"] == pytest.approx((0.524979 + 2 * (1 - (1 + 0.982014) / 2)) / 3)
    many = Evaluation(torch.stack([torch.linspace(0, 5, 500), torch.zeros(500)], 1),
                      torch.zeros(500).long(), ("a", "b"))  # fmt: skip
    assert calibration(many)["count"].tolist() == calibration(many, 15)["count"].tolist()


def test_the_temperature_stays_within_a_factor_of_20():
    logits = torch.tensor([[0.2, 0.0]] * 20)
    always = Evaluation(logits, torch.zeros(20).long(), ("a", "b"))
    never = Evaluation(logits, torch.ones(20).long(), ("a", "b"))
    assert fit_temperature(always) == pytest.approx(math.exp(-3), rel=1e-2)
    assert fit_temperature(never) == pytest.approx(math.exp(3), rel=1e-2)
