"""Random affine and elastic warps of a whole batch of images at once."""

import math
from functools import cache

import torch
from torch.nn import functional as F


@cache
def _bumps(size: int, knots: int) -> torch.Tensor:
    """Return a (size, knots) matrix whose columns are Gaussian bumps at evenly spaced knots.

    Two products with it turn white noise on a coarse knots x knots lattice into a smooth
    size x size field: the low-rank form of blurring noise with a Gaussian, at a few percent of
    the cost. Rows are scaled so that every pixel of the field has standard deviation 1.
    """
    pixels = torch.arange(size, dtype=torch.float32)[:, None]
    centres = torch.linspace(0, size - 1, knots)
    spacing = (size - 1) / (knots - 1)
    bumps = torch.exp(-(((pixels - centres) / spacing) ** 2) / 2)
    return bumps / bumps.norm(dim=1, keepdim=True)


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

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * strength

    angle = uniform() * math.radians(rotation)
    size = 1 + uniform(2) * scale
    slant = uniform() * shear
    rotate = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    stretch = torch.zeros(n, 2, 2)
    stretch[:, 0, 0], stretch[:, 1, 1], stretch[:, 0, 1] = size[:, 0], size[:, 1], slant
    offset = uniform(2, 1) * shift * 2 / width
    # grid_sample works in coordinates from -1 to 1, so one pixel is 2 / width.
    grid = F.affine_grid(torch.cat([rotate @ stretch, offset], 2), [n, 1, height, width], False)

    noise = torch.randn(n, 2, knots, knots, generator=generator) * (strength * elastic * 2 / width)
    field = _bumps(height, knots) @ noise @ _bumps(width, knots).T
    grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
