"""Robustness: fourteen corruptions of images, after MNIST-C, on which nothing was tuned.

Source: Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision", 2019, from its
description. Each function takes float64 images of shape (N, 28, 28) from 0 to 1 and a NumPy
generator, and returns such images; the amounts are constants, as in that benchmark.
"""

import zlib
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from mnist_mlp.data import ImageDataset

CENTRE = np.array([13.5, 13.5])


def _sign(n, random):
    return random.choice([-1.0, 1.0], n)


def _affine(images, matrices, shifts):
    """Transform each image by its matrix about the centre, and its shift."""
    pairs = zip(images, matrices, shifts, strict=True)
    return np.stack(
        [
            ndimage.affine_transform(image, matrix, CENTRE - matrix @ CENTRE + shift, order=1)
            for image, matrix, shift in pairs
        ]
    )


def _same(matrix, n):
    return np.broadcast_to(np.asarray(matrix, float), (n, 2, 2))


def shot_noise(images, random):
    """Add Poisson noise, with five counts at full white."""
    return random.poisson(images * 5) / 5


def impulse_noise(images, random):
    """Set 17% of the pixels to black or white."""
    struck = random.random(images.shape) < 0.17
    return np.where(struck, random.integers(0, 2, images.shape), images)


def glass_blur(images, random):
    """Blur, exchange each pixel with a random neighbour, twice, and blur again."""
    images = ndimage.gaussian_filter(images, (0, 0.7, 0.7))
    rows, columns = np.mgrid[:28, :28]
    for _ in range(2):
        steps = random.integers(-1, 2, (2, *images.shape))
        at = np.clip(rows + steps[0], 0, 27), np.clip(columns + steps[1], 0, 27)
        images = images[np.arange(len(images))[:, None, None], *at]
    return ndimage.gaussian_filter(images, (0, 0.7, 0.7))


def motion_blur(images, random):
    """Average seven pixels in a random direction within 45 degrees of the horizontal."""
    angles = random.uniform(-np.pi / 4, np.pi / 4, len(images))
    directions = np.stack([np.sin(angles), np.cos(angles)], 1)
    steps = [_affine(images, _same(np.eye(2), len(images)), s * directions) for s in range(-3, 4)]
    return np.mean(steps, 0)


def shear(images, random):
    """Shear by 0.4, to the left or to the right."""
    matrices = np.array(_same(np.eye(2), len(images)))
    matrices[:, 1, 0] = 0.4 * _sign(len(images), random)
    return _affine(images, matrices, np.zeros((len(images), 2)))


def scale(images, random):
    """Shrink to 70%."""
    return _affine(images, _same(np.eye(2) / 0.7, len(images)), np.zeros((len(images), 2)))


def rotate(images, random):
    """Rotate by 23 degrees (0.4 radians), to the left or to the right."""
    angles = 0.4 * _sign(len(images), random)
    matrices = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return _affine(images, matrices.transpose(2, 0, 1), np.zeros((len(images), 2)))


def brightness(images, random):
    """Add half of full white everywhere."""
    return images + 0.5


def translate(images, random):
    """Shift by three pixels in both directions."""
    shifts = 3 * np.stack([_sign(len(images), random), _sign(len(images), random)], 1)
    return _affine(images, _same(np.eye(2), len(images)), shifts)


def stripe(images, random):
    """Invert a vertical stripe of seven pixels in the middle."""
    images = images.copy()
    images[:, :, 11:18] = 1 - images[:, :, 11:18]
    return images


def fog(images, random):
    """Add clouds: noise at four scales, stronger at the coarse ones."""
    clouds = np.zeros(images.shape)
    for size in (1, 2, 4, 8):  # a blur divides the noise by about its size
        noise = random.standard_normal(images.shape)
        clouds += size**2 * ndimage.gaussian_filter(noise, (0, size, size), mode="wrap")
    low, high = (f(clouds, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (images + 0.6 * (clouds - low) / (high - low)) / 1.3


def spatter(images, random):
    """Add bright drops where smoothed noise is in its highest 8%."""
    noise = ndimage.gaussian_filter(random.standard_normal(images.shape), (0, 1, 1))
    drops = noise > np.quantile(noise, 0.92, axis=(1, 2), keepdims=True)
    return np.maximum(images, 0.8 * drops)


def _line(images, random, across, on):
    """Draw a line through near the centre; `across(t)` pixels beside it where `on(t)`."""
    t = np.arange(-20, 20, 0.25)
    angle, offset = random.uniform(0, np.pi, len(images)), random.uniform(-4, 4, len(images))
    for image, a, beside in zip(images, angle, offset, strict=True):
        along, normal = np.array([np.sin(a), np.cos(a)]), np.array([np.cos(a), -np.sin(a)])
        points = CENTRE[:, None] + np.outer(along, t) + np.outer(normal, beside + across(t))
        rows, columns = np.round(points[:, on(t)]).astype(int)
        inside = (rows >= 0) & (rows < 28) & (columns >= 0) & (columns < 28)
        image[rows[inside], columns[inside]] = 1.0
    return images


def dotted_line(images, random):
    """Draw a straight dotted line."""
    return _line(images.copy(), random, lambda t: 0 * t, lambda t: t % 4 < 2)


def zigzag(images, random):
    """Draw a zigzag with a period of eight pixels and an amplitude of two."""
    return _line(images.copy(), random, lambda t: abs(t % 8 - 4) - 2, lambda t: t == t)


CORRUPTIONS = {
    function.__name__: function
    for function in (
        shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness,
        translate, stripe, fog, spatter, dotted_line, zigzag,
    )
}  # fmt: skip


def corrupt(dataset: ImageDataset, name: str) -> ImageDataset:
    """Return the data set with each image corrupted, the same way at every call.

    `name`: a key of `CORRUPTIONS`. Raises ValueError for another.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}.")
    random = np.random.default_rng(zlib.crc32(name.encode()))
    images = CORRUPTIONS[name](dataset.images.numpy() / 255, random)
    images = np.round(255 * images.clip(0, 1)).astype(np.uint8)
    return replace(dataset, images=torch.from_numpy(images))
