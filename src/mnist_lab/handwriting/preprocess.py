"""A picture of digits becomes images like MNIST's.

Three steps, each of which can be looked at as a picture (`mnist_lab.figures.explain`): `find_paper`
fits the brightness of the paper, `find_ink` keeps the ink that somebody wrote, and `find_digits`
cuts it into rows of digits.

`web/digits.js` does the same in the browser, and a test compares the two: change both.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from scipy import ndimage

from mnist_lab.handwriting.ink import MAX_BITMAP_SIDE, Ink, find_ink
from mnist_lab.handwriting.paper import MIN_BAR, WITH_DIAGONALS, share_of_rows_with_one_run
from mnist_lab.handwriting.pictures import Picture, read_reduced
from mnist_mlp.datasets import centre_digit

MIN_HEIGHT = 10  # pixels of the reduced picture: the strokes of lower digits run together
MAX_HOLES = 3  # of two pixels or more of the 28x28: a digit has two, and a pen leaves another one
MAX_CROSSED_ROWS = 2  # with four strokes or more side by side, as a W has
MAX_CROSSED_COLUMNS = 1  # with five strokes or more above each other
MAX_STROKES = 88  # crossed by all rows and columns together
MAX_INK = 260  # pixels of the 28x28
MAX_STROKE_WIDTH = 6.3  # pixels of the 28x28
MIN_STROKE_WIDTH = 1.5  # pixels of the 20x20: MNIST's strokes are two to three wide
MIN_SOLID = 0.84  # of the ink's span in the rows, and in the columns, where a 1 was stretched
MIN_STRETCHED_WIDTH = 0.3  # of its height: no pen's 1 is as wide
BAR_WIDTH = 0.15  # of its height: a 1 as MNIST has it
MAX_COMPONENTS = 500  # a picture with more shows a pattern: to read it all would take minutes
MIN_OVERLAP = 0.4  # of the narrower box's width: boxes that overlap more are one digit
MIN_FULL_SIZE = 0.5  # of the usual height and length: a smaller box is a part of a digit
MIN_ROW_OVERLAP = 0.4  # of the lower box's height: boxes that overlap less are in two rows
MIN_ROW_GAP = 0.2  # of a digit's height: two parts above each other with a larger gap are two rows
MAX_PART_DISTANCE = 0.4  # of a digit's length: a part further away is a mark beside the digit
USUAL_WIDTH = 0.75  # of the height, if the other digits do not tell
MAX_WIDTH = 1.0  # of the height: wider ink beside other digits may be two digits
MAX_SINGLE_WIDTH = 1.4  # of the height of ink that stands alone
MAX_RELATIVE_WIDTH = 1.2  # of the usual width of a digit
MIN_SPLIT_WIDTH = 1.25  # of the height: wider ink beside other digits is split


@dataclass
class Digit:
    """The ink of one digit, cut out along its box."""

    strength: np.ndarray  # float64 of shape (height, width): 0 is paper, 1 is full ink
    left: int  # of the box in the picture, in pixels
    top: int

    @property
    def height(self) -> int:
        """The height of the box in pixels."""
        return self.strength.shape[0]

    @property
    def width(self) -> int:
        """The width of the box in pixels."""
        return self.strength.shape[1]


@dataclass
class Page:
    """A picture and what the three steps found in it."""

    grey: np.ndarray  # float64 of shape (H, W), from 0 to 1, of the reduced picture
    reduction: int  # pixels of the picture along a side of one pixel of `grey`
    ink: Ink
    rows: list[list[Digit]]  # from the top; in each row from left to right
    images: torch.Tensor  # the digits as the network sees them, uint8 of shape (N, 28, 28)
    warnings: list[str]  # a sentence for each reason to doubt the digits

    @property
    def digits(self) -> list[Digit]:
        """The digits in reading order."""
        return [digit for row in self.rows for digit in row]


def to_mnist(picture: Picture) -> torch.Tensor:
    """Return a picture of one digit as the network sees it, uint8 of shape (28, 28).

    The digit may be dark on light paper or light on dark, drawn or photographed, also under
    uneven light, on ruled or squared paper, in a printed box, or cut out along its edges. Specks
    are dropped. Warns if something else was dropped, or if the picture seems to hold several
    digits.

    Args:
        picture: A file's path (HEIC needs the extra `heic`), a PIL image, or an array of shape
            (H, W), (H, W, 3) or (H, W, 4): uint8, uint16, bool, or float from 0 to 1.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", describe how a digit
    is scaled and centred.
    """
    page = analyse(picture)
    messages = page.warnings
    if len(page.digits) > 1:
        messages = [
            *messages,
            f"the picture seems to hold {len(page.digits)} digits, read as one: "
            "use segment_digits.",
        ]
    for message in messages:
        warnings.warn(message, stacklevel=2)

    whole = np.zeros(page.grey.shape)
    for digit in page.digits:
        rows = slice(digit.top, digit.top + digit.height)
        columns = slice(digit.left, digit.left + digit.width)
        whole[rows, columns] = np.maximum(whole[rows, columns], digit.strength)
    return thicken_and_centre(whole)


def segment_digits(picture: Picture) -> torch.Tensor:
    """Return the digits in a picture in reading order, uint8 of shape (N, 28, 28).

    The digits stand in one row or several. Strokes above each other belong to one digit if hardly
    a gap is between them, for example the body and the top bar of a 5. Digits that touch are
    split where they are thinnest. Warns if something was dropped or split.

    Args:
        picture: A picture as for `to_mnist`.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.
    """
    page = analyse(picture)
    for message in page.warnings:
        warnings.warn(message, stacklevel=2)
    return page.images


def analyse(picture: Picture) -> Page:
    """Return a picture with its paper, its ink and its digits.

    Args:
        picture: A picture as for `to_mnist`.

    Raises:
        ValueError: The picture cannot be read or has no ink on it.
        OSError: The file is missing or not readable.
    """
    grey, reduction = read_reduced(picture)
    ink = find_ink(grey)
    if ink is None:
        name = picture if isinstance(picture, (str, PathLike)) else "the picture"
        raise ValueError(f"there is no ink in {name}: expected a digit that stands out.")
    rows, messages = find_digits(ink.strength)

    digits = [digit for row in rows for digit in row]
    images = torch.stack([thicken_and_centre(digit.strength) for digit in digits])
    n_unlike = sum(is_unlike_a_digit(image) for image in images)
    if n_unlike and len(digits) == 1:
        messages.append("this may be no digit: it has too many strokes or too much ink.")
    elif n_unlike:
        messages.append(
            f"{n_unlike} of the {len(digits)} marks may be no digits: "
            "they have too many strokes or too much ink."
        )

    height = max(digit.height for digit in digits)
    if height < MIN_HEIGHT:
        messages.append(f"the digits are only {height} pixels high: take the picture from nearer.")
    return Page(grey, reduction, ink, rows, images, ink.warnings + messages)


def is_unlike_a_digit(image: torch.Tensor) -> bool:
    """Tell whether an image has more strokes, holes or ink than a digit.

    Each limit is one that hardly any image of MNIST exceeds.

    Args:
        image: What the network sees, uint8 of shape (28, 28).
    """
    is_ink = np.pad(image.numpy() > 127, 1)
    paper, _ = ndimage.label(~is_ink)
    sizes = np.bincount(paper[~is_ink])
    n_holes = int((sizes >= 2).sum()) - 1  # the paper around the digit is no hole

    # `np.diff` of booleans is true at both edges of a stroke.
    edges_in_row = np.diff(is_ink, axis=1).sum(axis=1)
    edges_in_column = np.diff(is_ink, axis=0).sum(axis=0)
    n_edges = int(edges_in_row.sum() + edges_in_column.sum())
    n_ink = int(is_ink.sum())
    return bool(
        n_holes > MAX_HOLES
        or (edges_in_row >= 8).sum() > MAX_CROSSED_ROWS
        or (edges_in_column >= 10).sum() > MAX_CROSSED_COLUMNS
        or n_edges > 2 * MAX_STROKES
        or n_ink > MAX_INK
        or 2 * n_ink > MAX_STROKE_WIDTH * n_edges
    )


def thicken_and_centre(ink: np.ndarray) -> torch.Tensor:
    """Return a digit as the network sees it, uint8 of shape (28, 28).

    A thin pen's strokes are made as wide as MNIST's thinnest; the darkest ink becomes 255.

    Args:
        ink: Floats from 0 (paper) to 1 (ink) of shape (H, W).
    """
    ink = _heighten_stretched_bar(ink)
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


def _heighten_stretched_bar(ink: np.ndarray) -> np.ndarray:
    """Return a 1 that was stretched to fill a square bitmap as slender as it was.

    Only a 1 becomes so wide a stroke that there is hardly any paper between its outermost ink,
    neither in the rows nor in the columns. Other ink is returned unchanged.
    """
    rows, columns = (ink > 0).nonzero()
    box = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height = len(box)
    if max(box.shape) > MAX_BITMAP_SIDE:
        return ink

    is_solid = box > 0.5
    bar_width = float(np.median(is_solid.sum(axis=1)))
    if bar_width < MIN_STRETCHED_WIDTH * height:
        return ink
    if share_of_rows_with_one_run(is_solid) < MIN_BAR:
        return ink
    if min(_share_of_spans(is_solid), _share_of_spans(is_solid.T)) < MIN_SOLID:
        return ink
    return np.repeat(box, round(bar_width / (BAR_WIDTH * height)), axis=0)


def _share_of_spans(mask: np.ndarray) -> float:
    """Return how much of the rows' spans, from their first to their last pixel, the mask fills."""
    from_left = np.logical_or.accumulate(mask, axis=1)
    from_right = np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    return float(mask.sum() / max(1, (from_left & from_right).sum()))


