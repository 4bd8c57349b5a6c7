"""The digits in a picture, in one call."""

from collections.abc import Sequence

import torch
from torch import nn

from mnist_lab.handwriting.pictures import Picture
from mnist_lab.handwriting.preprocess import segment_digits
from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluation import evaluate


def read(
    model: nn.Module, picture: Picture, classes: Sequence[str] = ImageDataset.classes
) -> tuple[str, torch.Tensor]:
    """Return the digits in a picture from left to right, and the probabilities of each.

    Args:
        model: Any network that was trained on MNIST.
        picture: A picture as for `to_mnist`, with one digit, or several side by side that do not
            touch.
        classes: The names of the model's classes.

    Returns:
        The digits as one string, and the probabilities, float32 of shape (digits, classes).

    Raises:
        ValueError: The model's number of classes differs from `len(classes)`. Or the picture
            cannot be read or has no ink on it.
        OSError: The file is missing or not readable.
    """
    images = segment_digits(picture)
    unknown_labels = torch.zeros(len(images), dtype=torch.int64)
    evaluation = evaluate(model, ImageDataset(images, unknown_labels, tuple(classes)))

    n_outputs = evaluation.logits.shape[1]
    if n_outputs != len(classes):
        raise ValueError(
            f"the model has {n_outputs} classes, but `classes` names {len(classes)}: "
            "pass the names of the model's classes."
        )

    digits = "".join(classes[label] for label in evaluation.predicted)
    return digits, evaluation.probabilities
