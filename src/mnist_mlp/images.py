"""A picture of a digit made into an image like MNIST's."""

import torch
from torch.nn import functional as F


def centre(digit: torch.Tensor) -> torch.Tensor:
    """Return a digit of any size the way MNIST's were made, uint8 of shape (28, 28).

    `digit`: floats from 0 (background) to 1 (ink). Its box is scaled to fit 20x20 and placed so
    that the centre of mass is the middle of 28x28.
    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    rows, columns = (digit > 0).nonzero().T
    box = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    size = [max(1, round(20 * side / max(box.shape))) for side in box.shape]
    small = F.interpolate(box[None, None], size, mode="bilinear", antialias=True)[0, 0]
    corner = []
    for axis, side in enumerate(size):
        mass = small.sum(1 - axis)
        centre = float((mass * torch.arange(side)).sum() / mass.sum())
        corner.append(min(max(round(13.5 - centre), 0), 28 - side))
    image = torch.zeros(28, 28)
    image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = small
    return (image * 255).round().to(torch.uint8)