@dataclass(eq=False)
class _Box:
    """The box around a connected component of the ink."""

    number: int
    left: int
    top: int
    right: int  # the first column behind it
    bottom: int
    mass: float  # the sum of its ink

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def length(self) -> int:
        return max(self.height, self.width)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def is_above_or_below(self, other: "_Box") -> bool:
        overlap = min(self.right, other.right) - max(self.left, other.left)
        return overlap >= MIN_OVERLAP * min(self.width, other.width)

    def is_beside(self, other: "_Box") -> bool:
        overlap = min(self.bottom, other.bottom) - max(self.top, other.top)
        return overlap >= MIN_ROW_OVERLAP * min(self.height, other.height)

    def distance(self, other: "_Box") -> int:
        across = max(other.left - self.right, self.left - other.right, 0)
        down = max(other.top - self.bottom, self.top - other.bottom, 0)
        return max(across, down)


def find_digits(strength: np.ndarray) -> tuple[list[list[Digit]], list[str]]:
    """Return the digits in rows from the top, each from left to right, and reasons for doubt.

    Args:
        strength: The ink from 0 (paper) to 1, float64 of shape (H, W). It must have some ink.

    Raises:
        ValueError: The ink has more pieces than handwriting has.
    """
    components, n_components = ndimage.label(strength > 0, WITH_DIAGONALS)
    if n_components > MAX_COMPONENTS:
        raise ValueError(
            f"there are more than {MAX_COMPONENTS} pieces of ink, found {n_components:,}: this is "
            "no handwriting."
        )
    if max(strength.shape) < 2 * MIN_HEIGHT:
        components = (strength > 0).astype(int)  # too small for two digits: all ink is of one
    mass = np.bincount(components.ravel(), weights=strength.ravel())
    boxes = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        box = _Box(number, columns.start, rows.start, columns.stop, rows.stop, mass[number])
        boxes.append(box)

    full, parts = _full_and_parts(boxes)
    grouped_rows = [_group(row) for row in _rows(full)]
    n_marks = _add_parts(parts, [group for row in grouped_rows for group in row])

    messages = []
    if n_marks:
        messages.append(f"{n_marks} small marks beside the digits were left out.")

    digit_rows = []
    n_touching = 0
    for groups in grouped_rows:
        row = [_cut_out(group, components, strength) for group in groups]
        row, touching = _split_touching(row)
        n_touching += touching
        digit_rows.append(row)
    if n_touching:
        messages.append("some digits seem to touch: check them, or write them further apart.")
    return digit_rows, messages


