"""A person's picture of a digit made into an image like MNIST's.

`web/digits.js` does the same in the browser, and a test holds it to this file: change both.
"""

import warnings
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch.nn import functional as F

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**27  # 134 million, above any camera's: a bomb is refused before it is unpacked
WORK_SIDE = 640  # pixels: larger pictures are reduced first
FAINTEST = 0.06  # of the whole scale: less contrast than that is an empty picture
THINNEST = 1.5  # pixels of the 20x20: MNIST's strokes are two to three wide

Picture = str | PathLike | Image.Image | np.ndarray | torch.Tensor


def to_mnist(picture: Picture) -> torch.Tensor:
    """Return what the network sees of a picture of one digit, uint8 of shape (28, 28).

    `picture`: a file's path, a PIL image, or an array of shape (H, W), (H, W, 3) or (H, W, 4):
    uint8, uint16, bool, or float from 0 to 1. Black on white or white on black, drawn or
    photographed, also under uneven light. The paper is a smooth surface that most pixels lie on;
    ink is what is far from it, on the one side that goes farther; specks are dropped; `centre`
    does the rest. Warns if there seem to be several digits, which `find_digits` parts. Raises
    ValueError for a picture that cannot be read or has no ink on it, FileNotFoundError or another
    OSError for a file that is not there or not readable.

    Sources: Otsu, "A threshold selection method from gray-level histograms", 1979; for the last
    step LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    ink, blobs = _blobs(_grey(picture))
    heights = [np.ptp(np.nonzero(np.isin(blobs, numbers).any(1))) for numbers in _spans(blobs)]
    if (digits := sum(height > max(heights) / 2 for height in heights)) > 1:
        warnings.warn(
            f"the picture seems to hold {digits} digits, read as one: find_digits parts them.",
            stacklevel=2,
        )
    return _as_mnist(ink * (blobs > 0))


def find_digits(picture: Picture) -> torch.Tensor:
    """Return the digits in a picture from left to right, as `to_mnist` would, uint8 (N, 28, 28).

    For digits side by side that do not touch. What lies above each other is one digit, so that a
    five keeps its roof. Raises what `to_mnist` raises.
    """
    ink, blobs = _blobs(_grey(picture))
    return torch.stack([_as_mnist(ink * np.isin(blobs, numbers)) for numbers in _spans(blobs)])


def _spans(blobs: np.ndarray) -> list[list[int]]:
    """Return the numbers of the blobs of each digit, from left to right."""
    spans: list[list] = []  # of columns, with the numbers of the blobs that they hold
    boxes = enumerate(ndimage.find_objects(blobs), 1)
    for number, box in sorted((b for b in boxes if b[1]), key=_left):  # None: it was a speck
        left, right = box[1].start, box[1].stop
        if spans and spans[-1][1] - left >= 0.4 * min(right - left, spans[-1][1] - spans[-1][0]):
            spans[-1][1] = max(right, spans[-1][1])
            spans[-1][2].append(number)
        else:
            spans.append([left, right, [number]])
    return [numbers for *_, numbers in spans]


def _left(numbered) -> int:
    return numbered[1][1].start


def centre(digit: torch.Tensor) -> torch.Tensor:
    """Return a digit of any size the way MNIST's were made, uint8 of shape (28, 28).

    `digit`: floats from 0 (background) to 1 (ink). Its box is scaled to fit 20x20 and placed so
    that the centre of mass is the middle of 28x28.
    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    rows, columns = (digit > 0).nonzero().T
    box = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    size = [max(1, round(20 * side / max(box.shape))) for side in box.shape]
    small = F.interpolate(box[None, None], size, mode="bilinear", antialias=True)[0, 0]
    corner = []
    for axis, side in enumerate(size):
        mass = small.sum(1 - axis)
        centre = float((mass * torch.arange(side)).sum() / mass.sum())
        corner.append(min(max(round(13.5 - centre), 0), 28 - side))
    image = torch.zeros(28, 28)
    image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = small
    return (image * 255).round().to(torch.uint8)


def _as_mnist(ink: np.ndarray) -> torch.Tensor:
    """Thicken the strokes of a thin pen, centre, and make the darkest ink full."""
    rows, columns = (ink > 0).nonzero()
    side = 1 + max(np.ptp(rows), np.ptp(columns))
    # A stroke of length l and width w has the area l w and the edge 2 l.
    solid = np.pad(ink > 0.5, 1)
    edge = sum(int((solid != np.roll(solid, 1, axis)).sum()) for axis in (0, 1))
    width = 2 * solid.sum() / max(1, edge)
    missing = round((THINNEST * side / 20 - width) / 2)
    if missing > 0:
        ink = ndimage.maximum_filter(np.pad(ink, missing), 2 * missing + 1)
    image = centre(torch.from_numpy(ink).float()).float()
    return (image * (255 / image.max())).round().to(torch.uint8)


