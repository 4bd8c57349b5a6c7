"""Printed lines in a picture: ruled and squared paper, boxes of forms, underlines.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mnist_lab.handwriting.paper import WITH_DIAGONALS

MIN_SIDE = 40  # pixels: in a smaller picture a line cannot be told from a stroke
SAMPLES = 64  # places across the picture at which a line is looked for
MAX_SLOPE = 0.06  # pixels up or down per pixel to the right
MIN_COVERAGE = 0.7  # of a line from edge to edge is ink
MIN_LENGTH = 0.4  # of the picture's side: a printed box is at least as long
MAX_WIDTH = 0.06  # of the picture's shorter side
MAX_SINGLE_WIDTH = 0.035  # the same for a line that has no other beside or across it
MAX_RELATIVE_WIDTH = 2.5  # of the widest line from edge to edge: a wider run is a stroke
NEAR = 0.04  # of the picture's longer side: how far lines that meet may miss each other


@dataclass
class Line:
    """A straight run of ink in the direction of x. For a vertical line, x and y are exchanged."""

    path: np.ndarray  # its y at each x, integers of shape (W,)
    start: int  # the first x
    end: int  # the last x
    width: float  # pixels
    strength: float  # of its darkest ink at most x, from 0 to 1
    is_through: bool  # it runs from one edge of the picture to the other
    is_broken: bool  # it has gaps


def find_lines(strength: np.ndarray) -> np.ndarray:
    """Return which pixels of the ink belong to printed lines, bool of shape (H, W).

    A printed line runs straight through the whole picture or is the side of a box. Where a stroke
    crosses it, the ink is higher than the line is wide: it belongs to the stroke and is not
    returned.

    Args:
        strength: The ink from 0 (paper) to 1, float64 of shape (H, W).

    Source: Staff lines are removed from sheet music in this way, for example by Dalitz, Droettboom,
    Pranzas & Fujinaga, "A comparative study of staff removal algorithms", 2008.
    """
    if min(strength.shape) < MIN_SIDE:
        return np.zeros(strength.shape, bool)

    horizontal = _straight_runs(strength)
    vertical = _straight_runs(strength.T)
    rows = _printed(horizontal, vertical, strength)
    columns = _printed(vertical, horizontal, strength.T)
    if not rows and not columns:
        return np.zeros(strength.shape, bool)

    rest = _erase(strength, rows)
    rest = _erase(rest.T, columns).T
    return (strength > 0) & (rest == 0)


def _radius(shape: tuple[int, ...]) -> int:
    """Return by how many pixels ink may miss a straight path."""
    return 1 + max(shape) // 320


def _straight_runs(strength: np.ndarray) -> list[Line]:
    """Return the long, thin and straight runs of ink from left to right."""
    height, width = strength.shape
    radius = _radius(strength.shape)
    is_ink = strength > 0
    run_tops, run_bottoms = _vertical_runs(is_ink)

    # Count the ink along straight paths: for each y in the middle of the picture, and each tilt.
    columns = np.unique(np.arange(SAMPLES) * (width - 1) // (SAMPLES - 1))
    margin = math.ceil(MAX_SLOPE * width / 2) + 1
    near_ink = ndimage.maximum_filter1d(is_ink[:, columns], 2 * radius + 1, axis=0)
    near_ink = np.pad(near_ink, ((margin, margin), (0, 0)))
    most = np.zeros(height, int)
    tilts = np.zeros(height, int)  # pixels from the middle of the picture to its right edge
    for tilt in _tilts(margin - 1, radius):
        offsets = _offsets(tilt, columns, width)
        y = np.arange(height)[:, None] + margin + offsets
        count = near_ink[y, np.arange(len(columns))].sum(axis=1)
        better = count > most
        most[better] = count[better]
        tilts[better] = tilt

    lines = []
    while most.max() >= MIN_LENGTH * len(columns):
        # Several rows cover a wide line equally well: take the one in their middle.
        first = int(most.argmax())
        last = first
        while last + 1 < height and most[last + 1] == most[first]:
            last += 1
        y = (first + last) // 2

        path = y + _offsets(tilts[y], np.arange(width), width)
        line = _follow(path, strength, run_tops, run_bottoms)
        reach = radius
        if line is not None:
            lines.append(line)
            reach = round(line.width / 2) + 2 * radius
        most[max(0, first - reach) : last + reach + 1] = 0
    return lines


def _tilts(largest: int, step: int) -> list[int]:
    """Return the tilts to try, the level one first."""
    tilts = [0]
    for tilt in range(step, largest + 1, step):
        tilts += [tilt, -tilt]
    return tilts


def _offsets(tilt: int, x: np.ndarray, width: int) -> np.ndarray:
    """Return by how much a path that is tilted about the picture's middle is lower at each x."""
    return np.floor(tilt * (2 * x / (width - 1) - 1) + 0.5).astype(int)


