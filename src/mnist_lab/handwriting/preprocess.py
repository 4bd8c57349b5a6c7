"""A picture of a digit becomes an image like MNIST's.

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
MIN_INK = 0.15  # of the median ink: fainter pixels are paper
MIN_COMPONENT = 0.05  # of the ink of the largest component: smaller ones are specks
MIN_OVERLAP = 0.4  # of the narrower box's width: boxes that overlap more are one digit
SURFACE_SAMPLES = 64  # along the longer side: enough to fit the brightness of the paper


def to_mnist(picture: Picture) -> torch.Tensor:
    """Return a picture of one digit as the network sees it, uint8 of shape (28, 28).

    The digit may be dark on light paper or light on dark, drawn or photographed, also under
    uneven light. The paper must cover most of the picture. Specks are dropped. Warns if the
    picture seems to hold several digits.

    Args:
        picture: A file's path, a PIL image, or an array of shape (H, W), (H, W, 3) or (H, W, 4):
            uint8, uint16, bool, or float from 0 to 1.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.

    Sources: Otsu, "A threshold selection method from gray-level histograms", 1979, finds the ink;
    LeCun, Cortes & Burges, "The MNIST database of handwritten digits", describe how a digit is
    scaled and centred.
    """
    ink, components = _find_ink(picture)

    heights = []
    for group in _group_by_digit(components):
        rows, _ = np.isin(components, group).nonzero()
        heights.append(np.ptp(rows))
    n_digits = sum(height > max(heights) / 2 for height in heights)
    if n_digits > 1:
        warnings.warn(
            f"the picture seems to hold {n_digits} digits, read as one: use segment_digits.",
            stacklevel=2,
        )

    return thicken_and_centre(ink * (components > 0))


def segment_digits(picture: Picture) -> torch.Tensor:
    """Return the digits in a picture from left to right, uint8 of shape (N, 28, 28).

    The digits stand side by side and do not touch. Strokes above each other belong to one digit,
    for example the body and the top bar of a 5.

    Args:
        picture: A picture as for `to_mnist`.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.
    """
    ink, components = _find_ink(picture)
    groups = _group_by_digit(components)
    return torch.stack([thicken_and_centre(ink * np.isin(components, group)) for group in groups])


def thicken_and_centre(ink: np.ndarray) -> torch.Tensor:
    """Return a digit as the network sees it, uint8 of shape (28, 28).

    A thin pen's strokes are made as wide as MNIST's thinnest; the darkest ink becomes 255.

    Args:
        ink: Floats from 0 (paper) to 1 (ink) of shape (H, W).
    """
    rows, columns = (ink > 0).nonzero()
    side = 1 + max(np.ptp(rows), np.ptp(columns))

    # A stroke of length L and width W has area L·W and perimeter about 2·L. `np.diff` of booleans
    # is true where two neighbours differ: at the edge of a stroke.
    is_solid = np.pad(ink > 0.5, 1)
    perimeter = np.diff(is_solid, axis=0).sum() + np.diff(is_solid, axis=1).sum()
    width = 2 * is_solid.sum() / max(1, perimeter)

    # Add half of the missing width on either side.
    missing = round((MIN_STROKE_WIDTH * side / 20 - width) / 2)
    if missing > 0:
        ink = ndimage.maximum_filter(np.pad(ink, missing), 2 * missing + 1)

    digit = torch.from_numpy(ink).float()
    image = centre_digit(digit).float()  # whole numbers from 0 to 255
    darkest_is_255 = image * (255 / image.max())
    return darkest_is_255.round().to(torch.uint8)


def _group_by_digit(components: np.ndarray) -> list[list[int]]:
    """Return the numbers of the connected components of each digit, from left to right."""
    boxes = []
    for number, slices in enumerate(ndimage.find_objects(components), start=1):
        if slices is not None:  # None: the component was a speck
            _, columns = slices
            boxes.append((columns.start, columns.stop, number))
    boxes.sort(key=lambda box: box[0])

    digits: list[list[int]] = []
    digit_left = 0
    digit_right = 0
    for left, right, number in boxes:
        narrower = min(right - left, digit_right - digit_left)
        overlap = digit_right - left
        if digits and overlap >= MIN_OVERLAP * narrower:
            digits[-1].append(number)
            digit_right = max(digit_right, right)
        else:
            digits.append([number])
            digit_left = left
            digit_right = right
    return digits


def _find_ink(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink from 0 to 1, and the id of each pixel's connected component, 0 for paper."""
    difference, noise = _subtract_paper(read_grey(picture))
    # Ink is rare and far from the paper, so the sum of the cubes has its sign.
    ink_is_brighter = (difference**3).sum() > 0
    ink = np.maximum(0, difference if ink_is_brighter else -difference)

    # The ink must stand out: `noise` is about one standard deviation of the paper, and the
    # noisiest pixels of the paper reach four.
    threshold = _otsu(ink[ink > 3 * noise])
    is_ink = ink > threshold
    full_ink = np.median(ink[is_ink]) if is_ink.any() else 0.0
    if full_ink < max(MIN_CONTRAST, 4.5 * noise):
        name = picture if isinstance(picture, (str, PathLike)) else "the picture"
        raise ValueError(f"there is no ink in {name}: expected a digit that stands out.")
    faintest = max(MIN_INK * full_ink, 4 * noise)
    ink = np.where(ink < faintest, 0, np.minimum(ink / full_ink, 1))

    with_diagonals = np.ones((3, 3))
    components, _ = ndimage.label(ink > 0, with_diagonals)
    mass = np.bincount(components.ravel(), weights=ink.ravel())  # the ink of each component
    is_speck = mass < MIN_COMPONENT * mass.max()
    pixel_is_in_speck = is_speck[components]
    components[pixel_is_in_speck] = 0
    return ink, components


