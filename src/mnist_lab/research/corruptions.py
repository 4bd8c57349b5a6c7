"""MNIST-C: the fifteen corruptions of a robustness test on which nothing is tuned.

Source: Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision", 2019, with the amounts
of the authors' code. The random numbers are ours, and so is the rounding. Motion blur follows the
documentation of ImageMagick, which the authors call. Each function takes float64 images of shape
(N, 28, 28) from 0 to 1 and a NumPy generator, and returns such images.
"""

import itertools
import zlib
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from mnist_mlp.data import ImageDataset

ROWS, COLUMNS = np.mgrid[:28, :28]


def _sign(n, random):
    return random.choice([-1.0, 1.0], n)


def _affine(images, matrices):
    """Move the pixels at (row, column) to where the inverse of each image's matrix maps them.

    The centre of the image stays where it is.
    """
    centre = np.array([13.5, 13.5])
    return np.stack(
        [
            ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1)
            for image, matrix in zip(images, matrices, strict=True)
        ]
    )


def _blur(images, sigma, axes=(1, 2)):
    return ndimage.gaussian_filter(images, sigma, axes=axes, mode="nearest")


def shot_noise(images, random):
    """Add Poisson noise, with three counts at full white."""
    return random.poisson(images * 3) / 3


def impulse_noise(images, random):
    """Set 17% of the pixels to black or white."""
    struck = random.random(images.shape) < 0.17
    return np.where(struck, random.integers(0, 2, images.shape), images)


def glass_blur(images, random):
    """Blur, exchange each pixel with a neighbour above or to the left, twice, and blur again.

    The blur has a sigma of 0.7 and is vertical only, as in the authors' code.
    """
    images = np.floor(255 * _blur(images, 0.7, 1))
    all_images = np.arange(len(images))
    for _ in range(2):
        for row in range(27, 1, -1):
            for column in range(27, 1, -1):
                up, left = random.integers(0, 2, (2, len(images)))
                there = all_images, row - up, column - left
                found = images[there]
                images[there] = images[:, row, column]
                images[:, row, column] = found
    return _blur(images / 255, 0.7, 1)


def motion_blur(images, random):
    """Average 21 pixels in a random direction within 45 degrees of the horizontal.

    The weights fall like a Gaussian with a sigma of three pixels from the pixel itself on.
    """
    angles = np.deg2rad(random.uniform(-45, 45, len(images)))[:, None, None]
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    blurred = np.zeros(images.shape)
    for distance, weight in enumerate(weights / weights.sum()):
        rows = ROWS + np.ceil(distance * np.sin(angles) - 0.5).astype(int)
        columns = COLUMNS + np.ceil(distance * np.cos(angles) - 0.5).astype(int)
        at = np.arange(len(images))[:, None, None], rows.clip(0, 27), columns.clip(0, 27)
        blurred += weight * images[at]
    return blurred


def shear(images, random):
    """Shear by 0.4 radians, to the left or to the right."""
    angles = 0.4 * _sign(len(images), random)
    matrices = np.array([[np.cos(angles), 0 * angles], [-np.sin(angles), 1 + 0 * angles]])
    return _affine(images, matrices.transpose(2, 0, 1))


def scale(images, random):
    """Shrink to 70%."""
    return _affine(images, np.broadcast_to(np.eye(2) / 0.7, (len(images), 2, 2)))


def rotate(images, random):
    """Rotate by 0.4 radians (23 degrees), to the left or to the right."""
    angles = 0.4 * _sign(len(images), random)
    matrices = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return _affine(images, matrices.transpose(2, 0, 1))


def brightness(images, random):
    """Add half of full white everywhere."""
    return images + 0.5


def translate(images, random):
    """Shift by three pixels in both directions."""
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    down, right = random.choice([0, 6], (2, len(images), 1, 1))
    return padded[np.arange(len(images))[:, None, None], ROWS + down, COLUMNS + right]


