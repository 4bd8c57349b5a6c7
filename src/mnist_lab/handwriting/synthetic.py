"""Synthetic handwriting: digits drawn by the repository itself, for training and as photos."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt, gaussian_filter

from mnist_lab.handwriting.preprocess import thicken_and_centre
from mnist_lab.handwriting.styles import FORMS, ONE_PERSON
from mnist_mlp.data import ImageDataset

SIDE = 112  # pixels of the square on which a digit is drawn before it is made small


def synthetic_digits(count: int, seed: int = 0) -> ImageDataset:
    """Return images of digits in the styles of many countries, as `to_mnist` would return them.

    Each image has a random form of `styles.FORMS` and a hand of its own: slant, width, rotation,
    proportions, unsteadiness, and a pen from thin to thick. A digit with more forms occurs more
    often. The same `seed` gives the same images.
    """
    random = np.random.default_rng(seed)
    forms = [(int(digit), form) for digit, of_digit in FORMS.items() for form in of_digit]
    images = []
    labels = []

    for number in random.integers(0, len(forms), count):
        label, form = forms[number]
        lines = _write(form, random)

        points = np.concatenate(lines)
        low = points.min(axis=0)
        high = points.max(axis=0)
        scale = 0.72 * SIDE / (high - low).max()
        placed = [(line - (low + high) / 2) * scale + SIDE / 2 for line in lines]
        ink = _draw(placed, (SIDE, SIDE), SIDE * random.uniform(0.04, 0.2))
        images.append(thicken_and_centre(ink))
        labels.append(label)

    return ImageDataset(torch.stack(images), torch.tensor(labels))


def _write(form: str, random: np.random.Generator) -> list[np.ndarray]:
    """Return the strokes of a form in a random hand, as lines of points x, y."""
    slant, width, turn = random.uniform((-0.25, 0.45, -0.15), (0.45, 1.35, 0.15))
    power, unsteady = random.uniform((0.8, 0.0), (1.25, 0.04))
    waves = random.uniform(-0.04, 0.04, 2)
    phases = random.uniform(0, 2 * np.pi, 2)
    smooth = random.random() > 0.15  # few people write with straight lines alone

    lines = []
    for line in _curves(form, random, unsteady, smooth):
        x, y = line.T
        y = np.sign(y) * np.abs(y) ** power  # a larger upper or lower half
        x = x + waves[0] * np.sin(5 * y + phases[0])
        y = y + waves[1] * np.sin(5 * x + phases[1])
        x = x * width - slant * (y - 0.5)
        cosine = np.cos(turn)
        sine = np.sin(turn)
        lines.append(np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1))
    return lines


def _curves(
    form: str, random: np.random.Generator, unsteady: float, smooth: bool = True
) -> list[np.ndarray]:
    """Return curves through the points of each stroke; equal points move alike."""
    moved: dict[str, np.ndarray] = {}
    curves = []
    for stroke in form.split(" / "):
        for point in stroke.split():
            if point not in moved:
                moved[point] = np.array(point.split(","), float) / 100
                moved[point] += random.normal(0, unsteady, 2)
        points = np.array([moved[point] for point in stroke.split()])
        degree = min(2, len(points) - 1) if smooth else 1
        curve = make_interp_spline(range(len(points)), points, k=degree)
        curves.append(curve(np.linspace(0, len(points) - 1, 60)))
    return curves


def _draw(lines: list[np.ndarray], size: tuple[int, int], pen: float) -> np.ndarray:
    """Return lines drawn with a round pen, floats from 0 to 1 of shape (H, W).

    Args:
        lines: Points x, y in pixels, each of shape (N, 2).
        size: W, H.
        pen: The width of the pen in pixels.
    """
    sheet = Image.new("1", size, 1)
    for line in lines:
        ImageDraw.Draw(sheet).line([tuple(point) for point in line], fill=0)
    return np.clip(pen / 2 + 0.5 - distance_transform_edt(np.asarray(sheet)), 0, 1)


def write_samples(folder: str | Path, each: int = 6, seed: int = 0) -> list[tuple[Path, str]]:
    """Write photos of one person's digits and return their paths, each with its digit.

    They are JPEG files of 320x320 pixels: ink on grainy paper, each with a random pen, slant,
    place and light. The same `seed` gives the same pictures.

    Args:
        folder: Where to write them.
        each: The number of pictures of each digit.
        seed: The seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    written = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, digit in enumerate(random.permutation([*ONE_PERSON] * each)):
        path = Path(folder) / f"picture {number + 1:03d}.jpg"
        render_photo(digit, random, 320).save(path, quality=75)
        written.append((path, str(digit)))
    return written


def render_photo(digits: str, random: np.random.Generator, height: int) -> Image.Image:
    """Return a photo of one person's digits side by side, `height` pixels high, dark on paper."""
    width = round(height * (0.4 + 0.6 * len(digits)))
    ink = np.zeros((height, width))
    for place, digit in enumerate(digits):
        size = height * random.uniform(0.45, 0.6)
        slant = random.uniform(-0.1, 0.3)
        pen = size * random.uniform(0.03, 0.09)
        corner = height * np.array([0.3 + 0.6 * place, random.uniform(0.15, 0.3)])

        lines = _curves(ONE_PERSON[digit], random, 0.015)
        for line in lines:
            line[:, 0] -= slant * (line[:, 1] - 0.5)
        placed = [line * size + corner for line in lines]
        ink = np.maximum(ink, _draw(placed, (width, height), pen))

    y, x = np.mgrid[:height, :width] / height
    light = 0.9 - random.uniform(0, 0.3) * x / x.max() - random.uniform(0, 0.2) * (y - 0.5) ** 2
    grain = gaussian_filter(random.standard_normal(ink.shape), 1) * 0.04
    grey = np.clip(light * (1 - random.uniform(0.5, 0.8) * ink) + grain, 0, 1)
    return Image.fromarray((255 * grey).round().astype(np.uint8))
