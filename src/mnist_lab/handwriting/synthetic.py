"""Synthetic handwriting: digits drawn by this repository, as training images and as pictures."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from mnist_lab.handwriting.preprocess import thicken_and_centre
from mnist_lab.handwriting.styles import FORMS, NO_DIGITS, ONE_PERSON
from mnist_mlp.data import ImageDataset

THINNEST_PEN = 0.04  # width of the pen, as a part of the square's side
THICKEST_PEN = 0.2
SHARE_OF_LETTERS = 0.6  # of the other marks; the rest are scribbles
MIN_LOOP = 32  # pixels of the square: two of an image that is 28x28
SIDE = 112  # pixels of the square on which a digit is drawn before it is reduced to 28x28


def synthetic_digits(count: int, seed: int = 0) -> ImageDataset:
    """Return images of digits in the styles of many countries, as `to_mnist` would return them.

    Each image shows a random form from `styles.FORMS` in a random hand: slant, width, rotation,
    proportions, unsteadiness, and a pen from thin to thick. A digit with more forms occurs more
    often.

    Args:
        count: The number of images.
        seed: The seed of the random numbers. The same seed gives the same images.
    """
    rng = np.random.default_rng(seed)
    forms = []
    for digit, forms_of_digit in FORMS.items():
        forms += [(int(digit), form) for form in forms_of_digit]

    images = []
    labels = []
    for choice in rng.integers(0, len(forms), count):
        label, form = forms[choice]
        images.append(_image(_hand_drawn(form, rng), rng))
        labels.append(label)
    return ImageDataset(torch.stack(images), torch.tensor(labels))


def synthetic_other_marks(count: int, seed: int = 0) -> torch.Tensor:
    """Return images of what is no digit: letters in a random hand, and scribbles.

    Args:
        count: The number of images.
        seed: The seed of the random numbers. The same seed gives the same images.

    Returns:
        Images as `to_mnist` would return them, uint8 of shape (count, 28, 28).
    """
    rng = np.random.default_rng(seed)
    letters = list(NO_DIGITS.values())

    images = []
    for _ in range(count):
        if rng.random() < SHARE_OF_LETTERS:
            form = letters[rng.integers(len(letters))]
        else:
            form = _scribble(rng)
        # A thick pen would make a 1 or an 8 of many a scribble.
        images.append(_image(_hand_drawn(form, rng), rng, THICKEST_PEN / 2))
    return torch.stack(images)


def _scribble(rng: np.random.Generator) -> str:
    """Return a form of two or three strokes through random points."""
    strokes = []
    for _ in range(rng.integers(2, 4)):
        points = rng.integers((0, 0), (70, 100), (rng.integers(5, 9), 2))
        strokes.append(" ".join(f"{x},{y}" for x, y in points))
    return " / ".join(strokes)


def _image(
    lines: list[np.ndarray], rng: np.random.Generator, thickest_pen: float = THICKEST_PEN
) -> torch.Tensor:
    """Return lines, drawn with a random pen, as `to_mnist` would return them."""
    # The longer side becomes 0.72 of the square.
    points = np.concatenate(lines)
    low = points.min(axis=0)
    high = points.max(axis=0)
    scale = 0.72 * SIDE / (high - low).max()
    centred = [(line - (low + high) / 2) * scale + SIDE / 2 for line in lines]

    ink = _draw_legibly(centred, SIDE * rng.uniform(THINNEST_PEN, thickest_pen))
    return thicken_and_centre(ink)


def _hand_drawn(form: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the strokes of a form in a random hand, as lines of points x, y."""
    slant = rng.uniform(-0.25, 0.45)
    width = rng.uniform(0.45, 1.35)
    angle = rng.uniform(-0.15, 0.15)  # radians
    power = rng.uniform(0.8, 1.25)
    unsteadiness = rng.uniform(0.0, 0.04)
    wave_heights = rng.uniform(-0.04, 0.04, 2)
    wave_phases = rng.uniform(0, 2 * np.pi, 2)
    smooth = rng.random() > 0.15  # few people write with straight lines alone

    lines = []
    for line in _curves(form, rng, unsteadiness, smooth):
        x, y = line.T

        # A power of y, from 0 at the top to 1, makes the upper or the lower half larger. Points
        # moved a little above 0 keep their sign.
        y = np.sign(y) * np.abs(y) ** power

        x = x + wave_heights[0] * np.sin(5 * y + wave_phases[0])
        y = y + wave_heights[1] * np.sin(5 * x + wave_phases[1])
        x = x * width - slant * (y - 0.5)

        rotated_x = np.cos(angle) * x - np.sin(angle) * y
        rotated_y = np.sin(angle) * x + np.cos(angle) * y
        lines.append(np.stack([rotated_x, rotated_y], axis=1))
    return lines


