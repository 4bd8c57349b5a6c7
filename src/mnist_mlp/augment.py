"""Augmentation: random rotations, shears, shifts and elastic deformations of images."""

import math
from functools import cache

import torch
from torch.nn import functional as F


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
    """Return the images, each with an affine and an elastic deformation of its own.

    For each image, rotation, scale, shear and shift are drawn uniformly between minus and plus the
    given amount. The elastic displacements have a normal distribution.

    Args:
        images: float32 of shape (N, H, W) with H = W; 0 is the background.
        generator: The source of the random numbers.
        strength: A factor on all five amounts.
        rotation: In degrees.
        scale: The relative change of the width, and of the height, of the sampling grid.
        shear: The horizontal displacement per pixel of height.
        shift: In pixels, along each axis.
        elastic: The standard deviation of the smooth displacement of the pixels, in pixels.
        knots: The number of knots per axis of the smooth displacement. More knots make it finer.

    Returns:
        float32 of shape (N, H, W).

    Raises:
        ValueError: The images are not as high as wide.

    Source: Simard, Steinkraus & Platt, "Best practices for convolutional neural networks applied
    to visual document analysis", ICDAR 2003.
    """
    n, height, width = images.shape
    if height != width:
        raise ValueError(f"images must be as high as wide, found {height} x {width} pixels.")
    pixel = 2 / width  # grid_sample's coordinates run from -1 to 1

    def random_amount(*shape: int) -> torch.Tensor:
        """Return uniform numbers from -strength to strength."""
        zero_to_one = torch.rand(n, *shape, generator=generator, device=generator.device)
        return (zero_to_one * 2 - 1) * strength

    angles = random_amount() * math.radians(rotation)
    grid_scales = 1 + random_amount(2) * scale
    shears = random_amount() * shear

    cos = angles.cos()
    sin = angles.sin()
    rotations = torch.stack([cos, -sin, sin, cos], dim=1).view(n, 2, 2)
    stretches = torch.zeros(n, 2, 2, device=generator.device)
    stretches[:, 0, 0] = grid_scales[:, 0]
    stretches[:, 1, 1] = grid_scales[:, 1]
    stretches[:, 0, 1] = shears

    shifts = random_amount(2, 1) * shift * pixel
    noise = torch.randn(n, 2, knots**2, generator=generator, device=generator.device)
    displacements = noise * (strength * elastic * pixel)

    # One matrix product computes where each pixel of the whole batch comes from.
    coefficients = torch.cat([rotations @ stretches, shifts, displacements], dim=2)
    fields = basis_fields(height, width, knots, images.device)
    sources = coefficients.to(images.device) @ fields
    grid = sources.view(n, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


@cache
def basis_fields(height: int, width: int, knots: int, device: torch.device) -> torch.Tensor:
    """Return the fields that `random_warp` adds up, float32 of shape (3 + knots^2, H * W).

    Rows 0 and 1 hold the x and y coordinates, and row 2 is constant: the affine part. Each other
    row is a Gaussian bump around a knot of an even grid. Noise times these bumps looks like blurred
    noise with a standard deviation of 1, and costs much less than blurring.
    """
    bumps = []
    for size in (height, width):
        pixels = torch.arange(size, dtype=torch.float32)[:, None]
        spacing = (size - 1) / (knots - 1)
        distances = (pixels - spacing * torch.arange(knots)) / spacing
        axis_bumps = torch.exp(-(distances**2) / 2)  # shape (size, knots)
        bumps.append(axis_bumps / axis_bumps.norm(dim=1, keepdim=True))

    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)
    coordinates = identity.view(-1, 2).T
    constant = torch.ones(1, height * width)
    vertical_bumps, horizontal_bumps = bumps
    elastic = torch.kron(vertical_bumps, horizontal_bumps).T  # shape (knots^2, H * W)
    return torch.cat([coordinates, constant, elastic]).to(device)
