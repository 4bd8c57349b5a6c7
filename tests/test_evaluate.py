import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from sklearn import metrics
from torch import nn

from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluate import Evaluation, compare, evaluate, paired_interval
from mnist_mlp.model import EnhancedNet


@pytest.fixture
def random_evaluation() -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (2003,), generator=generator)
    logits = torch.randn(2003, 10, generator=generator)
    logits[torch.arange(2003), labels] += 2.5
    return Evaluation(logits, labels, tuple("abcdefghij"))


def test_accuracy_loss_and_report_are_scikit_learns(random_evaluation):
    e = random_evaluation
    labels, predicted = e.labels.numpy(), e.logits.numpy().argmax(1)
    assert e.accuracy == metrics.accuracy_score(labels, predicted)
    assert e.n_correct == metrics.accuracy_score(labels, predicted, normalize=False)
    assert e.loss == pytest.approx(
        metrics.log_loss(labels, special.softmax(e.logits.double().numpy(), 1))
    )
    assert f"{metrics.f1_score(labels, predicted, average='macro'):.4f}" in e.report()


def test_the_rows_of_the_confusion_matrix_are_the_true_classes():
    labels = torch.tensor([0, 0, 0, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 0])
    e = Evaluation(torch.eye(3)[predicted], labels, tuple("abc"))
    assert e.confusion.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]


def test_the_interval_is_wilsons(random_evaluation):
    e = random_evaluation
    expected = stats.binomtest(e.n_correct, len(e.labels)).proportion_ci(0.95, "wilson")
    assert e.interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_calibration_is_that_of_counting_by_hand(random_evaluation):
    e = random_evaluation
    found = e.calibration(bins=10)
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
    assert e.calibration()["ece"] == pytest.approx(0.5)


def test_mistakes_are_all_that_is_wrong_the_most_confident_first(random_evaluation):
    e = random_evaluation
    found = e.mistakes()
    assert set(found.tolist()) == set(
        np.flatnonzero(e.logits.numpy().argmax(1) != e.labels.numpy())
    )
    confidence = e.logits.softmax(1).amax(1)[found]
    assert (confidence.diff() <= 0).all()


def test_the_logits_are_those_of_every_image_normalised_in_order():
    """More than one batch, the last one short: none may be dropped."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2051, 28, 28), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.zeros(2051, dtype=torch.int64))
    model = EnhancedNet()
    with torch.no_grad():
        expected = model((images / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(evaluate(model, dataset).logits, expected, atol=1e-5, rtol=1e-5)


def test_dropout_and_batch_norm_are_off_while_evaluating_and_on_again_after(toy):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(784, 10), nn.BatchNorm1d(10))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = evaluate(model, toy[0]), evaluate(model, toy[0])
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    model[0].eval()
    evaluate(model, toy[0])
    assert [module.training for module in model] == [False, True, True]
    assert not evaluate(model.eval(), toy[0]).logits.requires_grad
    assert not model.training


def test_compare_is_mcnemars_test_and_its_interval_agrees():
    a = torch.tensor([True] * 900 + [True] * 10 + [False] * 30 + [False] * 60)
    b = torch.tensor([True] * 900 + [False] * 10 + [True] * 30 + [False] * 60)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.02)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(10, 40, 0.5))
    assert 0 < found.low < 0.02 < found.high < 0.04
    back = compare(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-0.02, -found.high, -found.low))
    assert (found.verdict, back.verdict) == ("better", "worse")
    same = compare(a, a)
    assert (same.difference, same.p_value, same.verdict) == (0, 1, "not told apart")
    assert same.high == -same.low == pytest.approx(1.959964**2 / (1000 + 1.959964**2))


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 1, 44), (5, 5, 100), (3, 40, 5000)])
def test_at_the_intervals_ends_the_score_test_is_at_its_border(gained, lost, n):
    """With the likelihood maximised numerically under each end's difference."""
    for difference in paired_interval(gained, lost, n):

        def unlikely(share, difference=difference):  # share: of the pairs that are lost
            gains, rest = share + difference, 1 - 2 * share - difference
            return -(
                special.xlogy(gained, gains)
                + special.xlogy(lost, share)
                + special.xlogy(n - gained - lost, rest)
            )

        bounds = max(0.0, -difference), (1 - difference) / 2
        options = {"xatol": 1e-13}
        share = optimize.minimize_scalar(unlikely, bounds=bounds, options=options).x
        variance = (2 * share + difference - difference**2) / n
        z = abs((gained - lost) / n - difference) / variance**0.5
        assert z == pytest.approx(1.96, abs=0.002)


