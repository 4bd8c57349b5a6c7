"""MNIST-C: fifteen corruptions that test robustness. Nothing is tuned on them.

Source: Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision", 2019. The amounts are
those of the authors' code; the random numbers and the rounding are not. Motion blur follows the
documentation of ImageMagick, which the authors call.

Each corruption takes float64 images of shape (N, 28, 28) from 0 to 1 and a NumPy generator, and
returns images of the same shape; `corrupt` clips and rounds them.
"""

import itertools
import operator
import warnings
import zlib
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from mnist_mlp.data import ImageDataset

ROWS, COLUMNS = np.mgrid[:28, :28]


def shot_noise(images, rng):
    """Add Poisson noise: a white pixel counts three photons on average."""
    return rng.poisson(images * 3) / 3


def impulse_noise(images, rng):
    """Set 17% of the pixels to black or white."""
    is_noise = rng.random(images.shape) < 0.17
    return np.where(is_noise, rng.integers(0, 2, images.shape), images)


def glass_blur(images, rng):
    """Blur, swap each pixel with a random neighbour above or to the left, twice, and blur again.

    The blur has a sigma of 0.7 and is vertical only, as in the authors' code.
    """
    images = np.floor(255 * _blur(images, 0.7, axes=1))
    image_index = np.arange(len(images))
    for _ in range(2):
        for row in range(27, 1, -1):
            for column in range(27, 1, -1):
                up, left = rng.integers(0, 2, (2, len(images)))
                neighbour = (image_index, row - up, column - left)  # another one for each image
                neighbour_values = images[neighbour]  # a copy, as index arrays give no view
                images[neighbour] = images[:, row, column]
                images[:, row, column] = neighbour_values
    return _blur(images / 255, 0.7, axes=1)


def motion_blur(images, rng):
    """Average 21 pixels along a random direction within 45 degrees of the horizontal.

    The weights fall with the distance from the pixel, like a Gaussian with a sigma of three pixels.
    """
    angles = np.deg2rad(rng.uniform(-45, 45, len(images)))[:, None, None]
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    weights = weights / weights.sum()
    image_index = np.arange(len(images))[:, None, None]

    blurred = np.zeros(images.shape)
    for distance, weight in enumerate(weights):
        rows = ROWS + _round_half_down(distance * np.sin(angles))
        columns = COLUMNS + _round_half_down(distance * np.cos(angles))
        blurred += weight * images[image_index, rows.clip(0, 27), columns.clip(0, 27)]
    return blurred


def shear(images, rng):
    """Shear by 0.4 radians, to the left or to the right."""
    angles = 0.4 * rng.choice([-1.0, 1.0], len(images))
    zeros = np.zeros(len(images))
    ones = np.ones(len(images))
    matrices = np.array([[np.cos(angles), zeros], [-np.sin(angles), ones]])  # (2, 2, N)
    return _affine(images, matrices.transpose(2, 0, 1))


def scale(images, rng):
    """Shrink to 70%."""
    return _affine(images, np.broadcast_to(np.eye(2) / 0.7, (len(images), 2, 2)))


def rotate(images, rng):
    """Rotate by 0.4 radians (23 degrees), to the left or to the right."""
    angles = 0.4 * rng.choice([-1.0, 1.0], len(images))
    cosines = np.cos(angles)
    sines = np.sin(angles)
    matrices = np.array([[cosines, -sines], [sines, cosines]])  # (2, 2, N)
    return _affine(images, matrices.transpose(2, 0, 1))


def brightness(images, rng):
    """Add 0.5, half of full white, to each pixel."""
    return images + 0.5


def translate(images, rng):
    """Shift by three pixels, up or down and left or right."""
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    row_start, column_start = rng.choice(
        [0, 6], (2, len(images), 1, 1)
    )  # the top left corner of the crop
    image_index = np.arange(len(images))[:, None, None]
    return padded[image_index, ROWS + row_start, COLUMNS + column_start]


def stripe(images, rng):
    """Invert the seven columns at each side."""
    images = images.copy()
    images[:, :, :7] = 1 - images[:, :, :7]
    images[:, :, 21:] = 1 - images[:, :, 21:]
    return images


def fog(images, rng):
    """Add three times a cloud, and scale so that no pixel exceeds the image's highest value."""
    highest = images.max((1, 2), keepdims=True)
    clouds = plasma(len(images), rng)[:, :28, :28]
    return (images + 3 * clouds) * highest / (highest + 3)


def spatter(images, rng):
    """Cover with dark grey spots where smoothed noise is high."""
    liquid = _blur(rng.normal(0.65, 0.3, images.shape), 1)
    mask = _blur((liquid > 0.65).astype(float), 1.5)
    mask[mask < 0.8] = 0
    return images * (1 - mask) + 63 / 255 * mask


def dotted_line(images, rng):
    """Draw a dotted line from the left edge to the right edge: two columns of every four."""
    is_dot = COLUMNS % 4 >= 2
    end_rows = rng.uniform(0, 27, (len(images), 2))
    return images + np.stack([_line((left, 0), (right, 27)) * is_dot for left, right in end_rows])


