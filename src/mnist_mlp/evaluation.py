"""Evaluation: the logits of a model on a data set, and every metric that follows from them."""

import math
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
    """Return Wilson's 95% confidence interval of a proportion, as numbers from 0 to 1."""
    from scipy.stats import binomtest  # here, because it takes time to import

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's logits on a data set, the true labels, and the metrics derived from them.

    Attributes:
        logits: float32 of shape (N, classes).
        labels: The true classes, int64 of shape (N,).
        classes: The name of each class.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """The probability of each class, float32 of shape (N, classes)."""
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
        """How many images were classified correctly."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of the images that were classified correctly, from 0 to 1."""
        return self.n_correct / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% confidence interval of the accuracy."""
        return wilson_interval(self.n_correct, len(self.labels))

    @property
    def loss(self) -> float:
        """The mean cross-entropy over the images, in nats."""
        return float(F.cross_entropy(self.logits, self.labels))

    @property
    def confusion(self) -> np.ndarray:
        """Counts of shape (classes, classes). Rows are true classes, columns predicted ones."""
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
        """Return the indices of the misclassified images, the most confident ones first."""
        wrong = (~self.correct).nonzero()[:, 0]
        confidence = self.probabilities[wrong].amax(dim=1)
        return wrong[confidence.argsort(descending=True, stable=True)]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put the model into evaluation mode, without gradients, and yield its device.

    Afterwards each module is in the mode that it was in before.
    """
    training_modes = {module: module.training for module in model.modules()}
    model.eval()

    try:
        # Not inference_mode: what a lazy layer or a cache creates here could not be trained then.
        with torch.no_grad():
            yield device_of(model)
    finally:
        for module, training in training_modes.items():
            module.training = training


def evaluate(model: nn.Module, dataset: ImageDataset) -> Evaluation:
    """Classify every image of the data set, in order and without augmentation.

    Runs the model in evaluation mode, then restores the mode of each module.

    Args:
        model: A network that takes float32 images of shape (N, 784) and returns logits.
        dataset: The images and their labels.

    Returns:
        The logits, and every metric that follows from them.

    Raises:
        TypeError: The model is not a network, or the data set is not an ImageDataset.
        ValueError: The model has other classes than the data set, does not take the images, or
            returns probabilities.
        FloatingPointError: The model returns numbers that are not finite.

    Example:
        >>> test = evaluate(model, splits.test)
        >>> print(f"{test.n_correct} of {len(test.labels)} are correct.")
    """
    check_network(model)
    check_dataset("dataset", dataset)
    check_class_names(model, dataset)
    check_outputs(model, dataset)

    batches_of_logits = []
    with evaluation_mode(model) as device:
        for images, _, _ in batches(dataset):
            batches_of_logits.append(model(images.to(device)).float())

    logits = torch.cat(batches_of_logits).cpu()
    evaluation = Evaluation(logits, dataset.labels.cpu(), dataset.classes)
    if not math.isfinite(evaluation.loss):
        raise FloatingPointError(
            f"the loss of the model is {evaluation.loss}: its weights are useless."
        )
    return evaluation


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, or the CPU if it has none."""
    for parameter in model.parameters():
        return parameter.device
    return torch.device("cpu")


def check_network(model: nn.Module) -> None:
    """Raise TypeError if the model is not a network, for example if it is a class."""
    if isinstance(model, type):
        raise TypeError(
            f"model must be a network, found the class {model.__name__}: "
            f"did you mean {model.__name__}()?"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, found {type(model).__name__}.")


def class_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the classes that a model was trained on, or None if it does not know.

    `fit` and `load_weights` set them as `model.class_names`. The model may be wrapped in another.
    """
    for module in model.modules():
        class_names = getattr(module, "class_names", None)
        if class_names is not None:
            return tuple(class_names)
    return None


def check_class_names(model: nn.Module, dataset: ImageDataset) -> None:
    """Raise ValueError if the model was trained on other classes than those of the data set."""
    class_names = class_names_of(model)
    if class_names is not None and class_names != dataset.classes:
        raise ValueError(
            "the model and the data set must have the same classes in the same order, found "
            f"{' '.join(class_names)} and {' '.join(dataset.classes)}."
        )


def check_outputs(model: nn.Module, dataset: ImageDataset) -> None:
    """Check on two images that the model takes the images and returns a logit for each class.

    Raises:
        TypeError: The model does not return a tensor.
        ValueError: It does not take the images, or returns something else than logits.
    """
    images, _, _ = dataset.get_batch(torch.tensor([0, len(dataset) - 1]))
    try:
        with evaluation_mode(model) as device:
            logits = model(images.to(device))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the model must take float32 images of shape {tuple(images.shape)}. If it needs 2-D "
            f"images, begin its forward with x.view(-1, 1, 28, 28). It raised: {reason}"
        ) from error

    expected_shape = (len(images), len(dataset.classes))
    expected = f"the model must return logits of shape (N, {len(dataset.classes)})"
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{expected}, a tensor, found a {type(logits).__name__}.")
    if logits.shape != expected_shape:
        raise ValueError(
            f"{expected}, one per class, found the shape {tuple(logits.shape)} for two images."
        )
    if not logits.is_floating_point():
        raise ValueError(f"{expected}, floats, found {logits.dtype}.")

    row_sums = logits.float().sum(dim=1)
    is_probability = (logits >= 0).all() and torch.allclose(row_sums, torch.ones_like(row_sums))
    if is_probability and len(dataset.classes) > 1:
        raise ValueError(
            f"{expected}, found probabilities, which are positive and sum to 1: leave out the "
            "softmax at the end. The loss applies it."
        )


def check_weights(model: nn.Module) -> None:
    """Raise ValueError if a weight is not finite."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weights are useless: {name} holds numbers that are not finite.")
