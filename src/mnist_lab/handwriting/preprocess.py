"""A picture of a digit made into an image like MNIST's.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

import math
import warnings
from os import PathLike

import numpy as np
import torch
from scipy import ndimage

from mnist_lab.handwriting.pictures import MIN_CONTRAST, Picture, read_grey
from mnist_mlp.datasets import centre_digit

MIN_STROKE_WIDTH = 1.5  # pixels of the 20x20: MNIST's strokes are two to three wide


def to_mnist(picture: Picture) -> torch.Tensor:
    """Return a picture of one digit as the network sees it, uint8 of shape (28, 28).

    Black on white or white on black, drawn or photographed, also under uneven light. The paper is
    a smooth surface that most pixels lie on; the ink is far from it, on one side; specks are
    dropped. Warns if there seem to be several digits.

    Args:
        picture: A file's path, a PIL image, or an array of shape (H, W), (H, W, 3) or (H, W, 4):
            uint8, uint16, bool, or float from 0 to 1.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.

    Sources: Otsu, "A threshold selection method from gray-level histograms", 1979; for the last
    step LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    ink, components = _find_ink(picture)

    heights = []
    for numbers in _group_by_digit(components):
        rows, _ = np.isin(components, numbers).nonzero()
        heights.append(np.ptp(rows))
    digits = sum(height > max(heights) / 2 for height in heights)
    if digits > 1:
        warnings.warn(
            f"the picture seems to hold {digits} digits, read as one: use segment_digits.",
            stacklevel=2,
        )

    return thicken_and_centre(ink * (components > 0))


def segment_digits(picture: Picture) -> torch.Tensor:
    """Return the digits in a picture from left to right, as `to_mnist` does, uint8 (N, 28, 28).

    For digits side by side that do not touch. Strokes above each other are one digit, so that a
    five keeps its roof. Raises what `to_mnist` raises.
    """
    ink, components = _find_ink(picture)
    groups = _group_by_digit(components)
    return torch.stack([thicken_and_centre(ink * np.isin(components, group)) for group in groups])


def _group_by_digit(components: np.ndarray) -> list[list[int]]:
    """Return the numbers of the connected components of each digit, from left to right."""
    strokes = []  # first column, last column, number of the component
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        if box:
            columns = box[1]
            strokes.append((columns.start, columns.stop, number))
    strokes.sort(key=lambda stroke: stroke[0])

    digits: list[list] = []  # first column, last column, numbers of the components
    for left, right, number in strokes:
        if digits:
            digit_left, digit_right, numbers = digits[-1]
            narrower = min(right - left, digit_right - digit_left)
            if digit_right - left >= 0.4 * narrower:
                digits[-1][1] = max(right, digit_right)
                numbers.append(number)
                continue
        digits.append([left, right, [number]])
    return [numbers for _, _, numbers in digits]


def thicken_and_centre(ink: np.ndarray) -> torch.Tensor:
    """Thicken the strokes of a thin pen, centre the digit and make the darkest ink full."""
    rows, columns = (ink > 0).nonzero()
    side = 1 + max(np.ptp(rows), np.ptp(columns))

    # A stroke of length l and width w has the area l w and the edge 2 l.
    solid = np.pad(ink > 0.5, 1)
    edge = sum(int((solid != np.roll(solid, 1, axis)).sum()) for axis in (0, 1))
    width = 2 * solid.sum() / max(1, edge)

    missing = round((MIN_STROKE_WIDTH * side / 20 - width) / 2)
    if missing > 0:
        ink = ndimage.maximum_filter(np.pad(ink, missing), 2 * missing + 1)

    image = centre_digit(torch.from_numpy(ink).float()).float()
    return (image * (255 / image.max())).round().to(torch.uint8)


def _find_ink(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink from 0 to 1 and the number of each pixel's connected component, or 0."""
    height, noise = _above_paper(read_grey(picture))
    ink_is_brighter = (height**3).sum() > 0
    ink = np.maximum(0, height if ink_is_brighter else -height)

    threshold = _otsu(ink[ink > 3 * noise])
    full = np.median(ink[ink > threshold]) if (ink > threshold).any() else 0.0
    if full < max(MIN_CONTRAST, 4.5 * noise):  # noise alone gives less than four times itself
        name = picture if isinstance(picture, (str, PathLike)) else "the picture"
        raise ValueError(f"there is no ink in {name}: expected a digit that stands out.")
    ink = np.where(ink < max(0.15 * full, 4 * noise), 0, np.minimum(ink / full, 1))

    components, _ = ndimage.label(ink > 0, np.ones((3, 3)))
    mass = np.bincount(components.ravel(), ink.ravel())
    is_speck = mass < 0.05 * mass.max()
    components[is_speck[components]] = 0
    return ink, components


def _above_paper(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the difference of each pixel from the paper, and the noise of the paper.

    The paper's brightness is a quadratic surface, fitted to a few thousand pixels by least
    absolute deviations, on which the ink, a minority, has no influence.
    """
    height, width = grey.shape
    y = np.linspace(-1, 1, height) if height > 1 else np.zeros(1)
    x = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)

    step = math.ceil(max(height, width) / 64)
    sample = grey[::step, ::step].ravel()
    sample_y, sample_x = np.meshgrid(y[::step], x[::step], indexing="ij")
    v = sample_y.ravel()
    u = sample_x.ravel()
    terms = np.stack([np.ones(sample.size), u, v, u * u, u * v, v * v], axis=1)

    surface = np.array([np.median(sample), 0, 0, 0, 0, 0])
    for _ in range(20):  # iteratively reweighted least squares
        weight = 1 / np.maximum(np.abs(sample - terms @ surface), 0.002)
        normal = terms.T * weight @ terms + 1e-6 * np.eye(6)
        earlier_surface = surface
        surface = np.linalg.solve(normal, terms.T @ (weight * sample))
        if np.abs(surface - earlier_surface).max() < 1e-5:
            break

    noise = 1.5 * np.median(np.abs(sample - terms @ surface))
    a, b, c, d, e, f = surface
    y = y[:, None]
    return grey - (a + c * y + f * y * y) - x * (b + e * y) - d * x * x, noise


def _otsu(values: np.ndarray) -> float:
    """Return the threshold, of 255, that splits non-negative values with the least variance."""
    if not values.size:
        return 0.0
    count, edges = np.histogram(values, 256, (0, values.max()))
    middle = (edges[1:] + edges[:-1]) / 2

    below = np.cumsum(count)[:-1]
    sum_below = np.cumsum(count * middle)[:-1]
    above = values.size - below
    sum_above = (count * middle).sum() - sum_below

    difference = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    best = np.argmax(below * above * difference**2)
    return float(edges[1:-1][best])
