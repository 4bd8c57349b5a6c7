"""The digits in a picture, in one call."""

from collections.abc import Sequence

import torch
from torch import nn

from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluation import evaluate
from mnist_mlp.handwriting.pictures import Picture
from mnist_mlp.handwriting.preprocess import segment_digits


def read(
    model: nn.Module, picture: Picture, classes: Sequence[str] = ImageDataset.classes
) -> tuple[str, torch.Tensor]:
    """Return the digits in a picture from left to right, and the probabilities of each.

    `picture`: as for `to_mnist`, with one digit or several side by side that do not touch. `model`:
    any network trained on MNIST. The probabilities are float32 of shape (digits, classes). Raises
    what `to_mnist` raises, and ValueError if the model has another number of classes.
    """
    images = segment_digits(picture)
    unknown = torch.zeros(len(images), dtype=torch.int64)
    found = evaluate(model, ImageDataset(images, unknown, tuple(classes)))
    if (outputs := found.logits.shape[1]) != len(classes):
        raise ValueError(f"the model has {outputs} classes, expected {len(classes)}: name them.")
    return "".join(classes[i] for i in found.predicted), found.probabilities
