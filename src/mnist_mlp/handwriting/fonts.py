"""Digits of handwriting fonts, as pictures of the handwriting of many people and countries."""

from collections.abc import Mapping
from statistics import mean

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import affine_transform, maximum_filter

from mnist_mlp.data import ImageDataset
from mnist_mlp.handwriting.preprocess import to_mnist
from mnist_mlp.storage.files import read_json, repo_root

PICTURE = repo_root() / "benchmarks" / "accuracy" / "fonts.png"
SIDE = 48  # pixels of the square with one digit
PENS = {"thin": 1, "medium": 3, "thick": 5}  # pixels that one becomes: 1 is as the font has it
SLANTS = -0.15, 0.0, 0.25  # columns per row
SCHOOL = "Playwrite"  # fonts of the letters that a country's schools teach


def read_fonts() -> dict[str, np.ndarray]:
    """Return each font's digits, floats of shape (10, 48, 48) from 0, paper, to 1, ink.

    Raises OSError or ValueError if the picture or its record is missing or damaged.
    """
    fonts = read_json(PICTURE.with_suffix(".json"), {"fonts": list})["fonts"]
    sheet = np.asarray(Image.open(PICTURE), np.float32) / 255
    digits = sheet.reshape(len(fonts), SIDE, 10, SIDE).swapaxes(1, 2)
    return {font["family"]: of_font for font, of_font in zip(fonts, digits, strict=True)}


def font_digits(half: int) -> dict[str, ImageDataset]:
    """Return the digits of every second font, by kind of font and pen, as `to_mnist` reads them.

    `half`: 0 for the first, third ... font, to choose on; 1 for the others, to report. Each digit
    is there with every pen in `PENS`, at every slant in `SLANTS`.
    """
    found = {}
    chosen = [*read_fonts().items()][half::2]
    for kind in ("school", "other"):
        rows = [digits for name, digits in chosen if name.startswith(SCHOOL) == (kind == "school")]
        for pen, width in PENS.items():
            images = [
                to_mnist(1 - _slanted(maximum_filter(np.pad(digit, 16), width), slant))
                for digits in rows
                for digit in digits
                for slant in SLANTS
            ]
            labels = torch.arange(10).repeat_interleave(len(SLANTS)).repeat(len(rows))
            found[f"{kind} fonts, {pen} pen"] = ImageDataset(torch.stack(images), labels)
    return found


def _slanted(picture: np.ndarray, slant: float) -> np.ndarray:
    middle = picture.shape[0] / 2
    matrix, offset = [[1, 0], [slant, 1]], (0, -slant * middle)
    return affine_transform(picture, np.array(matrix), offset, order=1).clip(0, 1)


def ones(half: int) -> tuple[list[str], torch.Tensor]:
    """Return the names of the school fonts of a half, and their 1s as `to_mnist` reads them."""
    chosen = [*read_fonts().items()][half::2]
    school = {name: digits for name, digits in chosen if name.startswith(SCHOOL)}
    names = [name.removeprefix(SCHOOL).strip() for name in school]
    return names, torch.stack([to_mnist(1 - np.pad(d[1], 16)) for d in school.values()])


def read_results() -> dict:
    """Return the record of `make handwriting`. Raises OSError or ValueError if it is damaged."""
    schema = {"images": dict, "before": dict, "runs": list, "test_images": int}
    return read_json(PICTURE.with_name("handwriting.json"), schema)


def results_table(record: Mapping) -> str:
    """Return the record of `make handwriting` as a Markdown table: percent correct by set."""
    lines = [
        "| | images | before | after, mean of the seeds |",
        "|:--|--:|--:|--:|",
    ]
    n = record["test_images"]
    counts = [run["test_correct"] for run in record["runs"]]
    before = record["before"]["test_correct"]
    lines.append(f"| MNIST's test set | {n:,} | {before / n:.2%} | {mean(counts) / n:.2%} |")
    for name, images in record["images"].items():
        first, later = (
            mean(sum(found["handwriting"][name]) for found in runs) / sum(images)
            for runs in ([record["before"]], record["runs"])
        )
        lines.append(f"| {name} | {sum(images):,} | {first:.1%} | {later:.1%} |")
    return "\n".join(lines)
