"""The first step from a picture to digits: what the sheet looks like without ink.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

import math
from dataclasses import dataclass

import numpy as np

SURFACE_SAMPLES = 64  # along the longer side: enough to fit the brightness of the paper
TOLERANCE = 0.12  # of the picture's contrast: pixels this near a surface are explained by it
MIN_GAIN = 0.1  # of the pixels and of the rim together: how much more a plane must explain
MIN_FILLED = 0.15  # of the pixels: with more ink, paper and ink are told apart as two classes
MIN_SEPARATION = 0.7  # of the variance lies between two classes; a normal distribution has 0.64
MIN_BAR = 0.9  # of the rows show one run of ink where a 1 fills the picture
WITH_DIAGONALS = np.ones((3, 3))


@dataclass
class Paper:
    """What the sheet looks like without ink."""

    brightness: np.ndarray  # float64 of shape (H, W), from 0 to 1
    noise: float  # about one standard deviation of the paper's brightness
    ink_is_brighter: bool


def find_paper(grey: np.ndarray, ignored: np.ndarray) -> Paper:
    """Return the paper of a picture.

    The paper's brightness is a quadratic surface, a + b u + c v + d u² + e u v + f v², where u runs
    from -1 (left) to 1 (right) and v from -1 (top) to 1 (bottom). It is fitted by least absolute
    deviations: the ink, a minority, hardly affects it.

    Where ink fills the picture, it is no minority. A plane through the picture's rim then explains
    more of the picture, and the surface is fitted again to the pixels that are near it. Beside a 1
    that fills a tall picture, the paper has one brightness, and so it has in a bitmap.

    Args:
        grey: The picture's brightness from 0 to 1, float64 of shape (H, W).
        ignored: True where the picture shows neither paper nor ink, bool of shape (H, W).
    """
    beside_a_bar = _paper_beside_a_bar(grey)
    if beside_a_bar is not None:
        return beside_a_bar

    height, width = grey.shape
    us = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)
    vs = np.linspace(-1, 1, height) if height > 1 else np.zeros(1)
    step = math.ceil(max(height, width) / SURFACE_SAMPLES)

    on_grid = np.zeros(grey.shape, bool)
    on_grid[::step, ::step] = True
    on_rim = np.zeros(grey.shape, bool)
    on_rim[[0, -1], ::step] = True
    on_rim[::step, [0, -1]] = True
    sample, terms = _sample(grey, us, vs, on_grid & ~ignored)
    rim_sample, rim_terms = _sample(grey, us, vs, on_rim & ~ignored)
    if not sample.size:
        sample, terms = _sample(grey, us, vs, on_grid)

    low, high = np.quantile(sample, (0.02, 0.98))
    tolerance = max(0.02, TOLERANCE * (high - low))

    def explained(surface: np.ndarray) -> float:
        share = (np.abs(sample - terms @ surface) < tolerance).mean()
        rim_share = (np.abs(rim_sample - rim_terms @ surface) < tolerance).sum()
        return share + rim_share / max(1, rim_sample.size)

    curved = _fit(sample, terms, 6)
    surface = curved
    most = explained(curved) + MIN_GAIN
    planes = [_fit(sample, terms, 3)]
    if rim_sample.size:
        planes.insert(0, _fit(rim_sample, rim_terms, 3))
    for plane in planes:
        if explained(plane) > most:
            surface = plane
            most = explained(plane)

    residuals = sample - terms @ surface
    is_paper = np.ones(sample.size, bool)
    threshold, separation = _two_classes(np.abs(residuals))
    share = (np.abs(residuals) > threshold).mean()
    is_filled = share > MIN_FILLED and separation > MIN_SEPARATION and threshold > tolerance / 2
    if is_filled or surface is not curved:
        for _ in range(2):
            threshold, _ = _two_classes(np.abs(residuals))
            is_paper = np.abs(residuals) <= threshold
            n_terms = 6 if is_paper.mean() > 0.5 else 3
            surface = _fit(sample[is_paper], terms[is_paper], n_terms)
            residuals = sample - terms @ surface

    # Ink is far from the paper, so the sum of the cubes has its sign.
    ink_is_brighter = bool((residuals**3).sum() > 0)
    # In a bitmap the paper is exactly one of the two values.
    low = grey[~ignored].min(initial=1)
    high = grey[~ignored].max(initial=0)
    if low < high and ((grey == low) | (grey == high)).all():
        n_bright_corners = int((_corners(grey) == high).sum())
        if n_bright_corners != 2:
            ink_is_brighter = n_bright_corners < 2
        level = low if ink_is_brighter else high
        return Paper(np.full(grey.shape, level), 0.0, ink_is_brighter)
    noise = 1.5 * float(np.median(np.abs(residuals[is_paper])))
    return Paper(_evaluate(surface, us, vs), noise, ink_is_brighter)


def otsu(values: np.ndarray) -> float:
    """Return the threshold that splits values in two with the least variance inside the parts.

    The threshold is one of the 255 inner edges of 256 equal bins.

    Args:
        values: Numbers that are not negative, of shape (N,).

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    if not values.size or values.max() == 0:
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


