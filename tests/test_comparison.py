import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from mnist_mlp.comparison import Comparison, compare, paired_interval


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
    assert (same.difference, same.p_value, same.verdict) == (0, 1, "no significant difference")
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
    covered = 0
    for (gained, lost), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        low, high = paired_interval(gained, lost, n)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
        covered += count * (low <= gains - losses <= high)
    return covered / draws


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


def test_models_evaluated_on_different_images_are_not_compared():
    with pytest.raises(ValueError, match="same images, found 2 and 3"):
        compare(torch.ones(2).bool(), torch.ones(3).bool())


def test_as_many_won_as_lost_is_no_difference_but_an_interval():
    a = torch.tensor([True] * 5 + [False] * 5 + [True] * 90)
    b = torch.tensor([False] * 5 + [True] * 5 + [True] * 90)
    found = compare(a, b)
    assert found.difference == 0
    assert found.low == pytest.approx(-found.high)
    assert 0.05 < found.high < 0.1
    assert found.p_value == 1


def test_a_comparison_is_shown_in_percentage_points_with_its_interval():
    assert str(Comparison(0.001, -0.0012, 0.00324, 0.4)) == "+0.10 [-0.12, +0.32]"
    assert str(Comparison(-0.25, -0.3, -0.2, 1e-9)) == "-25.00 [-30.00, -20.00]"
