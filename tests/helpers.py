"""Files and pictures that several tests make."""

import io
import struct

import numpy as np
from PIL import Image
from scipy import ndimage


def idx(array: np.ndarray) -> bytes:
    """Return the array in the IDX format of MNIST's files, after the format's description."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def pasted(digit: np.ndarray, random: np.random.Generator, rough: bool) -> np.ndarray:
    """Paste a 28x28 digit on 280x280: any size, place, polarity, greys; rough: a bad photograph."""
    side = int(random.integers(60, 261))
    top, left = random.integers(0, 281 - side, 2)
    ink = np.zeros((280, 280))
    big = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink[top : top + side, left : left + side] = np.asarray(big) / 255
    paper, pen = random.uniform(0, 0.3), random.uniform(0.6, 1.0)
    grey = paper + (pen - paper) * ink
    if random.random() < 0.5:
        grey = 1 - grey
    if not rough:
        return (255 * grey).round().astype(np.uint8)
    y, x = np.mgrid[:280, :280] / 279 - 0.5
    angle = random.uniform(0, 2 * np.pi)
    light = 1 - random.uniform(0, 0.4) * (0.5 + np.cos(angle) * x + np.sin(angle) * y)
    light -= random.uniform(0, 0.6) * (x**2 + y**2)
    texture = ndimage.gaussian_filter(random.standard_normal((280, 280)), 1)
    texture *= random.uniform(0, 0.03) / texture.std()
    speckle = random.standard_normal((280, 280)) * random.uniform(0, 0.02)
    grey = np.clip(grey * light + texture + speckle, 0, 1)
    file = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def shapes(folder, classes=("crosses", "rings", "élan vital"), count=24):
    """Write pictures of three kinds of marks, named with spaces and accents."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:90, :90]
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            down, across = y - random.integers(35, 55), x - random.integers(35, 55)
            size = random.integers(18, 30)
            near = np.maximum(abs(down), abs(across)) < size
            marks = [
                near & ((abs(down) < 4) | (abs(across) < 4)),
                abs(np.hypot(down, across) - size + 4) < 4,
                near & (abs(down - across) < 6),
            ]
            grey = np.where(marks[label], 40, 230).astype(np.uint8)
            Image.fromarray(grey).save(folder / name / f"a picture {i}.png")
    return folder