def _full_and_parts(boxes: list[_Box]) -> tuple[list[_Box], list[_Box]]:
    """Return the boxes that are as large as a digit, and the smaller ones."""
    height = _usual([box.height for box in boxes], boxes)
    length = _usual([box.length for box in boxes], boxes)
    full = []
    parts = []
    for box in boxes:
        if box.height >= MIN_FULL_SIZE * height and box.length >= MIN_FULL_SIZE * length:
            full.append(box)
        else:
            parts.append(box)
    if not full:
        return boxes, []
    return full, parts


def _usual(sizes: list[int], boxes: list[_Box]) -> int:
    """Return the size that the middle of the ink has: the median, each box with its mass."""
    order = np.argsort(sizes, kind="stable")
    mass_so_far = np.cumsum([boxes[i].mass for i in order])
    middle = int(np.searchsorted(mass_so_far, mass_so_far[-1] / 2))
    return sizes[order[middle]]


def _rows(boxes: list[_Box]) -> list[list[_Box]]:
    """Return the boxes in rows, from the top."""
    boxes = sorted(boxes, key=lambda box: (box.left, box.number))
    row_of = list(range(len(boxes)))

    def join(first: int, second: int) -> None:
        old = row_of[second]
        for i, row in enumerate(row_of):
            if row == old:
                row_of[i] = row_of[first]

    # A box is in a row with the next one to the right that is beside it.
    for i, box in enumerate(boxes):
        for j in range(i + 1, len(boxes)):
            if box.is_beside(boxes[j]):
                join(i, j)
                break

    # Two boxes alone in their rows may be the upper and the lower half of one digit.
    row_sizes = Counter(row_of)
    alone = [i for i, row in enumerate(row_of) if row_sizes[row] == 1]
    for position, i in enumerate(alone):
        for j in alone[position + 1 :]:
            box = boxes[i]
            other = boxes[j]
            gap = max(box.top, other.top) - min(box.bottom, other.bottom)
            is_near = gap < MIN_ROW_GAP * (box.height + other.height) / 2
            if box.is_above_or_below(other) and is_near:
                join(i, j)

    rows = []
    for number in sorted(set(row_of)):
        rows.append([box for box, row in zip(boxes, row_of, strict=True) if row == number])
    return sorted(rows, key=lambda row: sum(box.middle for box in row) / len(row))


