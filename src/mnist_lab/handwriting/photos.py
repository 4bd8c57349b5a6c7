"""Pictures of digits as people take them, made from the images of a data set.

Each function takes the ink of a digit, floats from 0 (paper) to 1 (ink) of shape (H, W), and
returns a grey picture, uint8. `KINDS` has them all by name.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 112  # pixels of an enlarged image's side
DIGIT_HEIGHT = 84  # pixels: 10 mm on paper
BLACK_INK = 20  # of 255

Kind = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def enlarge(image: torch.Tensor) -> np.ndarray:
    """Return an image of 28x28 pixels, uint8, as ink of 112x112 pixels from 0 to 1."""
    big = Image.fromarray(image.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(big) / 255


def crop(ink: np.ndarray, margin: float) -> np.ndarray:
    """Return the ink inside the digit's box, with a margin on all sides.

    Args:
        ink: Floats from 0 to 1 of shape (H, W).
        margin: In parts of the box's longer side: 0.1 for a tenth.
    """
    rows, columns = (ink > 0.1).nonzero()
    box = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.pad(box, round(margin * max(box.shape)))


def photograph(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ink on paper under uneven light, with a camera's noise."""
    height, width = ink.shape
    y, x = np.mgrid[:height, :width] / max(height, width) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.85 - rng.uniform(0, 0.25) * (np.cos(angle) * x + np.sin(angle) * y)
    grey = light * (1 - 0.8 * ink) + rng.normal(0, 0.012, ink.shape)
    return (255 * grey.clip(0, 1)).round().astype(np.uint8)


def on_lines(
    ink: np.ndarray,
    rng: np.random.Generator,
    *,
    line_grey: float,
    line_width: float,
    squared: bool,
    degrees: float = 0,
) -> np.ndarray:
    """Return black ink on white paper with printed lines every 7 mm, or squares of 5 mm.

    Args:
        ink: Floats from 0 to 1 of shape (H, W).
        rng: Draws where the first line is.
        line_grey: The grey of the lines, from 0 (black) to 255.
        line_width: In pixels.
        squared: Whether the paper has squares.
        degrees: By how much the paper is tilted.
    """
    spacing = (5 if squared else 7) * DIGIT_HEIGHT / 10
    y, x = np.indices(ink.shape)
    slope = np.tan(np.radians(degrees))
    across_the_lines = [y - slope * x]
    if squared:
        across_the_lines.append(x + slope * y)

    paper = np.full(ink.shape, 255.0)
    for position in across_the_lines:
        shifted = position - rng.uniform(0, spacing)
        distance = np.abs((shifted + spacing / 2) % spacing - spacing / 2)
        line = np.clip(line_width / 2 + 0.5 - distance, 0, 1)
        paper = np.minimum(paper, 255 - (255 - line_grey) * line)
    return (paper * (1 - ink) + BLACK_INK * ink).round().astype(np.uint8)


