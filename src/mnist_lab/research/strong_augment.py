"""Strong augmentation: random changes to training images that make a network robust.

None of them is one of the test corruptions in `corruptions`.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from mnist_mlp.augment import random_warp

PER_IMAGE = (1, 1)  # one random number for each image, which broadcasts over its pixels


class BatchRandom:
    """Draw random tensors of shape (N, *shape), independently for each of N images."""

    def __init__(self, images: torch.Tensor, generator: torch.Generator):
        self.n = len(images)
        self.device = images.device
        self.generator = generator

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = PER_IMAGE) -> torch.Tensor:
        """Draw numbers from `low` to `high`."""
        fractions = torch.rand(self.n, *shape, generator=self.generator).to(self.device)
        return fractions * (high - low) + low

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw numbers from the standard normal distribution."""
        return torch.randn(self.n, *shape, generator=self.generator).to(self.device)

    def chance(self, probability: float) -> torch.Tensor:
        """Draw one bool per image, True with this probability."""
        return self.uniform(0, 1) < probability


def wide_warp(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Rotate by up to 25 degrees, scale by up to 30%, shear, and shift by up to 4 pixels."""
    return random_warp(
        images, draw.generator, rotation=25.0, scale=0.3, shear=0.4, shift=4.0, elastic=0.0
    )


def strokes(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Draw one to three straight strokes with random position, direction, length, width, grey."""
    rows, columns = _coordinates(images)
    for probability in (1.0, 0.5, 0.25):
        row = draw.uniform(0, 27)
        column = draw.uniform(0, 27)
        angle = draw.uniform(0, math.pi)
        along = (rows - row) * angle.sin() + (columns - column) * angle.cos()
        across = (rows - row) * angle.cos() - (columns - column) * angle.sin()

        half_length = draw.uniform(4, 40)
        half_width = draw.uniform(0.7, 2.5)
        grey = draw.uniform(0.4, 1)
        is_drawn = draw.chance(probability)
        ink = (half_width - across.abs()).clamp(0, 1)
        ink = ink * (along.abs() < half_length) * grey * is_drawn
        images = images.maximum(ink)
    return images


def convolution(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Filter with a random 3x3 kernel: one that finds edges, one that blurs or a near-identity."""
    noise = draw.normal((3, 3))
    identity = torch.zeros(3, 3, device=images.device)
    identity[1, 1] = 1.0
    edges = (noise - noise.mean((1, 2), keepdim=True)) * 0.7
    blurs = noise.abs() / noise.abs().sum((1, 2), keepdim=True)
    near_identity = identity + 0.4 * noise

    # Of the images, 35% get edges, 30% blurs and 35% a near-identity.
    choice = draw.uniform(0, 1)
    edges_or_blurs = torch.where(choice < 0.35, edges, blurs)
    kernels = torch.where(choice < 0.65, edges_or_blurs, near_identity)

    # conv2d takes one dilation per call, so the batch shares that of its first image. The images
    # are the channels of one input, and each is a group of its own, with its own kernel.
    dilation = 1 + int(draw.chance(0.5)[0])
    filtered = F.conv2d(
        images[None], kernels[:, None], padding=dilation, dilation=dilation, groups=len(images)
    )[0].abs()
    return filtered / filtered.amax((1, 2), keepdim=True).clamp(min=1.0)


def threshold(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Turn greys towards black or white, with a random level and steepness."""
    steepness = draw.uniform(2, 20)
    level = draw.uniform(0.15, 0.7)
    return ((images - level) * steepness + 0.5).clamp(0, 1)


def rectangles(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Fill two rectangles with a grey, or invert the pixels in them."""
    _, height, width = images.shape
    rows, columns = _coordinates(images)
    for _ in range(2):
        inside = torch.ones_like(images, dtype=torch.bool)
        for coordinates, size in ((rows, height), (columns, width)):
            fills_side = draw.chance(0.3)
            short_length = draw.uniform(2, 10)
            length = torch.where(fills_side, size, short_length)

            # The rectangle may end up to 2 pixels outside the image, at either side.
            free_length = size + 4 - length
            start = draw.uniform(0, 1) * free_length - 2
            inside &= (coordinates >= start) & (coordinates < start + length)

        grey = draw.uniform(0, 1)
        filling = torch.where(draw.chance(0.5), 1 - images, grey)
        images = torch.where(inside, filling, images)
    return images


def clouds(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Mix with a smooth random field."""
    _, height, width = images.shape
    knots = draw.normal((1, 5, 5))
    field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)[:, 0]
    opacity = draw.uniform(0, 0.7)
    return (1 - opacity) * images + opacity * (0.5 + 0.4 * field).clamp(0, 1)


def contrast(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Multiply by 0.2 to 1, then add a constant that keeps white at 1 or below."""
    factor = draw.uniform(0.2, 1)
    return images * factor + (1 - factor) * draw.uniform(0, 1)


def noise(images: torch.Tensor, draw: BatchRandom) -> torch.Tensor:
    """Add Gaussian noise, or make some pixels black or white."""
    _, height, width = images.shape
    shape = (height, width)

    gaussian = draw.normal(shape) * draw.uniform(0, 0.4)
    is_impulse = draw.uniform(0, 1, shape) < draw.uniform(0, 0.3)
    black_or_white = (draw.uniform(0, 1, shape) < 0.5).float()
    with_impulses = torch.where(is_impulse, black_or_white, images)
    return torch.where(draw.chance(0.5), images + gaussian, with_impulses)


# The augmentations in the order in which they are applied, with their probabilities.
AUGMENTATIONS: dict[Callable[[torch.Tensor, BatchRandom], torch.Tensor], float] = {
    wide_warp: 0.35,
    strokes: 0.25,
    convolution: 0.35,
    threshold: 0.15,
    rectangles: 0.2,
    clouds: 0.2,
    contrast: 0.25,
    noise: 0.25,
}


def strong_augment(
    images: torch.Tensor, generator: torch.Generator, strong_fraction: float = 0.5
) -> torch.Tensor:
    """Return a copy of the batch in which the first images are strongly augmented.

    Each of these images meets each augmentation with the probability in `AUGMENTATIONS`.

    Args:
        images: Float32 of shape (N, H, W) from 0 to 1, in random order.
        generator: The source of all random numbers.
        strong_fraction: How much of the batch to augment, from 0 to 1.

    Sources: Xu et al., "Robust and generalizable visual representation learning via random
    convolutions", ICLR 2021; Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    augmented = images.clone()
    n = round(strong_fraction * len(images))

    for augmentation, probability in AUGMENTATIONS.items():
        chosen = (torch.rand(n, generator=generator) < probability).nonzero()[:, 0]
        chosen = chosen.to(images.device)
        if len(chosen):
            before = augmented[chosen]
            after = augmentation(before, BatchRandom(before, generator))
            augmented[chosen] = after.clamp(0, 1)

    return augmented


def _coordinates(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows, (H, 1), and the columns, (1, W), of the pixels."""
    _, height, width = images.shape
    rows = torch.arange(height, device=images.device).float()
    columns = torch.arange(width, device=images.device).float()
    return rows[:, None], columns[None]