def _sample(
    grey: np.ndarray, us: np.ndarray, vs: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the brightness of the chosen pixels, and the six terms of the surface at each."""
    rows, columns = chosen.nonzero()
    u = us[columns]
    v = vs[rows]
    return grey[rows, columns], np.stack([np.ones(u.size), u, v, u * u, u * v, v * v], axis=1)


def _fit(sample: np.ndarray, terms: np.ndarray, n_terms: int) -> np.ndarray:
    """Fit a surface by least absolute deviations: a plane with 3 terms, or with all 6."""
    used = terms[:, :n_terms]
    surface = np.zeros(n_terms)
    surface[0] = np.median(sample)

    # Iteratively reweighted least squares.
    for _ in range(20):
        weight = 1 / np.maximum(np.abs(sample - used @ surface), 0.002)
        # The small diagonal keeps the matrix invertible, for example for a picture of one row.
        normal_matrix = (used.T * weight) @ used + 1e-6 * np.eye(n_terms)
        right_hand_side = used.T @ (weight * sample)
        previous = surface
        surface = np.linalg.solve(normal_matrix, right_hand_side)
        if np.abs(surface - previous).max() < 1e-5:
            break
    return np.pad(surface, (0, 6 - n_terms))


def _evaluate(surface: np.ndarray, us: np.ndarray, vs: np.ndarray) -> np.ndarray:
    """Return the surface at each pixel."""
    a, b, c, d, e, f = surface

    # In each row the paper is middle + slope u + d u². `us` is a row and `v` a column of numbers.
    v = vs[:, None]
    middle = a + c * v + f * v * v
    slope = b + e * v
    return middle + us * slope + d * us * us


def _two_classes(values: np.ndarray) -> tuple[float, float]:
    """Return Otsu's threshold, and the share of the variance that lies between the classes."""
    threshold = otsu(values)
    above = values > threshold
    share = above.mean()
    if share in (0, 1):
        return threshold, 0.0
    difference = values[above].mean() - values[~above].mean()
    return threshold, float(share * (1 - share) * difference**2 / values.var())


def _paper_beside_a_bar(grey: np.ndarray) -> Paper | None:
    """Return the paper of a tall picture that a 1 fills, or None if it shows something else.

    Hardly any paper is left beside such a 1, mostly in the corners. But in nearly each row the ink
    is one run, and the paper is none or two.
    """
    height, width = grey.shape
    if height < 2 * width:
        return None
    low = grey.min()
    threshold, separation = _two_classes((grey - low).ravel())
    if separation <= MIN_SEPARATION:
        return None

    is_bright = grey - low > threshold
    bright_bar = share_of_rows_with_one_run(is_bright) >= MIN_BAR
    dark_bar = share_of_rows_with_one_run(~is_bright) >= MIN_BAR
    if not bright_bar and not dark_bar:
        return None
    if bright_bar and dark_bar:
        # The paper, too, is on one side of the ink in nearly each row: look at the corners.
        n_bright_corners = int(_corners(is_bright).sum())
        if n_bright_corners == 2:
            return None
        bright_bar = n_bright_corners < 2
    level = np.median(grey[is_bright != bright_bar])
    return Paper(np.full(grey.shape, level), 0.0, bright_bar)


def _corners(values: np.ndarray) -> np.ndarray:
    """Return the values at the four corners of a picture."""
    return values[[0, 0, -1, -1], [0, -1, 0, -1]]


def share_of_rows_with_one_run(mask: np.ndarray) -> float:
    """Return the share of the rows in which all pixels of the mask stand together."""
    changes = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int), axis=1)
    runs_in_row = (changes > 0).sum(axis=1)
    return float((runs_in_row == 1).mean())
