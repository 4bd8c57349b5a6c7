"""Random warps, light and noise for a whole batch of images at once."""

import math
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F


@cache
def _basis(height: int, width: int, knots: int, device: torch.device) -> torch.Tensor:
    """Return what every displacement field is a sum of, float32 of shape (3 + knots^2, H * W).

    The coordinates x and y from -1 to 1 and the constant 1, of which affine maps are made; then
    products of two Gaussian bumps at evenly spaced knots: white noise times these is a smooth
    field, the low-rank form of blurring noise with a Gaussian, at a few percent of the cost. They
    are scaled so that each pixel of the field has standard deviation 1.
    """
    bumps = []
    for size in (height, width):
        pixels = torch.arange(size, dtype=torch.float32)[:, None]
        spacing = (size - 1) / (knots - 1)
        bump = torch.exp(-(((pixels - spacing * torch.arange(knots)) / spacing) ** 2) / 2)
        bumps.append(bump / bump.norm(dim=1, keepdim=True))
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], False)
    affine = torch.cat([identity.view(-1, 2).T, torch.ones(1, height * width)])
    return torch.cat([affine, torch.kron(*bumps).T]).to(device)


def warp(
    images: torch.Tensor,
    generator: torch.Generator,
    strength: float = 1.0,
    *,
    rotation: float = 12.0,
    scale: float = 0.12,
    shear: float = 0.15,
    shift: float = 2.0,
    elastic: float = 1.0,
    knots: int = 7,
) -> torch.Tensor:
    """Return a copy of the batch in which each image is warped by its own random map.

    `images`: float32 of shape (N, 28, 28), or another square, with 0 as the background, for what
    comes in from outside the picture is 0. Each image gets an affine map (rotation in degrees,
    relative scale and shear, shift in pixels; all uniform in +- the given amplitude) plus a smooth
    random displacement of each pixel (standard deviation `elastic` pixels, smooth over a
    `knots`-th of the width), sampled bilinearly. `strength` multiplies all five amplitudes.

    Source: Simard, Steinkraus & Platt, "Best practices for convolutional neural networks applied
    to visual document analysis", ICDAR 2003.
    """
    n, height, width = images.shape
    pixel = 2 / width  # grid_sample works in coordinates from -1 to 1
    source: Any = {"generator": generator, "device": generator.device}

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(n, *shape, **source) * 2 - 1) * strength

    angle = uniform() * math.radians(rotation)
    size = 1 + uniform(2) * scale
    slant = uniform() * shear
    rotate = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    stretch = torch.zeros(n, 2, 2, device=generator.device)
    stretch[:, 0, 0], stretch[:, 1, 1], stretch[:, 0, 1] = size[:, 0], size[:, 1], slant
    offset = uniform(2, 1) * shift * pixel
    noise = torch.randn(n, 2, knots**2, **source) * (strength * elastic * pixel)

    # One product makes the field of the whole batch.
    coefficients = torch.cat([rotate @ stretch, offset, noise], 2).to(images.device)
    field = coefficients @ _basis(height, width, knots, images.device)
    grid = field.view(n, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def disturb(
    images: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> torch.Tensor:
    """Return a copy of the batch in which every second image has its own light and noise.

    `images`: float32 of shape (N, H, W), 0 to 1. In the disturbed ones black becomes any grey and
    the contrast falls, to no less than a fifth; then noise is added, with a standard deviation of
    up to 0.3. `strength`, 0 to 1, multiplies both.

    Source: Xie et al., "Self-training with noisy student improves ImageNet classification", 2020:
    the student learns from disturbed images what its teacher says of the clean ones.
    """
    source: Any = {"generator": generator, "device": generator.device}
    size = len(images[::2])
    contrast = 1 - 0.8 * strength * torch.rand(size, 1, 1, **source)
    black = (1 - contrast) * torch.rand(size, 1, 1, **source)
    deviation = 0.3 * strength * torch.rand(size, 1, 1, **source)
    noise = torch.randn(images[::2].shape, **source) * deviation
    disturbed = images.clone()
    disturbed[::2] *= contrast.to(images.device)
    disturbed[::2] += (black + noise).to(images.device)
    return disturbed.clamp_(0, 1)
