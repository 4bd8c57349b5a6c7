"""The digits of handwriting fonts: a test of handwriting from many people and countries."""

from collections.abc import Iterable, Mapping
from statistics import mean

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import affine_transform, maximum_filter

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset
from mnist_mlp.files import read_json, repo_root

# One row of ten digits per font.
FONT_SHEET = repo_root() / "benchmarks" / "accuracy" / "fonts.png"

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


def font_digits(half: int) -> dict[str, ImageDataset]:
    """Return the digits of half of the fonts, as `to_mnist` reads them.

    Args:
        half: As for `read_half`.

    Returns:
        A data set per group of fonts and pen, such as "school fonts, thin pen".
    """
    school_fonts = []
    other_fonts = []
    for name, digits in read_half(half).items():
        if name.startswith(SCHOOL):
            school_fonts.append(digits)
        else:
            other_fonts.append(digits)

    datasets = {}
    for pen, dataset in write_with_pens(school_fonts).items():
        datasets[f"school fonts, {pen} pen"] = dataset
    for pen, dataset in write_with_pens(other_fonts).items():
        datasets[f"other fonts, {pen} pen"] = dataset
    return datasets


def write_with_pens(fonts: Iterable[np.ndarray]) -> dict[str, ImageDataset]:
    """Return the digits of fonts by pen in `PENS`, each at every slant in `SLANTS`.

    Args:
        fonts: The digits of each font, as `read_fonts` returns them.
    """
    digits = np.concatenate(list(fonts))

    # Each font has the digits 0 to 9 in this order, and each digit becomes an image per slant.
    labels_of_digits = torch.arange(len(digits)).remainder(10)
    labels = labels_of_digits.repeat_interleave(len(SLANTS))

    datasets = {}
    for pen, dilation in PENS.items():
        images = []
        for digit in digits:
            thickened = maximum_filter(np.pad(digit, MARGIN), dilation)
            images += [to_mnist(1 - _slant(thickened, slant)) for slant in SLANTS]
        datasets[pen] = ImageDataset(torch.stack(images), labels)
    return datasets


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


def read_results() -> dict:
    """Return the record of `make handwriting`.

    Raises:
        OSError: The record is missing.
        ValueError: The record is damaged.
    """
    schema = {"images": dict, "before": dict, "runs": list, "test_images": int}
    return read_json(FONT_SHEET.with_name("handwriting.json"), schema)


def results_table(record: Mapping) -> pd.DataFrame:
    """Return the accuracy on each set of images, from the record of `make handwriting`."""
    before = record["before"]
    runs = record["runs"]

    test_images = record["test_images"]
    correct_after = mean(run["test_correct"] for run in runs)
    rows = {
        "MNIST's test set": {
            "images": f"{test_images:,}",
            "before": f"{before['test_correct'] / test_images:.2%}",
            "after, mean of the seeds": f"{correct_after / test_images:.2%}",
        }
    }

    for name, images_per_digit in record["images"].items():
        count = sum(images_per_digit)
        correct_before = sum(before["handwriting"][name])
        correct_after = mean(sum(run["handwriting"][name]) for run in runs)
        rows[name] = {
            "images": f"{count:,}",
            "before": f"{correct_before / count:.1%}",
            "after, mean of the seeds": f"{correct_after / count:.1%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