def _vertical_runs(is_ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last y of the vertical run of ink at each pixel of the ink."""
    height = len(is_ink)
    y = np.arange(height)[:, None]
    paper_above = np.maximum.accumulate(np.where(is_ink, -1, y), axis=0)
    paper_below = np.minimum.accumulate(np.where(is_ink, height, y)[::-1], axis=0)[::-1]
    return paper_above + 1, paper_below - 1


def _ink_on_path(is_ink: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Return for each x the y of the ink that is nearest to the path, or -1 if none is near."""
    height, width = is_ink.shape
    x = np.arange(width)
    offsets = [0]  # the nearest first
    for distance in range(1, _radius(is_ink.shape) + 1):
        offsets += [distance, -distance]
    y = path + np.array(offsets)[:, None]
    is_hit = (y >= 0) & (y < height)
    is_hit &= is_ink[y.clip(0, height - 1), x]
    nearest = y[is_hit.argmax(axis=0), x]
    return np.where(is_hit.any(axis=0), nearest, -1)


def _follow(
    path: np.ndarray, strength: np.ndarray, run_tops: np.ndarray, run_bottoms: np.ndarray
) -> Line | None:
    """Return the line along a path, or None if the ink there is too short or too wide."""
    height, width = strength.shape
    y = _ink_on_path(strength > 0, path)
    hits = y >= 0

    edge = max(2, round(0.02 * width))
    reaches_both_edges = hits[:edge].any() and hits[-edge:].any()
    is_through = bool(reaches_both_edges and hits.mean() >= MIN_COVERAGE)
    is_broken = False
    if is_through:
        start = 0
        end = width - 1
    else:
        start, end = _longest_run(hits, max_gap=max(2, round(0.03 * width)))
        is_broken = end - start < MIN_LENGTH * width
    if is_broken:
        if hits.mean() < MIN_LENGTH:
            return None
        x = np.flatnonzero(hits)
        start = int(x[0])
        end = int(x[-1])

    x = np.arange(start, end + 1)
    x = x[hits[x]]
    top = run_tops[y[x], x]
    bottom = run_bottoms[y[x], x]
    line_width = float(np.quantile(bottom - top + 1, 0.3))  # strokes on the line make it wider
    if line_width > max(2, MAX_WIDTH * min(height, width)):
        return None
    darkest, is_thin = _thin_runs(strength, top, bottom, x, line_width)
    darkness = float(np.median(darkest[is_thin]))
    return Line(path, start, end, line_width, darkness, is_through, is_broken)


def _thin_runs(
    strength: np.ndarray, top: np.ndarray, bottom: np.ndarray, x: np.ndarray, line_width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the darkest ink of each vertical run, and whether it is hardly wider than the line.

    Of wider runs only the upper part is looked at.
    """
    max_width = int(1.5 * line_width + 1)
    darkest = np.zeros(x.size)
    for step in range(max_width):
        darkest = np.maximum(darkest, strength[np.minimum(top + step, bottom), x])
    return darkest, bottom - top < max_width


def _longest_run(hits: np.ndarray, max_gap: int) -> tuple[int, int]:
    """Return the first and the last index of the longest run of hits that has no larger gap."""
    indices = np.flatnonzero(hits)
    if not indices.size:
        return 0, 0
    breaks = np.flatnonzero(np.diff(indices) > max_gap + 1)
    starts = indices[np.concatenate([[0], breaks + 1])]
    ends = indices[np.concatenate([breaks, [indices.size - 1]])]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])


def _printed(lines: list[Line], across: list[Line], strength: np.ndarray) -> list[Line]:
    """Return the lines that are printed: not the bar of a 7 or the stem of a 1."""
    through = [line for line in lines if line.is_through]
    is_single = len(through) == 1 and not any(other.is_through for other in across)
    if is_single and not _is_no_stroke(through[0], strength):
        through = []

    # A line is as black and as wide as the others.
    max_strength = math.inf
    max_width = math.inf
    if through:
        max_width = MAX_RELATIVE_WIDTH * max(line.width for line in through)
        max_strength = _max_strength(float(np.median([line.strength for line in through])))

    is_ruled = len(through) >= 2
    sides = []
    for line in lines:
        if line.is_through or line.strength > max_strength or line.width > max_width:
            continue
        if is_ruled and max_strength < 1:
            sides.append(line)  # as faint as the others, so it is no stroke
            continue
        if line.is_broken:
            continue
        meets_at_start = _meets(line, line.start, across, strength.shape, is_ruled)
        meets_at_end = _meets(line, line.end, across, strength.shape, is_ruled)
        if meets_at_start and meets_at_end:
            sides.append(line)

    has_parallel = len(through) + len(sides) >= 2
    return through + sides if has_parallel else through


def _meets(line: Line, x: int, across: list[Line], shape: tuple[int, ...], is_ruled: bool) -> bool:
    """Tell whether a line ends at a line across it or, on ruled paper, at the picture's edge."""
    height, width = shape
    near = max(3, NEAR * max(height, width))
    y = min(max(int(line.path[x]), 0), height - 1)
    if is_ruled and min(x, width - 1 - x, y, height - 1 - y) <= near:
        return True
    for other in across:
        if abs(other.path[y] - x) <= near and other.start - near <= y <= other.end + near:
            return True
    return False


def _is_no_stroke(line: Line, strength: np.ndarray) -> bool:
    """Tell whether a line without others is apart from the digit, or longer on both sides of it."""
    height, width = strength.shape
    if line.width > max(2, MAX_SINGLE_WIDTH * min(height, width)):
        return False

    rest = _erase(strength, [line])
    components, count = ndimage.label(rest > 0, WITH_DIAGONALS)
    if not count:
        return False
    mass = np.bincount(components.ravel(), weights=rest.ravel())
    y, x = (components == mass.argmax()).nonzero()
    below = y - line.path[x]
    reach = line.width + 2
    if (np.abs(below) > reach).all():
        return True

    is_longer = x.min() > 0.03 * width and x.max() < 0.97 * width
    smaller_side = min((below > reach).sum(), (below < -reach).sum())
    return bool(is_longer and smaller_side > 0.1 * x.size)


def _erase(strength: np.ndarray, lines: list[Line]) -> np.ndarray:
    """Return the ink without lines; where a stroke crosses a line, it stays."""
    rest = strength.copy()
    is_ink = strength > 0
    run_tops, run_bottoms = _vertical_runs(is_ink)
    for line in lines:
        x = np.arange(line.start, line.end + 1)
        y = _ink_on_path(is_ink, line.path)[x]
        x = x[y >= 0]
        y = y[y >= 0]
        top = run_tops[y, x]
        bottom = run_bottoms[y, x]

        # A wider or darker run of ink belongs to a stroke.
        darkest, is_thin = _thin_runs(strength, top, bottom, x, line.width)
        is_bare = is_thin & (darkest <= _max_strength(line.strength))
        for step in range(int((bottom - top)[is_bare].max(initial=-1)) + 1):
            rest[np.minimum(top + step, bottom)[is_bare], x[is_bare]] = 0
    return rest


def _max_strength(strength: float) -> float:
    """Return the darkest ink that can belong to a line of this strength, or to one beside it."""
    return 1.3 * strength + 0.1
