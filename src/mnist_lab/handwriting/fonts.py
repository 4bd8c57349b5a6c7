"""The digits of handwriting fonts: a test of handwriting from many people and countries."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import affine_transform, maximum_filter

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset
from mnist_mlp.files import published, read_json

# One row of ten digits per font.
FONT_SHEET = published("benchmarks/accuracy/fonts.png")

SIDE = 48  # pixels of the square around one digit
MARGIN = 16  # pixels of paper around this square: room for a thick pen and a slant
PENS = {"thin": 1, "medium": 3, "thick": 5}  # pixels of the dilation; 1 leaves the font unchanged
SLANTS = (-0.15, 0.0, 0.25)  # columns per row

# Prefix of the fonts that show the letterforms taught in a country's schools.
SCHOOL = "Playwrite"


def read_fonts() -> dict[str, np.ndarray]:
    """Return the digits of each font, floats of shape (10, 48, 48) from 0 (paper) to 1 (ink).

    Raises:
        OSError: The sheet or its record is missing.
        ValueError: The sheet or its record is damaged.
    """
    record = read_json(FONT_SHEET.with_suffix(".json"), {"fonts": list})
    families = [font["family"] for font in record["fonts"]]

    sheet = np.asarray(Image.open(FONT_SHEET), np.float32) / 255
    digits = sheet.reshape(len(families), SIDE, 10, SIDE).swapaxes(1, 2)
    return dict(zip(families, digits, strict=True))


def read_half(half: int) -> dict[str, np.ndarray]:
    """Return every second font, as `read_fonts` does.

    Args:
        half: 0 for the first, third ... font, for making choices; 1 for the others, for
            reporting.
    """
    fonts = read_fonts()
    names = list(fonts)[half::2]
    return {name: fonts[name] for name in names}


def font_pictures(half: int) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return pictures of the digits of half of the fonts.

    Args:
        half: As for `read_half`.

    Returns:
        Pictures with their digits, as `write_with_pens` returns them, per group of fonts and pen,
        such as "school fonts, thin pen".
    """
    school_fonts = []
    other_fonts = []
    for name, digits in read_half(half).items():
        if name.startswith(SCHOOL):
            school_fonts.append(digits)
        else:
            other_fonts.append(digits)

    groups = {}
    for pen, pictures in write_with_pens(school_fonts).items():
        groups[f"school fonts, {pen} pen"] = pictures
    for pen, pictures in write_with_pens(other_fonts).items():
        groups[f"other fonts, {pen} pen"] = pictures
    return groups


def font_digits(half: int) -> dict[str, ImageDataset]:
    """Return a data set per group of fonts and pen: `font_pictures` as `to_mnist` reads them.

    Args:
        half: As for `read_half`.
    """
    datasets = {}
    for group, pictures in font_pictures(half).items():
        images = torch.stack([to_mnist(picture) for picture, _ in pictures])
        labels = torch.tensor([int(digit) for _, digit in pictures])
        datasets[group] = ImageDataset(images, labels)
    return datasets


def write_with_pens(fonts: Iterable[np.ndarray]) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return pictures of the digits of fonts by pen in `PENS`, each at every slant in `SLANTS`.

    Args:
        fonts: The digits of each font, as `read_fonts` returns them.

    Returns:
        By pen, pictures of dark ink on white paper, floats from 0 to 1, each with its digit.
    """
    digits = np.concatenate(list(fonts))

    pictures: dict[str, list[tuple[np.ndarray, str]]] = {}
    for pen, dilation in PENS.items():
        pictures[pen] = []
        for number, digit in enumerate(digits):
            thickened = maximum_filter(np.pad(digit, MARGIN), dilation)
            name = str(number % 10)  # each font has the digits 0 to 9 in this order
            pictures[pen] += [(1 - _slant(thickened, slant), name) for slant in SLANTS]
    return pictures


def _slant(picture: np.ndarray, slant: float) -> np.ndarray:
    """Shift each row of a picture sideways, by `slant` columns per row from the middle row."""
    # The pixel at (row, column) of the result is taken from `matrix` @ (row, column) + `offset`.
    middle = picture.shape[0] / 2
    matrix = np.array([[1, 0], [slant, 1]])
    offset = (0, -slant * middle)
    return affine_transform(picture, matrix, offset, order=1).clip(0, 1)


def ones(half: int) -> tuple[list[str], torch.Tensor]:
    """Return the 1 of each school font of a half, as `to_mnist` reads it.

    Args:
        half: As for `read_half`.

    Returns:
        The names of the fonts, and uint8 images of shape (N, 28, 28).
    """
    names = []
    images = []
    for name, digits in read_half(half).items():
        if name.startswith(SCHOOL):
            names.append(name.removeprefix(SCHOOL).strip())
            images.append(to_mnist(1 - np.pad(digits[1], MARGIN)))
    return names, torch.stack(images)
