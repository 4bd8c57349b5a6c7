"""A picture of a digit made into an image like MNIST's.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

import warnings
from os import PathLike

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from mnist_mlp.data import MEAN, STD
from mnist_mlp.handwriting.pictures import MIN_CONTRAST, Picture, read_grey

MIN_STROKE_WIDTH = 1.5  # pixels of the 20x20: MNIST's strokes are two to three wide


def to_mnist(picture: Picture) -> torch.Tensor:
    """Return a picture of one digit as the network sees it, uint8 of shape (28, 28).

    `picture`: a file's path, a PIL image, or an array of shape (H, W), (H, W, 3) or (H, W, 4):
    uint8, uint16, bool, or float from 0 to 1. Black on white or white on black, drawn or
    photographed, also under uneven light. The paper is a smooth surface that most pixels lie on;
    the ink is far from it, on one side; specks are dropped. Warns if there seem to be several
    digits. Raises ValueError for a picture that cannot be read or has no ink on it, and OSError
    for a file that is missing or not readable.

    Sources: Otsu, "A threshold selection method from gray-level histograms", 1979; for the last
    step LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    ink, components = _find_ink(picture)
    groups = _group_by_digit(components)
    heights = [np.ptp(np.nonzero(np.isin(components, group).any(1))) for group in groups]
    if (digits := sum(height > max(heights) / 2 for height in heights)) > 1:
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


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as a network trained on MNIST takes them: float32, same shape."""
    return (images / 255 - MEAN) / STD


def _group_by_digit(components: np.ndarray) -> list[list[int]]:
    """Return the numbers of the connected components of each digit, from left to right."""
    spans: list[list] = []  # first column, last column, numbers of the components
    boxes = enumerate(ndimage.find_objects(components), 1)
    present = [(box[1].start, box[1].stop, number) for number, box in boxes if box]
    for left, right, number in sorted(present, key=lambda span: span[0]):
        if spans and spans[-1][1] - left >= 0.4 * min(right - left, spans[-1][1] - spans[-1][0]):
            spans[-1][1] = max(right, spans[-1][1])
            spans[-1][2].append(number)
        else:
            spans.append([left, right, [number]])
    return [numbers for *_, numbers in spans]


def centre(digit: torch.Tensor) -> torch.Tensor:
    """Return a digit of any size, placed like MNIST's, uint8 of shape (28, 28).

    `digit`: floats from 0 (background) to 1 (ink). Its bounding box is scaled to fit 20x20 and
    placed so that the centre of mass is the middle of 28x28.
    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    rows, columns = (digit > 0).nonzero().T
    box = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    size = [max(1, round(20 * side / max(box.shape))) for side in box.shape]
    small = F.interpolate(box[None, None], size, mode="bilinear", antialias=True)[0, 0]
    corner = []
    for axis, side in enumerate(size):
        mass = small.sum(1 - axis)
        centre = float((mass * torch.arange(side)).sum() / mass.sum())
        corner.append(min(max(round(13.5 - centre), 0), 28 - side))
    image = torch.zeros(28, 28)
    image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = small
    return (image * 255).round().to(torch.uint8)


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
    image = centre(torch.from_numpy(ink).float()).float()
    return (image * (255 / image.max())).round().to(torch.uint8)


def _find_ink(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink from 0 to 1 and the number of each pixel's connected component, or 0."""
    height, noise = _above_paper(read_grey(picture))
    ink = np.maximum(0, height if (height * height * height).sum() > 0 else -height)
    threshold = _otsu(ink[ink > 3 * noise])
    full = np.median(ink[ink > threshold]) if (ink > threshold).any() else 0.0
    if full < max(MIN_CONTRAST, 4.5 * noise):  # noise alone gives less than four times itself
        name = picture if isinstance(picture, (str, PathLike)) else "the picture"
        raise ValueError(f"there is no ink in {name}: expected a digit that stands out.")
    ink = np.where(ink < max(0.15 * full, 4 * noise), 0, np.minimum(ink / full, 1))
    components, _ = ndimage.label(ink > 0, np.ones((3, 3)))
    mass = np.bincount(components.ravel(), ink.ravel())
    components[(mass < 0.05 * mass.max())[components]] = 0
    return ink, components


def _above_paper(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the difference of each pixel from the paper, and the noise of the paper.

    The paper's brightness is a quadratic surface, fitted to a few thousand pixels by least
    absolute deviations, on which the ink, a minority, has no influence.
    """
    step = -(-max(grey.shape) // 64)
    y, x = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in grey.shape)
    sample = grey[::step, ::step].ravel()
    v, u = (part.ravel() for part in np.meshgrid(y[::step], x[::step], indexing="ij"))
    terms = np.stack([np.ones(sample.size), u, v, u * u, u * v, v * v], axis=1)
    surface = np.array([np.median(sample), 0, 0, 0, 0, 0])
    for _ in range(20):
        weight = 1 / np.maximum(np.abs(sample - terms @ surface), 0.002)
        normal = terms.T * weight @ terms + 1e-6 * np.eye(6)
        before, surface = surface, np.linalg.solve(normal, terms.T @ (weight * sample))
        if np.abs(surface - before).max() < 1e-5:
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
    below, sum_below = np.cumsum(count)[:-1], np.cumsum(count * middle)[:-1]
    above, sum_above = values.size - below, (count * middle).sum() - sum_below
    means = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * means**2)])
