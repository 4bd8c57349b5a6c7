"""The digits in a picture, in one call."""

from dataclasses import dataclass

import torch
from torch import nn

from mnist_lab.handwriting.pictures import Picture
from mnist_lab.handwriting.preprocess import analyse
from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluation import class_names_of, evaluate

MIN_PROBABILITY = 0.9  # of an answer: a less probable one is in doubt
MAX_LISTED = 3  # answers in doubt: of more, only the number is told


@dataclass(frozen=True, eq=False)
class ReadDigit:
    """A digit that was read in a picture."""

    label: str  # the name of the most probable class
    probability: float  # of this class
    probabilities: torch.Tensor  # of all classes, float32 of shape (classes,)
    image: torch.Tensor  # what the network saw, uint8 of shape (28, 28)
    box: tuple[int, int, int, int]  # left, top, right and bottom in the picture, in pixels


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read in a picture."""

    text: str  # the digits, each row on a line of its own
    digits: list[ReadDigit]  # in reading order
    warnings: list[str]  # a sentence for each reason to doubt the text


def read(model: nn.Module, picture: Picture) -> Reading:
    """Return the digits in a picture: row by row from the top, and from left to right.

    The names of the classes are those that the model was trained on (`model.class_names`), or the
    ten digits.

    Args:
        model: Any network that was trained on MNIST.
        picture: A picture as for `to_mnist`, with one digit or several.

    Raises:
        ValueError: The picture cannot be read or has no ink on it. Or the network has another
            number of outputs than classes.
        OSError: The file is missing or not readable.

    Example:
        >>> reading = read(model, "figures/photo.jpg")
        >>> print(reading.text, reading.warnings)
    """
    page = analyse(picture)
    classes = class_names_of(model) or ImageDataset.classes
    unknown_labels = torch.zeros(len(page.images), dtype=torch.int64)
    evaluation = evaluate(model, ImageDataset(page.images, unknown_labels, classes))

    digits = []
    for digit, image, probabilities in zip(
        page.digits, page.images, evaluation.probabilities, strict=True
    ):
        best = int(probabilities.argmax())
        left = digit.left * page.reduction
        top = digit.top * page.reduction
        right = (digit.left + digit.width) * page.reduction
        bottom = (digit.top + digit.height) * page.reduction
        digits.append(
            ReadDigit(
                label=classes[best],
                probability=float(probabilities[best]),
                probabilities=probabilities,
                image=image,
                box=(left, top, right, bottom),
            )
        )

    lines = []
    n_read = 0
    for row in page.rows:
        labels = [digit.label for digit in digits[n_read : n_read + len(row)]]
        lines.append("".join(labels))
        n_read += len(row)

    messages = page.warnings[:]
    doubtful = [digit for digit in digits if digit.probability < MIN_PROBABILITY]
    if len(doubtful) > MAX_LISTED:
        messages.append(
            f"{len(doubtful)} of the {len(digits)} answers are in doubt, and may be no digits."
        )
    elif doubtful:
        answers = ", ".join(f"{digit.label} ({digit.probability:.0%})" for digit in doubtful)
        messages.append(f"these answers are in doubt, and may be no digits: {answers}.")
    return Reading("\n".join(lines), digits, messages)