def stripe(images, random):
    """Invert the seven columns at each side."""
    images = images.copy()
    for columns in (slice(7), slice(21, None)):
        images[:, :, columns] = 1 - images[:, :, columns]
    return images


def plasma(n, random, size=32, decay=1.4):
    """Return clouds from 0 to 1, float64 of shape (n, size, size), by the diamond-square algorithm.

    Source: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", 1982.
    """
    clouds = np.zeros((n, size, size))
    amplitude = 1.0
    step = size
    while step > 1:
        half = step // 2
        corners = [(half, half), (half, -half), (-half, half), (-half, -half)]
        sides = [(half, 0), (-half, 0), (0, half), (0, -half)]
        for row, column, around in ((half, half, corners), (0, half, sides), (half, 0, sides)):
            means = np.mean([np.roll(clouds, by, (1, 2)) for by in around], axis=0)
            places = slice(None), slice(row, None, step), slice(column, None, step)
            found = means[places]
            clouds[places] = found + amplitude * random.uniform(-1, 1, found.shape)
        step = half
        amplitude /= decay**2
    clouds -= clouds.min((1, 2), keepdims=True)
    return clouds / clouds.max((1, 2), keepdims=True)


def fog(images, random):
    """Add three times a cloud, and scale back to the highest value of the image."""
    highest = images.max((1, 2), keepdims=True)
    return (images + 3 * plasma(len(images), random)[:, :28, :28]) * highest / (highest + 3)


def spatter(images, random):
    """Cover with spots of a dark grey where smoothed noise is high."""
    liquid = _blur(random.normal(0.65, 0.3, images.shape), 1)
    mask = _blur((liquid > 0.65).astype(float), 1.5)
    mask[mask < 0.8] = 0
    return images * (1 - mask) + 63 / 255 * mask


def _line(start, end):
    """Return a line from one (row, column) to another in the columns between, as an image."""
    (row, column), (last_row, last_column) = start, end
    slope = (last_row - row) / (last_column - column)
    distance = abs(ROWS - (row + slope * (COLUMNS - column)))
    ink = 1 + np.log(1 - distance.clip(0, 2.3 - 1e-10) / 2.3)
    beside = (np.floor(column) <= COLUMNS) & (np.ceil(last_column) > COLUMNS)
    return ink.clip(0, 1) * beside


def dotted_line(images, random):
    """Draw a line of dots from the left edge to the right one: two columns of every four."""
    dots = COLUMNS % 4 >= 2
    ends = random.uniform(0, 27, (len(images), 2))
    return images + np.stack([_line((a, 0), (b, 27)) * dots for a, b in ends])


def zigzag(images, random):
    """Draw a zigzag from the left edge to the right one, of amplitude two and period eight."""
    drawn = images.copy()
    for image, (first, last) in zip(drawn, random.uniform(0, 27, (len(images), 2)), strict=True):
        angle = np.arctan2(last - first, 27)
        along = np.arange(-2.0, 27 / np.cos(angle) + 4, 4)  # a corner every four pixels
        beside = np.where(np.arange(len(along)) % 2, 2.0, -2.0)
        rows = first + along * np.sin(angle) + beside * np.cos(angle)
        columns = along * np.cos(angle) - beside * np.sin(angle)
        corners = list(zip(rows, columns, strict=True))
        for start, end in itertools.pairwise(corners):
            if start[1] != end[1]:
                image += _line(*sorted([start, end], key=lambda corner: corner[1]))
    return drawn


def canny_edges(images, random):
    """Keep the edges alone, white on black, as scikit-image's `canny` finds them."""
    from skimage.feature import canny

    return np.stack([canny(image) for image in images]).astype(float)


CORRUPTIONS = {
    function.__name__: function
    for function in (
        shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness,
        translate, stripe, fog, spatter, dotted_line, zigzag, canny_edges,
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