def _group(row: list[_Box]) -> list[list[_Box]]:
    """Return the boxes of each digit in a row, from left to right."""
    digits: list[list[_Box]] = []
    digit_left = 0
    digit_right = 0
    for box in row:
        narrower = min(box.width, digit_right - digit_left)
        if digits and digit_right - box.left >= MIN_OVERLAP * narrower:
            digits[-1].append(box)
            digit_right = max(digit_right, box.right)
        else:
            digits.append([box])
            digit_left = box.left
            digit_right = box.right
    return digits


def _add_parts(parts: list[_Box], digits: list[list[_Box]]) -> int:
    """Add each part to the digit above, below or next to it. Return the number of marks left."""
    owners = [digit[:] for digit in digits]  # a part does not lead to another part
    n_marks = 0
    for part in parts:
        nearest = 0
        least = (True, float("inf"))
        for i, owner in enumerate(owners):
            is_aside = not any(part.is_above_or_below(box) for box in owner)
            distance = min(part.distance(box) for box in owner)
            if (is_aside, distance) < least:
                least = (is_aside, distance)
                nearest = i

        if least[1] <= MAX_PART_DISTANCE * max(box.length for box in owners[nearest]):
            digits[nearest].append(part)
        else:
            n_marks += 1
    return n_marks


