"""Comparison of two models on the same images."""

import math
from dataclasses import dataclass

import torch

Z_95 = 1.959964  # 95% of a normal distribution lie within 1.96 standard deviations


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy of two models on the same images.

    Attributes:
        difference: The accuracy of the second model minus that of the first (0.01 is one
            percentage point).
        low: The lower end of the 95% confidence interval of the difference.
        high: The upper end.
        p_value: The p-value of McNemar's exact test, which decides the verdict. The test is
            slightly more cautious than the interval: where it finds no significant difference, the
            interval can still just exclude zero.
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
        return f"{100 * self.difference:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def compare(correct_a: torch.Tensor, correct_b: torch.Tensor) -> Comparison:
    """Compare the accuracy of two models on the same images.

    Only images that exactly one of the two models classifies correctly count.

    Args:
        correct_a: `Evaluation.correct` of the first model, bool of shape (N,).
        correct_b: `Evaluation.correct` of the second model, of the same shape.

    Raises:
        TypeError: An argument is not a tensor of bools.
        ValueError: The shapes differ, or are not one value per image.

    Example:
        >>> before = evaluate(old_model, splits.validation)
        >>> after = evaluate(new_model, splits.validation)
        >>> print(compare(before.correct, after.correct))
        +0.12 [-0.05, +0.29]

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12 (1947).
    """
    from scipy.stats import binomtest  # here, because it takes time to import

    for correct in (correct_a, correct_b):
        if not isinstance(correct, torch.Tensor) or correct.dtype != torch.bool:
            raise TypeError(
                "compare takes two tensors of bools, Evaluation.correct, "
                f"found a {type(correct).__name__}."
            )

    if correct_a.shape != correct_b.shape or correct_a.ndim != 1:
        raise ValueError(
            "both models must be evaluated on the same images, one value per image, found the "
            f"shapes {tuple(correct_a.shape)} and {tuple(correct_b.shape)}."
        )
    n = len(correct_a)

    gained = int((correct_b & ~correct_a).sum())
    lost = int((correct_a & ~correct_b).sum())

    p_value = 1.0
    if gained + lost > 0:
        p_value = float(binomtest(gained, gained + lost).pvalue)

    low, high = paired_interval(gained, lost, n)
    return Comparison((gained - lost) / n, low, high, p_value)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95% confidence interval of the difference of two paired proportions.

    The interval contains the differences that Tango's score test does not reject.

    Args:
        gained: The number of pairs in which only the second is a success.
        lost: The number of pairs in which only the first is a success.
        n: The number of pairs.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998).
    """
    # The upper end is the lower end with both roles exchanged.
    return lower_limit(gained, lost, n), -lower_limit(lost, gained, n)


def lower_limit(gained: int, lost: int, n: int) -> float:
    """Return the smallest difference that the score test does not reject."""
    from scipy.optimize import brentq

    observed = (gained - lost) / n
    if observed == -1:
        return -1.0

    def excess(difference: float) -> float:
        """Return by how many pairs the test rejects this difference; negative: not rejected."""
        # The likeliest probability of a lost pair, given this difference, solves
        # a q^2 + b q + c = 0.
        a = 2 * n
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)

        variance = n * (2 * q + difference * (1 - difference))
        return gained - lost - n * difference - Z_95 * math.sqrt(max(0.0, variance))

    # brentq needs a change of sign, and at the observed difference the excess may be exactly 0.
    return brentq(excess, -1, observed - 1e-12)