def coverage(n: int, gains: float, losses: float, draws: int = 2000) -> float:
    """How often the interval holds the true difference of two models, simulated."""
    random = np.random.default_rng(0)
    seen = random.multinomial(n, [gains, losses, 1 - gains - losses], draws)[:, :2]
    pairs, counts = np.unique(seen, axis=0, return_counts=True)
    held = 0
    for (gained, lost), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        low, high = paired_interval(gained, lost, n)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
        held += count * (low <= gains - losses <= high)
    return held / draws


@pytest.mark.parametrize("n", [120, 1000, 5000, 10_000])
@pytest.mark.parametrize(
    ("gains", "losses"),
    [(0.03, 0.02), (0.02, 0.002), (0.0, 0.2), (0.1, 0.1), (0.002, 0.002), (0.5, 0.05)],
)
def test_the_interval_of_a_comparison_holds_the_truth_19_times_in_20(n, gains, losses):
    assert coverage(n, gains, losses) >= 0.93


def test_all_lost_and_all_gained_end_at_the_bounds():
    low, high = paired_interval(0, 50, 50)
    assert low == -1
    assert high == pytest.approx(-(50 - 1.959964**2) / (50 + 1.959964**2), abs=1e-6)
    assert paired_interval(50, 0, 50) == pytest.approx((-high, -low))


def test_models_judged_on_different_images_are_not_compared():
    with pytest.raises(ValueError, match="same images, found 2 and 3"):
        compare(torch.ones(2).bool(), torch.ones(3).bool())


def test_the_temperature_undoes_a_too_sure_model():
    """Labels drawn from known probabilities, logits three times too large: found by a grid too."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    sure = Evaluation(3 * logits, labels, tuple("0123456789"))
    grid = torch.linspace(2, 4, 401)
    losses = [float(torch.nn.functional.cross_entropy(3 * logits / t, labels)) for t in grid]
    assert sure.temperature() == pytest.approx(float(grid[np.argmin(losses)]), abs=0.01)
    scaled = sure.scaled(sure.temperature())
    assert torch.equal(scaled.predicted, sure.predicted)
    assert scaled.calibration()["ece"] < 0.02 < 0.2 < sure.calibration()["ece"]


@pytest.mark.filterwarnings("error")
def test_the_report_has_a_line_for_each_class_the_missing_too():
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [0, 4, 0], [0, 0.5, 0]])
    found = Evaluation(logits, torch.tensor([0, 1, 1, 1]), ("ant", "bee", "cow"))
    lines = {line.split()[0]: line.split()[1:] for line in found.report().splitlines() if line}
    assert lines["ant"] == ["0.5000", "1.0000", "0.6667", "1"]
    assert lines["bee"] == ["1.0000", "0.6667", "0.8000", "3"]
    assert lines["cow"] == ["0.0000", "0.0000", "0.0000", "0"]


def test_a_certain_answer_lies_in_the_last_of_15_bins():
    logits = torch.tensor([[1000.0, 0], [4.0, 0], [0.0, 0.1]])  # 0.982014 is in the last one too
    found = Evaluation(logits, torch.tensor([0, 0, 0]), ("a", "b"))
    curve = found.calibration()
    assert curve["count"].tolist() == [1, 2]
    assert curve["confidence"].tolist() == pytest.approx([0.524979, (1 + 0.982014) / 2])
    assert curve["accuracy"].tolist() == [0, 1]
    assert curve["ece"] == pytest.approx((0.524979 + 2 * (1 - (1 + 0.982014) / 2)) / 3)
    many = Evaluation(torch.stack([torch.linspace(0, 5, 500), torch.zeros(500)], 1),
                      torch.zeros(500).long(), ("a", "b"))  # fmt: skip
    assert many.calibration()["count"].tolist() == many.calibration(15)["count"].tolist()


def test_the_temperature_stays_within_a_factor_of_20():
    logits = torch.tensor([[0.2, 0.0]] * 20)
    always = Evaluation(logits, torch.zeros(20).long(), ("a", "b"))
    never = Evaluation(logits, torch.ones(20).long(), ("a", "b"))
    assert always.temperature() == pytest.approx(math.exp(-3), rel=1e-2)
    assert never.temperature() == pytest.approx(math.exp(3), rel=1e-2)


def test_equally_confident_mistakes_come_in_order():
    found = Evaluation(torch.tensor([[1.0, 0.0]] * 300), torch.ones(300).long(), ("a", "b"))
    assert found.mistakes().tolist() == list(range(300))


def test_as_many_won_as_lost_is_no_difference_but_an_interval():
    a = torch.tensor([True] * 5 + [False] * 5 + [True] * 90)
    b = torch.tensor([False] * 5 + [True] * 5 + [True] * 90)
    found = compare(a, b)
    assert found.difference == 0
    assert found.low == pytest.approx(-found.high)
    assert 0.05 < found.high < 0.1
    assert found.p_value == 1
