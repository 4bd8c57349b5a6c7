"""Strong augmentation: random disturbances, so that a network is not misled by such things.

None of them is a function of the robustness test in `corruptions`.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from mnist_mlp.augment import random_warp


class _Random:
    """Random tensors of shape (N, ...), one row for each of N images, on their device."""

    def __init__(self, images: torch.Tensor, generator: torch.Generator):
        self.n = len(images)
        self.device = images.device
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        fractions = torch.rand(self.n, *shape, generator=self.generator).to(self.device)
        return fractions * (high - low) + low

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.n, *shape, generator=self.generator).to(self.device)

    def chance(self, probability: float) -> torch.Tensor:
        return self.uniform(0, 1, 1, 1) < probability


def _axes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, height, width = images.shape
    rows = torch.arange(height, device=images.device).float()
    columns = torch.arange(width, device=images.device).float()
    return rows[:, None], columns[None]


def _wide_warp(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Rotate by up to 25 degrees, scale by up to 30%, shear and shift by up to 4 pixels."""
    return random_warp(
        images, random.generator, rotation=25.0, scale=0.3, shear=0.4, shift=4.0, elastic=0.0
    )


def _strokes(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Draw one to three straight strokes of random ends, width and grey."""
    rows, columns = _axes(images)
    for probability in (1.0, 0.5, 0.25):
        row = random.uniform(0, 27, 1, 1)
        column = random.uniform(0, 27, 1, 1)
        angle = random.uniform(0, math.pi, 1, 1)
        along = (rows - row) * angle.sin() + (columns - column) * angle.cos()
        across = (rows - row) * angle.cos() - (columns - column) * angle.sin()
        inside = along.abs() < random.uniform(4, 40, 1, 1)
        ink = (random.uniform(0.7, 2.5, 1, 1) - across.abs()).clamp(0, 1)
        ink = ink * inside * random.uniform(0.4, 1, 1, 1) * random.chance(probability)
        images = images.maximum(ink)
    return images


def _rectangles(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Fill two rectangles with a grey, or invert what is in them."""
    rows, columns = _axes(images)
    for _ in range(2):
        inside = torch.ones_like(images, dtype=torch.bool)
        for axis, size in ((rows, rows.numel()), (columns, columns.numel())):
            length = torch.where(random.chance(0.3), size, random.uniform(2, 10, 1, 1))
            start = random.uniform(0, 1, 1, 1) * (size + 4 - length) - 2
            inside &= (axis >= start) & (axis < start + length)
        filling = random.uniform(0, 1, 1, 1)
        filling = torch.where(random.chance(0.5), 1 - images, filling)
        images = torch.where(inside, filling, images)
    return images


def _convolution(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Filter with a random 3x3 or dilated 3x3 kernel: around the image, or without a mean."""
    n = len(images)
    noise = random.normal(3, 3)
    identity = torch.zeros(3, 3, device=images.device)
    identity[1, 1] = 1.0
    edges = (noise - noise.mean((1, 2), keepdim=True)) * 0.7
    blurs = noise.abs() / noise.abs().sum((1, 2), keepdim=True)
    near = identity + 0.4 * noise
    kind = random.uniform(0, 1, 1, 1)
    kernels = torch.where(kind < 0.35, edges, torch.where(kind < 0.65, blurs, near))
    dilation = 1 + int(random.chance(0.5)[0])  # of the whole batch
    filtered = F.conv2d(
        images[None], kernels[:, None], padding=dilation, dilation=dilation, groups=n
    )[0].abs()
    return filtered / filtered.amax((1, 2), keepdim=True).clamp(min=1.0)


def _threshold(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Make pixels black or white, sharply or less so."""
    steepness = random.uniform(2, 20, 1, 1)
    level = random.uniform(0.15, 0.7, 1, 1)
    return ((images - level) * steepness + 0.5).clamp(0, 1)


def _clouds(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Mix with a smooth random field."""
    _, height, width = images.shape
    knots = random.normal(1, 5, 5)
    field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)[:, 0]
    share = random.uniform(0, 0.7, 1, 1)
    return (1 - share) * images + share * (0.5 + 0.4 * field).clamp(0, 1)


def _contrast(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Lower the contrast to no less than a fifth and raise black by up to what that leaves."""
    contrast = random.uniform(0.2, 1, 1, 1)
    return images * contrast + (1 - contrast) * random.uniform(0, 1, 1, 1)


def _noise(images: torch.Tensor, random: _Random) -> torch.Tensor:
    """Add Gaussian noise, or make pixels black or white."""
    gaussian = images + random.normal(*images.shape[1:]) * random.uniform(0, 0.4, 1, 1)
    struck = random.uniform(0, 1, *images.shape[1:]) < random.uniform(0, 0.3, 1, 1)
    black_or_white = (random.uniform(0, 1, *images.shape[1:]) < 0.5).float()
    return torch.where(random.chance(0.5), gaussian, torch.where(struck, black_or_white, images))


# They are applied in this order, each to an image with this probability.
DISTURBANCES: dict[Callable[[torch.Tensor, _Random], torch.Tensor], float] = {
    _wide_warp: 0.35,
    _strokes: 0.25,
    _convolution: 0.35,
    _threshold: 0.15,
    _rectangles: 0.2,
    _clouds: 0.2,
    _contrast: 0.25,
    _noise: 0.25,
}


def strong_augment(
    images: torch.Tensor, generator: torch.Generator, fraction: float = 0.5
) -> torch.Tensor:
    """Return a copy of the batch in which the first images are disturbed.

    Each disturbance is applied to a random part of these images.

    Args:
        images: Float32 of shape (N, H, W) from 0 to 1, in random order.
        generator: The source of all random numbers.
        fraction: How much of the batch to disturb, from 0 to 1.

    Sources: Xu et al., "Robust and generalizable visual representation learning via random
    convolutions", ICLR 2021; Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    changed = images.clone()
    n = round(fraction * len(images))

    for disturbance, probability in DISTURBANCES.items():
        chosen = (torch.rand(n, generator=generator) < probability).nonzero()[:, 0]
        chosen = chosen.to(images.device)
        if len(chosen):
            before = changed[chosen]
            after = disturbance(before, _Random(before, generator))
            changed[chosen] = after.clamp(0, 1)

    return changed