def _grey(picture: Picture) -> np.ndarray:
    """Return the picture's brightness, float64 of shape (H, W) from 0 to 1, of a workable size."""
    if isinstance(picture, (str, PathLike)):
        picture = _open(picture)
    if not isinstance(picture, Image.Image):
        picture = _from_array(picture)
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width:,} x {picture.height:,} pixels"
        raise ValueError(f"a picture of {size} is too large, expected at most {MAX_PIXELS:,}.")
    factor = -(-max(picture.size) // WORK_SIDE)
    if picture.mode == "P":
        picture = picture.convert("RGBA")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;"):
        picture = picture.reduce(factor)
        opaque = picture.convert("RGBA") if picture.has_transparency_data else None
        if opaque is None:
            return np.asarray(picture.convert("L")) / 255
        for paper in ("white", "black"):  # white ink on nothing is not seen on white
            sheet = Image.new("RGBA", opaque.size, paper)
            grey = np.asarray(Image.alpha_composite(sheet, opaque).convert("L")) / 255
            if np.ptp(grey) >= FAINTEST:
                break
        return grey
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a picture's values must be finite, found infinite ones or NaN.")
    values = values / (1 if picture.mode == "F" else 65_535)
    if values.min() < 0 or values.max() > 1:
        found = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"a picture's floats must lie in 0 to 1, found {found}.")
    return np.asarray(Image.fromarray(values.astype(np.float32)).reduce(factor), np.float64)


def _open(path: str | PathLike) -> Image.Image:
    """Read a picture's file as it is to be seen: the camera's rotation applied."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count ourselves
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    size = f"{picture.width:,} x {picture.height:,} pixels"
                    raise ValueError(f"{path} has {size}, expected at most {MAX_PIXELS:,} in all.")
                if (frames := getattr(picture, "n_frames", 1)) > 1:
                    raise ValueError(f"{path} has {frames} frames, expected one picture.")
                return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise ValueError(f"{path} is not a picture: expected one of {kinds}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture: {error}.") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError):
        raise
    except Exception as error:  # parsers raise whatever they like on bytes that are not theirs
        raise ValueError(f"{path} is damaged: {error}.") from error


def _from_array(values: np.ndarray | torch.Tensor) -> Image.Image:
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    shaped = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not shaped or not values.size:
        expected = "(H, W), (H, W, 3) or (H, W, 4)"
        raise ValueError(f"a picture's array must be {expected}, found {values.shape}.")
    if values.dtype == bool or (values.ndim == 3 and values.dtype.kind == "f"):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("a picture's floats must lie in 0 to 1.")
        values = (values * 255.0).round().astype(np.uint8)
    if values.dtype == np.uint16 and values.ndim == 3:
        values = (values >> 8).astype(np.uint8)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    elif values.dtype not in (np.uint8, np.uint16):
        expected = "uint8, uint16, bool or float"
        raise ValueError(f"a picture's array must be {expected}, found {values.dtype}.")
    return Image.fromarray(values)


def _blobs(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink from 0 to 1 and the number of the blob that each pixel is of, 0 for none."""
    # A few thousand pixels tell the paper's brightness: a quadratic surface by least absolute
    # deviations, for which the ink, a minority, does not count.
    step = -(-max(grey.shape) // 64)
    y, x = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in grey.shape)
    seen = grey[::step, ::step].ravel()
    v, u = (part.ravel() for part in np.meshgrid(y[::step], x[::step], indexing="ij"))
    terms = np.stack([np.ones(seen.size), u, v, u * u, u * v, v * v], axis=1)
    surface = np.array([np.median(seen), 0, 0, 0, 0, 0])
    for _ in range(20):
        weight = 1 / np.maximum(np.abs(seen - terms @ surface), 0.002)
        normal = terms.T * weight @ terms + 1e-6 * np.eye(6)
        before, surface = surface, np.linalg.solve(normal, terms.T @ (weight * seen))
        if np.abs(surface - before).max() < 1e-5:
            break
    noise = 1.5 * np.median(np.abs(seen - terms @ surface))
    a, b, c, d, e, f = surface
    y = y[:, None]
    height = grey - (a + c * y + f * y * y) - x * (b + e * y) - d * x * x
    ink = np.maximum(0, height if (height * height * height).sum() > 0 else -height)

    threshold = _otsu(ink[ink > 3 * noise])
    full = np.median(ink[ink > threshold]) if (ink > threshold).any() else 0.0
    if full < max(FAINTEST, 4.5 * noise):  # noise alone gives less than four times itself
        raise ValueError("there is no ink in the picture: expected a digit that stands out.")
    ink = np.where(ink < max(0.15 * full, 4 * noise), 0, np.minimum(ink / full, 1))
    blobs, _ = ndimage.label(ink > 0, np.ones((3, 3)))
    mass = np.bincount(blobs.ravel(), ink.ravel())
    blobs[(mass < 0.05 * mass.max())[blobs]] = 0
    return ink, blobs


def _otsu(values: np.ndarray) -> float:
    """Return the threshold, among 255, that parts values of at least 0 with the least variance."""
    if not values.size:
        return 0.0
    count, edges = np.histogram(values, 256, (0, values.max()))
    middle = (edges[1:] + edges[:-1]) / 2
    below, sum_below = np.cumsum(count)[:-1], np.cumsum(count * middle)[:-1]
    above, sum_above = values.size - below, (count * middle).sum() - sum_below
    means = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * means**2)])