def _cut_out(group: list[_Box], components: np.ndarray, strength: np.ndarray) -> Digit:
    """Return the digit that consists of these components."""
    left = min(box.left for box in group)
    top = min(box.top for box in group)
    right = max(box.right for box in group)
    bottom = max(box.bottom for box in group)
    is_own = np.isin(components[top:bottom, left:right], [box.number for box in group])
    return Digit(np.where(is_own, strength[top:bottom, left:right], 0), left, top)


def _split_touching(row: list[Digit]) -> tuple[list[Digit], int]:
    """Split what is wide and has a thin place. Return the digits and the number of doubts."""
    row_height = float(np.median([digit.height for digit in row]))
    n_touching = 0
    digits = []
    for i, digit in enumerate(row):
        other_widths = [other.width for other in row[:i] + row[i + 1 :]]
        height = min(digit.height, row_height)
        usual_width = USUAL_WIDTH * height
        if len(other_widths) >= 2:
            usual_width = max(usual_width, float(np.median(other_widths)))

        pieces = [digit]
        max_width = (MAX_WIDTH if other_widths else MAX_SINGLE_WIDTH) * height
        if digit.width > max(max_width, MAX_RELATIVE_WIDTH * usual_width):
            n_pieces = max(2, round(digit.width / usual_width))
            pieces = _split(digit, n_pieces, min_height=height / 2)
        if len(pieces) > 1:
            n_touching += 1
            if not other_widths or digit.width <= MIN_SPLIT_WIDTH * height:
                pieces = [digit]
        digits += pieces
    return digits, n_touching


def _split(digit: Digit, n_pieces: int, min_height: float) -> list[Digit]:
    """Split a digit where it is thinnest: where one path from top to bottom crosses one stroke.

    Returns the digit alone if it has no such places or if a piece would be lower than `min_height`.
    """
    if digit.width < 3 * n_pieces:
        return [digit]
    piece_of = np.zeros(digit.strength.shape, int)
    for i in range(1, n_pieces):
        width = digit.width / n_pieces
        first = max(1, int((i - 0.3) * width))
        last = min(digit.width - 1, int((i + 0.3) * width) + 1)
        seam = _seam(digit.strength, first, last)

        is_stroke = digit.strength[np.arange(digit.height), seam] > 0.3
        n_strokes = np.diff(np.pad(is_stroke, 1)).sum() / 2
        if n_strokes > 1:
            return [digit]
        piece_of += np.arange(digit.width) >= seam[:, None]

    pieces = []
    for i in range(n_pieces):
        strength = np.where(piece_of == i, digit.strength, 0)
        rows, columns = strength.nonzero()
        if not rows.size or 1 + np.ptp(rows) < min_height:
            return [digit]
        top = int(rows.min())
        left = int(columns.min())
        box = strength[top : rows.max() + 1, left : columns.max() + 1]
        pieces.append(Digit(box, digit.left + left, digit.top + top))
    return pieces


def _seam(strength: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return for each row the column of the path from top to bottom that crosses the least ink.

    Source: Avidan & Shamir, "Seam carving for content-aware image resizing", 2007.
    """
    step_aside = 0.001  # so that the path is straight where it can be
    ink = strength[:, first:last]
    cost = ink[0]
    steps = np.zeros(ink.shape, int)  # to the column in the row above
    for y in range(1, len(ink)):
        padded = np.pad(cost, 1, constant_values=np.inf)
        ways = np.stack([padded[1:-1], padded[:-2] + step_aside, padded[2:] + step_aside])
        steps[y] = np.array([0, -1, 1])[ways.argmin(axis=0)]
        cost = ways.min(axis=0) + ink[y]

    seam = np.zeros(len(ink), int)
    x = int(cost.argmin())
    for y in range(len(ink) - 1, -1, -1):
        seam[y] = first + x
        x += steps[y, x]
    return seam
