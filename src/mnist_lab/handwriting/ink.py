"""The second step from a picture to digits: the ink that somebody wrote.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mnist_lab.handwriting.lines import find_lines
from mnist_lab.handwriting.paper import WITH_DIAGONALS, Paper, find_paper, otsu
from mnist_lab.handwriting.pictures import MIN_CONTRAST

MIN_INK = 0.15  # of the median ink: fainter pixels are paper
MIN_COMPONENT = 0.05  # of the ink of the largest component: smaller ones are specks
MIN_CONTACT = 0.7  # of its length lies along the picture's edge: this was not written
MAX_SCRAP = 0.3  # of the ink of the largest component: beside a printed box, it is another box's
MAX_SLIVER_WIDTH = 0.08  # of its length: a digit is wider than the rest of a tilted line
MAX_BITMAP_SIDE = 32  # pixels: the strokes of a digit that fills a bitmap lie along its edges
MIN_LENGTH = 0.03  # of the picture's longer side, and 5 pixels: shorter ink is no digit


@dataclass
class Ink:
    """What somebody wrote on a paper, and what was found beside it."""

    strength: np.ndarray  # float64 of shape (H, W): 0 is paper, 1 is full ink
    paper: Paper
    lines: np.ndarray  # bool of shape (H, W): printed lines
    edge: np.ndarray  # bool of shape (H, W): things at the picture's edge, and their rims
    warnings: list[str]  # a sentence for each kind of thing that was dropped


def find_ink(grey: np.ndarray) -> Ink | None:
    """Return the ink of a picture, or None if nothing stands out from the paper.

    Printed lines are dropped, and what lies along the edge of the picture, such as a strip of the
    table, while other ink is left. The paper is then fitted again. Specks are dropped. In a small
    bitmap nothing is dropped at the edge: a digit fills it.

    Args:
        grey: The picture's brightness from 0 to 1, float64 of shape (H, W).
    """
    lines = np.zeros(grey.shape, bool)
    edge = np.zeros(grey.shape, bool)
    paper = find_paper(grey, lines)
    strength = _measure(grey, paper, lines)
    if strength is None:
        return None

    # What lies at the edge can hide lines, and a shadow's rim appears when the shadow is dropped.
    idle = set()  # steps that changed nothing since the last change
    if max(grey.shape) <= MAX_BITMAP_SIDE and np.unique(grey).size == 2:
        idle.add("edge")
    for step in ("lines", "edge", "edge", "edge", "lines"):
        if step in idle:
            continue
        idle.add(step)

        new_lines = lines
        new_edge = edge
        if step == "lines":
            new_lines = lines | find_lines(strength)
        else:
            new_edge = edge | _find_at_edge(strength, edge)
        if (new_lines == lines).all() and (new_edge == edge).all():
            continue

        ignored = new_lines | new_edge
        new_paper = find_paper(grey, ignored)
        rest = _measure(grey, new_paper, ignored)
        if rest is not None and _length(rest) >= max(5, MIN_LENGTH * max(grey.shape)):
            lines = new_lines
            edge = new_edge
            paper = new_paper
            strength = rest
            idle.clear()

    messages = []
    if lines.any():
        messages.append("printed lines were removed: check the digits that they crossed.")
        strength = _drop_scraps(strength)
    if edge.any() and _length(edge) >= MIN_LENGTH * max(grey.shape):
        messages.append("something at the edge of the picture was left out.")
    return Ink(_drop_specks(strength), paper, lines, edge, messages)


def _measure(grey: np.ndarray, paper: Paper, ignored: np.ndarray) -> np.ndarray | None:
    """Return how strong the ink is at each pixel, from 0 to 1, or None if there is no ink."""
    difference = grey - paper.brightness
    ink = np.maximum(0, difference if paper.ink_is_brighter else -difference)
    ink[ignored] = 0

    # The ink must stand out: `noise` is about one standard deviation of the paper, and the
    # noisiest pixels of the paper reach four.
    threshold = otsu(ink[ink > 3 * paper.noise])
    is_ink = ink > threshold
    full_ink = np.median(ink[is_ink]) if is_ink.any() else 0.0
    if full_ink < max(MIN_CONTRAST, 4.5 * paper.noise):
        return None
    faintest = max(MIN_INK * full_ink, 4 * paper.noise)
    return np.where(ink < faintest, 0, np.minimum(ink / full_ink, 1))


def _length(ink: np.ndarray) -> int:
    """Return the longer side of the largest box around a connected component."""
    components, _ = ndimage.label(ink, WITH_DIAGONALS)
    longest = 0
    for rows, columns in ndimage.find_objects(components):
        longest = max(longest, rows.stop - rows.start, columns.stop - columns.start)
    return longest


def _frame(values: np.ndarray) -> np.ndarray:
    """Return the values at the picture's edge; those in the corners twice."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _find_at_edge(strength: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Return which pixels belong to things that lie along the picture's edge, with their rims.

    Args:
        strength: The ink.
        edge: What is at the edge and was dropped: things that lie along it are at the edge, too.
    """
    is_outside = ndimage.maximum_filter(edge, 3)
    is_outside[[0, -1]] = True
    is_outside[:, [0, -1]] = True
    components, count = ndimage.label(strength > 0, WITH_DIAGONALS)
    contact = np.bincount(components[is_outside], minlength=count + 1)
    found = np.zeros(strength.shape, bool)
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        length = max(rows.stop - rows.start, columns.stop - columns.start)
        if contact[number] >= MIN_CONTACT * length:
            found[rows, columns] |= components[rows, columns] == number

    rim = max(1, round(max(strength.shape) / 200))
    return ndimage.maximum_filter(found, 2 * rim + 1)


def _drop_scraps(strength: np.ndarray) -> np.ndarray:
    """Drop what stands beside printed lines at the picture's edge.

    These are the smaller components, the ink in neighbouring boxes, and the slivers of tilted lines
    that leave the picture.
    """
    components, _ = ndimage.label(strength > 0, WITH_DIAGONALS)
    mass = np.bincount(components.ravel(), weights=strength.ravel())
    is_at_edge = np.isin(np.arange(mass.size), _frame(components))
    is_sliver = np.zeros(mass.size, bool)
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        height = rows.stop - rows.start
        width = columns.stop - columns.start
        is_thin = min(height, width) <= MAX_SLIVER_WIDTH * max(height, width)
        is_sliver[number] = is_at_edge[number] and is_thin

    largest = mass[~is_sliver].max()
    if largest == 0:  # slivers are all there is
        largest = mass.max()
        is_sliver[:] = False
    is_scrap = is_at_edge & (mass < MAX_SCRAP * largest)
    return np.where((is_scrap | is_sliver)[components], 0, strength)


def _drop_specks(strength: np.ndarray) -> np.ndarray:
    """Drop the components that are much smaller than the largest one."""
    components, _ = ndimage.label(strength > 0, WITH_DIAGONALS)
    mass = np.bincount(components.ravel(), weights=strength.ravel())
    is_speck = mass < MIN_COMPONENT * mass.max()
    return np.where(is_speck[components], 0, strength)
