"""Comparison of two models on the same images."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy of two models on the same images, `b` minus `a`.

    `difference` and its 95% confidence interval `low` to `high` are shares (0.01 = one percentage
    point). `p_value`: of McNemar's exact test, which decides the `verdict`. The test is the more
    cautious: the interval may barely exclude zero where the test finds no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> str:
        """Whether the second model is "better" or "worse", or "no significant difference"."""
        if self.p_value >= 0.05:
            return "no significant difference"
        return "better" if self.difference > 0 else "worse"

    def __str__(self) -> str:
        """Return the difference and its interval in percentage points."""
        points = [f"{100 * share:+.2f}" for share in (self.difference, self.low, self.high)]
        return f"{points[0]} [{points[1]}, {points[2]}]"


def compare(correct_a: torch.Tensor, correct_b: torch.Tensor) -> Comparison:
    """Return whether the second model is better than the first, from the same images.

    `correct_a`, `correct_b`: `Evaluation.correct` of each, bool of shape (N,). Only images on
    which the two disagree count. Raises ValueError if the lengths differ.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12 (1947).
    """
    from scipy.stats import binomtest

    n = len(correct_a)
    if n != len(correct_b):
        found = f"{n} and {len(correct_b)} images"
        raise ValueError(f"both models must be evaluated on the same images, found {found}.")
    gained, lost = int((correct_b & ~correct_a).sum()), int((correct_a & ~correct_b).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Comparison((gained - lost) / n, *paired_interval(gained, lost, n), p_value)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a difference of paired proportions, as shares of `n`.

    `gained`, `lost`: the number of pairs that only the second, and only the first, has right. The
    interval holds the differences that the score test does not reject.
    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998).
    """
    from scipy.optimize import brentq

    def lower(gained: int, lost: int) -> float:
        found = (gained - lost) / n

        def excess(difference: float) -> float:
            # The share of `lost` that is the most likely at this difference.
            a, b = 2 * n, (2 * n - gained + lost) * difference - gained - lost
            c = -lost * difference * (1 - difference)
            share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
            variance = n * (2 * share + difference * (1 - difference))
            return gained - lost - n * difference - 1.959964 * math.sqrt(max(0.0, variance))

        return brentq(excess, -1, found - 1e-12) if found > -1 else -1.0

    return lower(gained, lost), -lower(lost, gained)