def in_a_box(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph of a digit in a printed box, with some paper around it."""
    framed = np.pad(ink, 10)
    framed[:3] = framed[-3:] = 1
    framed[:, :3] = framed[:, -3:] = 1
    return photograph(np.pad(framed, rng.integers(1, 20)), rng)


def in_a_cell(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph of a digit in a cell of a printed table, whose lines go on."""
    sheet = np.pad(ink, 20)
    sheet[10:14] = sheet[-14:-10] = 1
    sheet[:, 10:14] = sheet[:, -14:-10] = 1
    return photograph(sheet, rng)


def underlined(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph of a digit above a line from edge to edge."""
    sheet = np.pad(ink, 30)
    sheet[-18:-15] = 1
    return photograph(sheet, rng)


def beside_the_table(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph that shows a strip of the dark table beside the paper."""
    sheet = np.pad(ink, 50)
    strip = np.zeros(sheet.shape, bool)
    strip[: rng.integers(4, 40)] = True
    strip = np.rot90(strip, int(rng.integers(4)))
    return photograph(np.where(strip, rng.uniform(0.5, 1), sheet), rng)


def with_a_dark_corner(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph with something dark in a corner."""
    sheet = np.pad(ink, 50)
    y, x = np.indices(sheet.shape)
    return photograph(np.where(x + y < rng.uniform(30, 90), 0.9, sheet), rng)


def with_a_shadow(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph with the soft shadow of a phone across a corner."""
    sheet = np.pad(ink, 70)
    y, x = np.indices(sheet.shape) / sheet.shape[0]
    shadow = gaussian_filter(0.5 * (y + 0.5 * x > rng.uniform(1.2, 1.3)), 8)
    return (photograph(sheet, rng) * (1 - shadow)).round().astype(np.uint8)


def on_a_tilted_squared_sheet(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a digit somewhere on a tilted sheet of squared paper."""
    sheet = np.pad(ink, ((120, 250), (200, 300)))
    return on_lines(sheet, rng, line_grey=150, line_width=2, squared=True, degrees=2.5)


def cropped(margin: float) -> Kind:
    """Return a function that photographs a digit cut out along its box, as `crop` cuts it."""

    def kind(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return photograph(crop(ink, margin), rng)

    return kind


def bitmap(side: int, stretched: bool) -> Kind:
    """Return a function that makes a bitmap of 0 and 255 that the digit fills.

    Args:
        side: The bitmap's height in pixels.
        stretched: Whether the bitmap is as wide as high, whatever the digit's shape.
    """

    def kind(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = Image.fromarray((255 * crop(ink, 0)).astype(np.uint8))
        width = side if stretched else max(1, round(side * box.width / box.height))
        bits = np.asarray(box.resize((width, side), Image.Resampling.BOX)) > 127
        return 255 * bits.astype(np.uint8)

    return kind


def small(height: int) -> Kind:
    """Return a function that makes a grey picture of a digit that is only `height` pixels high."""

    def kind(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = Image.fromarray((255 * crop(ink, 0)).astype(np.uint8))
        width = max(1, round(height * box.width / box.height))
        return np.pad(np.asarray(box.resize((width, height), Image.Resampling.BOX)), 2)

    return kind


def lines(line_grey: float, line_width: float, squared: bool, degrees: float = 0) -> Kind:
    """Return a function that writes a digit on lines, as `on_lines` does."""

    def kind(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return on_lines(
            np.pad(ink, rng.integers(8, 60)),
            rng,
            line_grey=line_grey,
            line_width=line_width,
            squared=squared,
            degrees=degrees,
        )

    return kind


def sheet_of_rows(
    images: Sequence[torch.Tensor], n_columns: int, rng: np.random.Generator
) -> np.ndarray:
    """Return a photograph of images in rows of `n_columns` digits."""
    rows = []
    for first in range(0, len(images), n_columns):
        digits = [np.pad(enlarge(image), 4) for image in images[first : first + n_columns]]
        rows.append(np.concatenate(digits, axis=1))
    return photograph(np.concatenate(rows), rng)


def _kinds() -> dict[str, Kind]:
    kinds = {
        "printed box": in_a_box,
        "cell of a table": in_a_cell,
        "underlined": underlined,
        "table beside the paper": beside_the_table,
        "dark corner": with_a_dark_corner,
        "shadow": with_a_shadow,
        "bitmap, 32 pixels high": bitmap(32, stretched=False),
        "bitmap, 16 pixels high": bitmap(16, stretched=False),
        "bitmap stretched to 32x32": bitmap(32, stretched=True),
        "bitmap stretched to 16x16": bitmap(16, stretched=True),
        "sheet of squared paper, tilted": on_a_tilted_squared_sheet,
        "8 pixels high": small(8),
        "12 pixels high": small(12),
        "ruled, tilted": lines(160, 3, squared=False, degrees=1.5),
        "squared, tilted": lines(160, 3, squared=True, degrees=-1.5),
    }
    for percent in (0, 2, 5, 10, 20):
        kinds[f"cropped with a margin of {percent}%"] = cropped(percent / 100)
    for grey in (120, 160, 200):
        for width in (2, 4):
            kinds[f"ruled, grey {grey}, {width} wide"] = lines(grey, width, squared=False)
            kinds[f"squared, grey {grey}, {width} wide"] = lines(grey, width, squared=True)
    return kinds


KINDS = _kinds()
