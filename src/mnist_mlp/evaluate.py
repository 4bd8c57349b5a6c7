"""Compute the logits once; everything that is said about a model derives from them."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mnist_mlp.data import ImageDataset, loader


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """Return the 95% confidence interval of a share, as two numbers from 0 to 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).
    """
    share, z = successes / trials, 1.959964
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    )
    return centre - half, centre + half


@dataclass(frozen=True)
class Evaluation:
    """A model's logits on a data set beside the true labels, and what follows from them.

    `logits`: float32 of shape (N, C). `labels`: int64 of shape (N,). `classes`: C names.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """Class probabilities, float32 of shape (N, C)."""
        return self.logits.softmax(dim=1)

    @cached_property
    def predicted(self) -> torch.Tensor:
        """The most probable class of each image, int64 of shape (N,)."""
        return self.logits.argmax(dim=1)

    @cached_property
    def correct(self) -> torch.Tensor:
        """Whether each image was classified correctly, bool of shape (N,)."""
        return self.predicted == self.labels

    @property
    def n_correct(self) -> int:
        """Number of images classified correctly."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images classified correctly, from 0 to 1."""
        return self.n_correct / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the accuracy, Wilson's."""
        return wilson_interval(self.n_correct, len(self.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the images, in nats."""
        return float(F.cross_entropy(self.logits, self.labels))

    @property
    def confusion(self) -> np.ndarray:
        """Counts of shape (C, C): row = true class, column = predicted class."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes)))

    def report(self) -> str:
        """Return precision, recall and F1 of each class as a text table."""
        from sklearn.metrics import classification_report

        ids = range(len(self.classes))
        return classification_report(
            self.labels, self.predicted, labels=ids, target_names=self.classes, digits=4,
            zero_division=0,
        )  # fmt: skip

    def calibration(self, bins: int = 15) -> dict[str, np.ndarray | float]:
        """Return the reliability curve and the expected calibration error (ECE).

        The confidences, from 0 to 1, are cut into `bins` equal widths. Of the bins that are not
        empty: `confidence` and `accuracy`, their means, and `count`, their sizes; `ece`, the mean
        of |accuracy - confidence| weighted by size.
        Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
        """
        confidence = self.probabilities.amax(dim=1).double().numpy()
        bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
        count = np.bincount(bin_of, minlength=bins)
        full = count > 0
        mean = [
            np.bincount(bin_of, weights=of, minlength=bins)[full] / count[full]
            for of in (confidence, self.correct.numpy())
        ]
        ece = float((np.abs(mean[1] - mean[0]) * count[full]).sum() / count.sum())
        return {"confidence": mean[0], "accuracy": mean[1], "count": count[full], "ece": ece}

    def temperature(self) -> float:
        """Return the number that the logits are to be divided by for the smallest loss.

        To be found on validation images and used on others, see `scaled`; above 1 for a model that
        is too sure of itself. Source: Guo et al., as for `calibration`.
        """
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(lambda t: self.scaled(math.exp(t)).loss, bounds=(-3, 3))
        return math.exp(found.x)

    def scaled(self, temperature: float) -> "Evaluation":
        """Return the evaluation with the logits divided by `temperature`: equal answers."""
        return replace(self, logits=self.logits / temperature)

    def mistakes(self) -> torch.Tensor:
        """Return the indices of the wrongly classified images, the most confident first."""
        wrong = (~self.correct).nonzero()[:, 0]
        confidence = self.probabilities[wrong].amax(dim=1)
        return wrong[confidence.argsort(descending=True, stable=True)]


@torch.inference_mode()
def evaluate(model: nn.Module, dataset: ImageDataset) -> Evaluation:
    """Return the model's evaluation on every image of the data set, in order, as it is.

    The model is in evaluation mode meanwhile, and each of its modules afterwards as it was. The
    data set's own `augment` is not called.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        dataset = replace(dataset, augment=None)
        logits = torch.cat([model(images).float() for images, *_ in loader(dataset)])
    finally:
        for module, training in modes.items():
            module.training = training
    return Evaluation(logits.cpu(), dataset.labels.cpu(), dataset.classes)


def check_model(model: nn.Module, dataset: ImageDataset) -> None:
    """Raise TypeError or ValueError, in one sentence, if the model cannot classify these images."""
    images = dataset.subset(torch.arange(min(2, len(dataset)))).images.flatten(1).float()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the model must take images of shape {tuple(images.shape)}, the pixels in a row: if "
            f"it wants a square, begin its forward with x.view(-1, 1, 28, 28). It said: {reason}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"the model must return logits, a tensor of shape (N, {len(dataset.classes)}), found "
            f"a {type(logits).__name__}."
        )
    if logits.shape[1:] != (len(dataset.classes),):
        raise ValueError(
            f"the model must return logits of shape (N, {len(dataset.classes)}), one a class, "
            f"found (N, {', '.join(map(str, logits.shape[1:]))})."
        )


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy of two models on the same images, `b` minus `a`.

    `difference` and its 95% interval `low` to `high` are shares (0.01 = one percentage point).
    `p_value` is that of McNemar's exact test of "no difference", which decides the `verdict`. That
    test is the more cautious: at the border the interval may leave out zero where it finds nothing.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> str:
        """What the second model is compared with the first: "better", "worse", "not told apart"."""
        if self.p_value >= 0.05:
            return "not told apart"
        return "better" if self.difference > 0 else "worse"


def compare(correct_a: torch.Tensor, correct_b: torch.Tensor) -> Comparison:
    """Return whether the second model is better than the first, from the same images.

    `correct_a`, `correct_b`: `Evaluation.correct` of each, bool of shape (N,). Only images on
    which the two disagree tell them apart. Raises ValueError if the lengths differ.
    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12 (1947); for the interval `paired_interval`.
    """
    from scipy.stats import binomtest

    if len(correct_a) != len(correct_b):
        found = f"{len(correct_a)} and {len(correct_b)} images"
        raise ValueError(f"both models must be judged on the same images, found {found}.")
    n = len(correct_a)
    gained, lost = int((correct_b & ~correct_a).sum()), int((correct_a & ~correct_b).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Comparison((gained - lost) / n, *paired_interval(gained, lost, n), p_value)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a difference of paired proportions, as shares of `n`.

    `gained`, `lost`: on how many of the `n` pairs the second alone, and the first alone, is right.
    The interval holds those differences that the score test would not reject.
    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998).
    """
    from scipy.optimize import brentq

    z = 1.959964

    def lower(gained: int, lost: int) -> float:
        found = (gained - lost) / n

        def excess(difference: float) -> float:
            # The share of `lost` that is likeliest if this were the difference.
            a, b = 2 * n, (2 * n - gained + lost) * difference - gained - lost
            c = -lost * difference * (1 - difference)
            share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
            variance = n * (2 * share + difference * (1 - difference))
            return gained - lost - n * difference - z * math.sqrt(max(0.0, variance))

        return brentq(excess, -1, found - 1e-12) if found > -1 else -1.0

    return lower(gained, lost), -lower(lost, gained)