def zigzag(images, rng):
    """Draw a zigzag from the left edge to the right edge, with amplitude two and period eight."""
    images = images.copy()
    end_rows = rng.uniform(0, 27, (len(images), 2))
    for image, (left_row, right_row) in zip(images, end_rows, strict=True):
        angle = np.arctan2(right_row - left_row, 27)

        # A corner every four pixels along the line, alternately two pixels to either side of it.
        along = np.arange(-2.0, 27 / np.cos(angle) + 4, 4)
        across = np.where(np.arange(len(along)) % 2, 2.0, -2.0)
        rows = left_row + along * np.sin(angle) + across * np.cos(angle)
        columns = along * np.cos(angle) - across * np.sin(angle)

        corners = list(zip(rows, columns, strict=True))
        for corner, next_corner in itertools.pairwise(corners):
            # On a steep line the zigzag also goes left, but `_line` needs its left end first.
            start, end = sorted([corner, next_corner], key=operator.itemgetter(1))
            is_vertical = start[1] == end[1]
            if not is_vertical:  # `_line` would divide by zero
                image += _line(start, end)
    return images


def canny_edges(images, rng):
    """Keep only the edges, white on black, with scikit-image's Canny detector."""
    # Imported here: the other corruptions do not need scikit-image, which comes with an extra.
    from skimage.feature import canny

    return np.stack([canny(image) for image in images]).astype(float)


CORRUPTIONS = {
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "shear": shear,
    "scale": scale,
    "rotate": rotate,
    "brightness": brightness,
    "translate": translate,
    "stripe": stripe,
    "fog": fog,
    "spatter": spatter,
    "dotted_line": dotted_line,
    "zigzag": zigzag,
    "canny_edges": canny_edges,
}


def corrupt(dataset: ImageDataset, name: str) -> ImageDataset:
    """Return the data set with each image corrupted, in the same way at every call.

    Args:
        dataset: The images.
        name: A key of `CORRUPTIONS`.

    Raises ValueError if there is no corruption of this name.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}.")
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    images = CORRUPTIONS[name](dataset.images.numpy() / 255, rng)
    images = np.round(255 * images.clip(0, 1)).astype(np.uint8)
    with warnings.catch_warnings(action="ignore"):  # a data set warns of corners that are bright
        return replace(dataset, images=torch.from_numpy(images))


def plasma(n, rng, size=32, decay=1.4):
    """Return clouds from 0 to 1, float64 of shape (n, size, size), by the diamond-square algorithm.

    Source: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", 1982.
    """
    clouds = np.zeros((n, size, size))
    amplitude = 1.0
    step = size
    while step > 1:
        half = step // 2
        diagonals = [(half, half), (half, -half), (-half, half), (-half, -half)]
        sides = [(half, 0), (-half, 0), (0, half), (0, -half)]

        # Each new value is the mean of its four neighbours, plus noise.
        for start_row, start_column, offsets in (
            (half, half, diagonals),  # the centres of the squares
            (0, half, sides),  # the midpoints of their horizontal sides
            (half, 0, sides),  # the midpoints of their vertical sides
        ):
            grid = np.s_[:, start_row::step, start_column::step]
            neighbours = []
            for offset in offsets:
                # Rolled by an offset, a grid point has this neighbour; edges wrap around.
                shifted = np.roll(clouds, offset, (1, 2))
                neighbours.append(shifted[grid])
            means = np.mean(neighbours, axis=0)
            clouds[grid] = means + amplitude * rng.uniform(-1, 1, means.shape)

        step = half
        amplitude /= decay**2

    clouds -= clouds.min((1, 2), keepdims=True)
    return clouds / clouds.max((1, 2), keepdims=True)


def _affine(images, matrices):
    """Sample each pixel (row, column) of the result from its image at matrix @ (row, column).

    Rows and columns count from the centre of the image, which stays where it is.
    """
    centre = np.array([13.5, 13.5])
    transformed = []
    for image, matrix in zip(images, matrices, strict=True):
        offset = centre - matrix @ centre
        transformed.append(ndimage.affine_transform(image, matrix, offset, order=1))
    return np.stack(transformed)


def _round_half_down(values):
    """Round to the nearest integer. Of two that are equally near, take the lower one."""
    return np.ceil(values - 0.5).astype(int)


def _blur(images, sigma, axes=(1, 2)):
    return ndimage.gaussian_filter(images, sigma, axes=axes, mode="nearest")


def _line(start, end):
    """Return an image of a line; `start` and `end` are (row, column), from left to right."""
    start_row, start_column = start
    end_row, end_column = end
    slope = (end_row - start_row) / (end_column - start_column)

    # The ink fades with the vertical distance, in pixels, and is 0 beyond (1 - 1/e) · radius.
    radius = 2.3
    distance = abs(ROWS - (start_row + slope * (COLUMNS - start_column)))
    ink = 1 + np.log(1 - distance.clip(0, radius - 1e-10) / radius)

    is_between = (np.floor(start_column) <= COLUMNS) & (np.ceil(end_column) > COLUMNS)
    return ink.clip(0, 1) * is_between
