"""Digits of handwriting fonts, as pictures of the handwriting of many people and countries."""

from collections.abc import Mapping
from statistics import mean

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import affine_transform, maximum_filter

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset
from mnist_mlp.files import read_json, repo_root

PICTURE = repo_root() / "benchmarks" / "accuracy" / "fonts.png"
SIDE = 48  # pixels of the square with one digit
PENS = {"thin": 1, "medium": 3, "thick": 5}  # size of the dilation; 1 leaves the font unchanged
SLANTS = (-0.15, 0.0, 0.25)  # columns per row
SCHOOL = "Playwrite"  # fonts of the letters that a country's schools teach


def read_fonts() -> dict[str, np.ndarray]:
    """Return each font's digits, floats of shape (10, 48, 48) from 0, paper, to 1, ink.

    Raises:
        OSError, ValueError: The picture or its record is missing or damaged.
    """
    fonts = read_json(PICTURE.with_suffix(".json"), {"fonts": list})["fonts"]
    sheet = np.asarray(Image.open(PICTURE), np.float32) / 255
    digits = sheet.reshape(len(fonts), SIDE, 10, SIDE).swapaxes(1, 2)
    return {font["family"]: of_font for font, of_font in zip(fonts, digits, strict=True)}


def read_half(half: int) -> dict[str, np.ndarray]:
    """Return every second font as `read_fonts` does.

    Args:
        half: 0 for the first, third ... font, to choose on; 1 for the others, to report.
    """
    fonts = read_fonts()
    names = list(fonts)[half::2]
    return {name: fonts[name] for name in names}


def font_digits(half: int) -> dict[str, ImageDataset]:
    """Return the digits of a half of the fonts, by kind of font and pen, as `to_mnist` reads them.

    Each digit is there with every pen in `PENS`, at every slant in `SLANTS`.

    Args:
        half: As for `read_half`.
    """
    fonts = read_half(half)
    kinds = {
        "school fonts": [digits for name, digits in fonts.items() if name.startswith(SCHOOL)],
        "other fonts": [digits for name, digits in fonts.items() if not name.startswith(SCHOOL)],
    }

    datasets = {}
    for kind, fonts_of_kind in kinds.items():
        labels = torch.arange(10).repeat_interleave(len(SLANTS)).repeat(len(fonts_of_kind))
        for pen, size in PENS.items():
            images = []
            for digit in np.concatenate(fonts_of_kind):
                thick = maximum_filter(np.pad(digit, 16), size)
                images += [to_mnist(1 - _slanted(thick, slant)) for slant in SLANTS]
            datasets[f"{kind}, {pen} pen"] = ImageDataset(torch.stack(images), labels)
    return datasets


def _slanted(picture: np.ndarray, slant: float) -> np.ndarray:
    middle = picture.shape[0] / 2
    matrix = np.array([[1, 0], [slant, 1]])
    offset = (0, -slant * middle)
    return affine_transform(picture, matrix, offset, order=1).clip(0, 1)


def ones(half: int) -> tuple[list[str], torch.Tensor]:
    """Return the names of the school fonts of a half, and their 1s as `to_mnist` reads them."""
    names = []
    images = []
    for name, digits in read_half(half).items():
        if name.startswith(SCHOOL):
            names.append(name.removeprefix(SCHOOL).strip())
            images.append(to_mnist(1 - np.pad(digits[1], 16)))
    return names, torch.stack(images)


def read_results() -> dict:
    """Return the record of `make handwriting`.

    Raises:
        OSError, ValueError: It is missing or damaged.
    """
    schema = {"images": dict, "before": dict, "runs": list, "test_images": int}
    return read_json(PICTURE.with_name("handwriting.json"), schema)


def results_table(record: Mapping) -> pd.DataFrame:
    """Return the accuracy on each set of images, from the record of `make handwriting`."""
    before = record["before"]
    runs = record["runs"]

    count = record["test_images"]
    correct_after = mean(run["test_correct"] for run in runs)
    rows = {
        "MNIST's test set": {
            "images": f"{count:,}",
            "before": f"{before['test_correct'] / count:.2%}",
            "after, mean of the seeds": f"{correct_after / count:.2%}",
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
