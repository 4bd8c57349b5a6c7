"""Pictures of any kind, read safely as brightness from 0 to 1."""

import math
import warnings
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**27  # 134 million, more than any camera's: a decompression bomb is refused unread
WORK_SIDE = 640  # pixels: larger pictures are reduced first
MIN_CONTRAST = 0.06  # of the whole scale: a picture with less is empty

Picture = str | PathLike | Image.Image | np.ndarray | torch.Tensor


def read_grey(picture: Picture) -> np.ndarray:
    """Return the picture's brightness, float64 of shape (H, W) from 0 to 1, reduced if large.

    Raises:
        ValueError: The picture is damaged, too large or of an unknown kind.
        OSError: The file is missing or not readable.
    """
    if isinstance(picture, (str, PathLike)):
        picture = _open(picture)
    elif isinstance(picture, Image.Image):
        picture = ImageOps.exif_transpose(picture)
    else:
        picture = _from_array(picture)

    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width:,} x {picture.height:,} pixels"
        raise ValueError(f"a picture of {size} is too large, expected at most {MAX_PIXELS:,}.")

    factor = math.ceil(max(picture.size) / WORK_SIDE)
    if picture.mode == "P":
        picture = picture.convert("RGBA")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;"):
        return _flatten(picture.reduce(factor))

    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a picture's values must be finite, found infinite ones or NaN.")
    if picture.mode != "F":  # 16 bits; 32-bit integers may hold 8-bit values
        values = values / (255 if values.max() <= 255 else 65_535)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"a picture's floats must lie in 0 to 1, found {values.min():g} to {values.max():g}."
        )
    reduced = Image.fromarray(values.astype(np.float32)).reduce(factor)
    return np.asarray(reduced, np.float64)


def _flatten(picture: Image.Image) -> np.ndarray:
    """Return an 8-bit picture's brightness, transparent pixels on the paper that shows the ink."""
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L")) / 255

    opaque = picture.convert("RGBA")
    for paper in ("white", "black"):  # white ink on a transparent ground is invisible on white
        sheet = Image.new("RGBA", opaque.size, paper)
        grey = np.asarray(Image.alpha_composite(sheet, opaque).convert("L")) / 255
        if np.ptp(grey) >= MIN_CONTRAST:
            break
    return grey


def _open(path: str | PathLike) -> Image.Image:
    """Read a picture's file, with the camera's rotation applied."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is checked
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    size = f"{picture.width:,} x {picture.height:,} pixels"
                    raise ValueError(f"{path} has {size}, expected at most {MAX_PIXELS:,} in all.")
                frames = getattr(picture, "n_frames", 1)
                if frames > 1 and picture.format != "MPO":  # a photo, with a preview behind it
                    raise ValueError(f"{path} has {frames} frames, expected one picture.")
                return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise ValueError(f"{path} is not a picture: expected one of {kinds}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture: {error}.") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError):
        raise
    except Exception as error:  # parsers raise all kinds of errors on foreign bytes
        raise ValueError(f"{path} is damaged: {error}.") from error


def _from_array(values: np.ndarray | torch.Tensor) -> Image.Image:
    """Return an array's picture: 8 bits, or grey with 16 bits or floats."""
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]

    is_grey = values.ndim == 2
    is_colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if not (is_grey or is_colour) or not values.size:
        raise ValueError(
            f"a picture's array must be (H, W), (H, W, 3) or (H, W, 4), found {values.shape}."
        )

    # Pillow has floats and 16 bits for grey pictures alone.
    if values.dtype == bool or (is_colour and values.dtype.kind == "f"):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("a picture's floats must lie in 0 to 1.")
        values = (values * 255.0).round().astype(np.uint8)
    if values.dtype == np.uint16 and is_colour:
        values = (values >> 8).astype(np.uint8)

    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    elif values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"a picture's array must be uint8, uint16, bool or float, found {values.dtype}."
        )
    return Image.fromarray(values)
