"""The comparison is McNemar's test with Tango's interval.

The interval covers the true difference 95% of the time.
"""

import pytest
import torch
from scipy import optimize, special, stats

from mnist_mlp.comparison import Comparison, compare, paired_interval


def correct(both: int, only_first: int, only_second: int, neither: int):
    """Return which images two models have right, bool of shape (N,) each."""
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return torch.tensor(first), torch.tensor(second)


def test_compare_is_mcnemars_exact_test():
    first, second = correct(900, 10, 30, 60)

    comparison = compare(first, second)
    swapped = compare(second, first)

    assert comparison.difference == pytest.approx(0.02)
    assert comparison.p_value == pytest.approx(2 * stats.binom.cdf(10, 40, 0.5))
    assert 0 < comparison.low < 0.02 < comparison.high < 0.04
    assert (swapped.low, swapped.high) == pytest.approx((-comparison.high, -comparison.low))
    assert (comparison.verdict, swapped.verdict) == ("better", "worse")


def test_compare_of_identical_models_has_an_interval_around_zero():
    first, _ = correct(900, 10, 30, 60)
    comparison = compare(first, first)

    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.verdict == "no significant difference"
    assert comparison.high == pytest.approx(1.959964**2 / (1000 + 1.959964**2))
    assert comparison.low == -comparison.high


def test_compare_refuses_models_evaluated_on_different_images():
    for shape in ((3,), (2, 1), (2, 2)):
        with pytest.raises(ValueError, match="the same images"):
            compare(torch.ones(2).bool(), torch.ones(shape).bool())
    with pytest.raises(ValueError, match="one value per image"):
        compare(torch.ones(2, 2).bool(), torch.ones(2, 2).bool())


def test_compare_refuses_predictions_in_place_of_what_is_correct():
    with pytest.raises(TypeError, match="correct"):
        compare(torch.arange(3), torch.arange(3))


def test_comparison_is_shown_in_percentage_points():
    assert str(Comparison(0.001, -0.0012, 0.00324, 0.4)) == "+0.10 [-0.12, +0.32]"


def score(difference: float, gained: int, lost: int, n: int) -> float:
    """Return Tango's score at a difference, with a likelihood that is maximised numerically."""

    def negative_log_likelihood(share_lost: float) -> float:
        share_gained = share_lost + difference
        share_equal = 1 - share_lost - share_gained
        return -(
            special.xlogy(gained, share_gained)
            + special.xlogy(lost, share_lost)
            + special.xlogy(n - gained - lost, share_equal)
        )

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    optimum = optimize.minimize_scalar(
        negative_log_likelihood, bounds=bounds, options={"xatol": 1e-13}
    )
    variance = (2 * optimum.x + difference - difference**2) / n
    return ((gained - lost) / n - difference) / variance**0.5


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 1, 44), (5, 5, 100), (3, 40, 5000)])
def test_interval_ends_where_the_score_test_is_significant(gained, lost, n):
    low, high = paired_interval(gained, lost, n)
    assert score(low, gained, lost, n) == pytest.approx(1.96, abs=0.002)
    assert score(high, gained, lost, n) == pytest.approx(-1.96, abs=0.002)


def test_interval_of_all_lost_or_all_gained_ends_at_the_bound():
    low, high = paired_interval(0, 50, 50)
    assert low == -1
    assert high == pytest.approx(-(50 - 1.959964**2) / (50 + 1.959964**2), abs=1e-6)
    assert paired_interval(50, 0, 50) == pytest.approx((-high, -low))


def test_verdict_needs_a_p_value_below_five_percent():
    assert Comparison(0.01, 0.0, 0.02, p_value=0.049).verdict == "better"
    assert Comparison(0.01, 0.0, 0.02, p_value=0.051).verdict == "no significant difference"
