"""Synthetic handwriting: digits drawn by the repository itself and rendered as photos."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

# The strokes of one person's digits, x and y in hundredths of the digit's height. The one has a
# long upstroke and the seven a bar, as in continental Europe.
STROKES = {
    "0": "38,2 14,22 8,55 22,94 48,96 64,60 58,20 38,2",
    "1": "2,40 24,24 46,3 / 46,3 44,50 41,98",
    "2": "10,24 24,5 48,8 52,32 32,66 6,95 / 6,95 30,92 62,94",
    "3": "12,10 38,2 52,20 40,40 24,46 / 24,46 50,50 58,74 38,97 8,88",
    "4": "34,2 20,32 6,62 / 6,62 30,61 62,60 / 46,36 44,66 42,98",
    "5": "18,6 15,24 14,42 / 14,42 40,38 56,60 44,90 10,94 / 18,6 38,5 58,4",
    "6": "50,3 26,26 10,62 22,94 46,92 52,70 36,56 14,70",
    "7": "6,8 32,7 60,5 / 60,5 44,48 28,98 / 18,52 36,50 56,47",
    "8": "50,14 30,2 14,20 34,46 54,72 32,97 10,78 30,50 50,26 50,14",
    "9": "52,24 34,4 12,22 20,46 44,42 52,24 / 52,24 50,60 44,98",
}


def write_samples(folder: str | Path, each: int = 6, seed: int = 0) -> list[tuple[Path, str]]:
    """Write photos of handwritten digits and return their paths, each with its digit.

    `each`: how many of every digit, all with a random pen, slant, place and light; ink on grainy
    paper, 320x320, JPEG. The same `seed` gives the same pictures.
    """
    random, written = np.random.default_rng(seed), []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, digit in enumerate(random.permutation([*STROKES] * each)):
        path = Path(folder) / f"picture {number + 1:03d}.jpg"
        render_photo(digit, random, 320).save(path, quality=75)
        written.append((path, str(digit)))
    return written


def render_photo(digits: str, random: np.random.Generator, height: int) -> Image.Image:
    """Return a photo of digits side by side, `height` pixels high, in dark ink on paper."""
    width = round(height * (0.4 + 0.6 * len(digits)))
    sheet = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(sheet)
    for place, digit in enumerate(digits):
        size = 2 * height * random.uniform(0.45, 0.6)
        slant, thick = random.uniform(-0.1, 0.3), round(size * random.uniform(0.03, 0.09))
        corner = 2 * height * np.array([0.3 + 0.6 * place, random.uniform(0.15, 0.3)])
        for stroke in STROKES[digit].split(" / "):
            points = np.array([point.split(",") for point in stroke.split()], float) / 100
            points += random.normal(0, 0.015, points.shape)
            points[:, 0] -= slant * (points[:, 1] - 0.5)
            curve = make_interp_spline(range(len(points)), points, k=2)
            line = curve(np.linspace(0, len(points) - 1, 60)) * size + corner
            pen.line([tuple(point) for point in line], fill=255, width=thick, joint="curve")
            for x, y in (line[0], line[-1]):  # round ends
                pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=255)
    ink = np.asarray(sheet.resize((width, height), Image.Resampling.BOX)) / 255
    y, x = np.mgrid[:height, :width] / height
    light = 0.9 - random.uniform(0, 0.3) * x / x.max() - random.uniform(0, 0.2) * (y - 0.5) ** 2
    grain = gaussian_filter(random.standard_normal(ink.shape), 1) * 0.04
    grey = np.clip(light * (1 - random.uniform(0.5, 0.8) * ink) + grain, 0, 1)
    return Image.fromarray((255 * grey).round().astype(np.uint8))