def _subtract_paper(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Return how far each pixel is from the paper's brightness, and the noise of the paper.

    The paper's brightness is a quadratic surface, a + b u + c v + d u² + e u v + f v², where u runs
    from -1 (left) to 1 (right) and v from -1 (top) to 1 (bottom). It is fitted by least absolute
    deviations: the ink, a minority, hardly affects it.
    """
    height, width = grey.shape
    us = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)
    vs = np.linspace(-1, 1, height) if height > 1 else np.zeros(1)

    step = math.ceil(max(height, width) / SURFACE_SAMPLES)
    sample = grey[::step, ::step].ravel()
    grid_v, grid_u = np.meshgrid(vs[::step], us[::step], indexing="ij")
    u = grid_u.ravel()
    v = grid_v.ravel()
    terms = np.stack([np.ones(sample.size), u, v, u * u, u * v, v * v], axis=1)

    # Iteratively reweighted least squares.
    surface = np.array([np.median(sample), 0, 0, 0, 0, 0])
    for _ in range(20):
        weight = 1 / np.maximum(np.abs(sample - terms @ surface), 0.002)
        # The small diagonal keeps the matrix invertible, for example for a picture of one row.
        normal_matrix = (terms.T * weight) @ terms + 1e-6 * np.eye(6)
        right_hand_side = terms.T @ (weight * sample)
        previous = surface
        surface = np.linalg.solve(normal_matrix, right_hand_side)
        if np.abs(surface - previous).max() < 1e-5:
            break

    noise = 1.5 * np.median(np.abs(sample - terms @ surface))
    a, b, c, d, e, f = surface

    # In each row the paper is middle + slope u + d u². `us` is a row and `v` a column of numbers.
    v = vs[:, None]
    middle = a + c * v + f * v * v
    slope = b + e * v
    difference = grey - middle - us * slope - d * us * us
    return difference, noise


def _otsu(values: np.ndarray) -> float:
    """Return the threshold that splits values in two with the least variance inside the parts.

    The values are not negative. The threshold is one of the 255 inner edges of 256 equal bins.
    """
    if not values.size:
        return 0.0
    count, edges = np.histogram(values, 256, (0, values.max()))
    middle = (edges[1:] + edges[:-1]) / 2

    below = np.cumsum(count)[:-1]
    sum_below = np.cumsum(count * middle)[:-1]
    above = values.size - below
    sum_above = (count * middle).sum() - sum_below

    # The least variance inside the parts is the largest variance between them.
    difference = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    best = np.argmax(below * above * difference**2)
    return float(edges[1:-1][best])