def _curves(
    form: str, rng: np.random.Generator, unsteadiness: float, smooth: bool = True
) -> list[np.ndarray]:
    """Return a curve of 60 points x, y through the points of each stroke.

    Random errors move the points. Points with the same coordinates move alike, so that strokes
    that meet still meet.
    """
    positions: dict[str, np.ndarray] = {}
    curves = []
    for stroke in form.split(" / "):
        for point in stroke.split():
            if point not in positions:
                exact = np.array(point.split(","), float) / 100
                positions[point] = exact + rng.normal(0, unsteadiness, 2)
        points = np.array([positions[point] for point in stroke.split()])

        degree = min(2, len(points) - 1) if smooth else 1
        curve = make_interp_spline(range(len(points)), points, k=degree)
        curves.append(curve(np.linspace(0, len(points) - 1, 60)))
    return curves


def _draw_legibly(lines: list[np.ndarray], pen: float) -> np.ndarray:
    """Return lines on the square, drawn as `_draw` does, with loops where a thin pen draws loops.

    A pen that fills a loop, or closes an open one, is replaced by thinner ones until it does not:
    a 9 with a filled head may as well be a 1.
    """
    thin = THINNEST_PEN * SIDE
    n_loops = _count_loops(_draw(lines, (SIDE, SIDE), thin))
    while pen > thin:
        ink = _draw(lines, (SIDE, SIDE), pen)
        if _count_loops(ink) == n_loops:
            return ink
        pen *= 0.8
    return _draw(lines, (SIDE, SIDE), thin)


def _count_loops(ink: np.ndarray) -> int:
    """Return the number of areas of paper that ink encloses and that are still there in 28x28."""
    areas, _ = label(ink < 0.5)
    sizes = np.bincount(areas.ravel())[1:]  # without the ink
    n_areas = (sizes >= MIN_LOOP).sum()
    return int(n_areas) - 1  # the paper around the digit


def _draw(lines: list[np.ndarray], size: tuple[int, int], pen: float) -> np.ndarray:
    """Return lines drawn with a round pen, floats from 0 to 1 of shape (H, W).

    Args:
        lines: Points x, y in pixels, each line of shape (N, 2).
        size: W, H.
        pen: The width of the pen in pixels.
    """
    sheet = Image.new("1", size, 1)
    for line in lines:
        ImageDraw.Draw(sheet).line([tuple(point) for point in line], fill=0)

    # 1 is paper: the transform measures each pixel's distance to the nearest 0.
    distance = distance_transform_edt(np.asarray(sheet))
    return np.clip(pen / 2 + 0.5 - distance, 0, 1)


def write_samples(folder: str | Path, each: int = 6, seed: int = 0) -> list[tuple[Path, str]]:
    """Write drawn digits that imitate photos: ink on grainy paper, JPEG files of 320x320 pixels.

    They have the forms in `styles.ONE_PERSON`, on which no network is trained. Each has a random
    pen, slant, position and light.

    Args:
        folder: The folder to write them in. It is made if there is none.
        each: The number of pictures of each digit.
        seed: The seed of the random numbers. The same seed gives the same pictures.

    Returns:
        The path and the digit of each picture.
    """
    rng = np.random.default_rng(seed)
    Path(folder).mkdir(parents=True, exist_ok=True)

    samples = []
    digits = [*ONE_PERSON] * each  # "0" to "9", each of them `each` times
    for number, digit in enumerate(rng.permutation(digits), start=1):
        path = Path(folder) / f"picture {number:03d}.jpg"
        render_photo(digit, rng, 320).save(path, quality=75)
        samples.append((path, str(digit)))
    return samples


def render_photo(digits: str, rng: np.random.Generator, height: int) -> Image.Image:
    """Return drawn digits side by side that imitate a photo, dark ink on paper.

    Args:
        digits: The digits from left to right, each in the form of `styles.ONE_PERSON`.
        rng: Draws the hand, the pen, the paper and the light.
        height: The height of the picture in pixels.
    """
    # In units of the height, the first digit begins at 0.3, and every further one 0.6 after the
    # one before it.
    width = round(height * (0.4 + 0.6 * len(digits)))
    ink = np.zeros((height, width))
    for position, digit in enumerate(digits):
        size = height * rng.uniform(0.45, 0.6)
        slant = rng.uniform(-0.1, 0.3)
        pen = size * rng.uniform(0.03, 0.09)
        left = height * (0.3 + 0.6 * position)
        top = height * rng.uniform(0.15, 0.3)

        lines = _curves(ONE_PERSON[digit], rng, unsteadiness=0.015)
        for line in lines:
            line[:, 0] -= slant * (line[:, 1] - 0.5)
        placed = [line * size + (left, top) for line in lines]
        ink = np.maximum(ink, _draw(placed, (width, height), pen))  # digits may overlap

    # The light fades to the right, and to the upper and lower edge.
    y, x = np.mgrid[:height, :width] / height
    light = 0.9 - rng.uniform(0, 0.3) * x / x.max() - rng.uniform(0, 0.2) * (y - 0.5) ** 2
    grain = gaussian_filter(rng.standard_normal(ink.shape), 1) * 0.04
    grey = np.clip(light * (1 - rng.uniform(0.5, 0.8) * ink) + grain, 0, 1)
    return Image.fromarray((255 * grey).round().astype(np.uint8))
