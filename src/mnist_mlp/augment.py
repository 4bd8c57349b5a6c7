"""Random warps of a whole batch of images at once."""

import math
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F


@cache
def _basis(height: int, width: int, knots: int, device: torch.device) -> torch.Tensor:
    """Return the basis displacement fields, float32 of shape (3 + knots^2, H * W).

    First x and y from -1 to 1 and 1, for affine maps. Then products of Gaussian bumps at evenly
    spaced knots: noise times these is like blurred noise of standard deviation 1, but far cheaper.
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


def random_warp(
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
    """Return the batch with a random affine and elastic transformation of each image.

    `images`: float32 of shape (N, H, W) with 0 as the background. The affine map has a rotation in
    degrees, a relative scale and shear and a shift in pixels, each uniform in +- its amplitude. The
    elastic part displaces each pixel smoothly, with a standard deviation of `elastic` pixels and
    `knots` knots per axis. `strength` multiplies all five amplitudes.
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

    # One matrix product computes the displacement fields of the whole batch.
    coefficients = torch.cat([rotate @ stretch, offset, noise], 2).to(images.device)
    field = coefficients @ _basis(height, width, knots, images.device)
    grid = field.view(n, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
