"""Compute the logits once; every metric and comparison derives from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mnist_mlp.data import ImageDataset, batches, check_dataset


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion, Wilson's, as numbers from 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Evaluation:
    """A model's logits on a data set, the true labels, and the metrics derived from them.

    Attributes:
        logits: float32 of shape (N, C).
        labels: int64 of shape (N,).
        classes: C names.
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

        return classification_report(
            self.labels,
            self.predicted,
            labels=range(len(self.classes)),
            target_names=self.classes,
            digits=4,
            zero_division=0,
        )

    def misclassified(self) -> torch.Tensor:
        """Return the indices of the wrongly classified images, the most confident first."""
        wrong = (~self.correct).nonzero()[:, 0]
        confidence = self.probabilities[wrong].amax(dim=1)
        return wrong[confidence.argsort(descending=True, stable=True)]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put the model into evaluation mode without gradients; afterwards restore each module's mode.

    Yields the device of the model.
    """
    training_modes = {module: module.training for module in model.modules()}
    model.eval()

    try:
        with torch.inference_mode():
            yield device_of(model)
    finally:
        for module, training in training_modes.items():
            module.training = training


def evaluate(model: nn.Module, dataset: ImageDataset) -> Evaluation:
    """Return the model's evaluation on every image of the data set, in order, unaugmented.

    The model is evaluated in evaluation mode; each module's mode is restored afterwards.

    Raises:
        TypeError: The model is not a network, or the data set is not an ImageDataset.
    """
    check_network(model)
    check_dataset("dataset", dataset)

    logits = []
    with evaluation_mode(model) as device:
        for images, _, _ in batches(dataset):
            logits.append(model(images.to(device)).float())

    return Evaluation(torch.cat(logits).cpu(), dataset.labels.cpu(), dataset.classes)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def check_network(model: nn.Module) -> None:
    """Raise TypeError if the model is not a network, but for example its class."""
    if isinstance(model, type):
        raise TypeError(
            f"model must be a network, found the class {model.__name__}: "
            f"did you mean {model.__name__}()?"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, found {type(model).__name__}.")


def check_model(model: nn.Module, dataset: ImageDataset) -> None:
    """Raise TypeError or ValueError if the model cannot classify the images of the data set."""
    images = dataset.images[:2].flatten(1).float()
    try:
        with evaluation_mode(model):
            logits = model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the model must take images of shape {tuple(images.shape)}. If it needs squares, "
            f"begin its forward with x.view(-1, 1, 28, 28). It raised: {reason}"
        ) from error

    expected = f"the model must return logits of shape (N, {len(dataset.classes)})"
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{expected}, a tensor, found a {type(logits).__name__}.")
    if logits.shape[1:] != (len(dataset.classes),):
        raise ValueError(f"{expected}, one per class, found the shape {tuple(logits.shape)}.")
